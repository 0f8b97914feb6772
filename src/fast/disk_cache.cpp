#include "fast/disk_cache.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string_view>
#include <vector>

#include "fast/hash.h"

namespace natten::fast {

namespace {

namespace files = std::filesystem;

constexpr std::string_view kMagic = "natten-mlx kernel 2\n";
constexpr std::string_view kSuffix = ".kernel";
constexpr std::string_view kTemporary = ".writing-";  // between a file's name and six letters
constexpr std::size_t kDigits = 16;                   // of a file's name

/// What a file is: magic, a hash of the rest, length of the key, key, contents. Of keys with one hash, and so one file,
/// the last one stays.
std::string packed(const std::string& key, const std::string& contents) {
  const std::string body = std::to_string(key.size()) + '\n' + key + contents;
  return std::string(kMagic) + hash_of(body) + '\n' + body;
}

std::optional<std::string> unpacked(const std::string& key, std::string_view file) {
  if (!file.starts_with(kMagic)) return std::nullopt;
  file.remove_prefix(kMagic.size());
  const std::string_view hash = file.substr(0, file.find('\n'));
  std::string_view body = file.substr(std::min(hash.size() + 1, file.size()));
  const std::string start = std::to_string(key.size()) + '\n' + key;
  if (hash_of(body) != hash || !body.starts_with(start)) return std::nullopt;
  return std::string(body.substr(start.size()));
}

struct File {
  files::path path;
  std::uint64_t bytes;
  files::file_time_type used;
  bool is_whole;  ///< or one that somebody is writing, or has left unfinished
};

/// Those of the folder that are ours.
std::vector<File> list(const files::path& folder) {
  std::vector<File> found;
  std::error_code error;
  for (files::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.find_first_not_of("0123456789abcdef") != kDigits) continue;
    const std::string_view rest = std::string_view(name).substr(kDigits);
    const bool is_whole = rest == kSuffix;
    if (!is_whole && !rest.starts_with(kTemporary)) continue;
    std::error_code gone;
    const std::uint64_t bytes = entry->file_size(gone);
    const files::file_time_type used = entry->last_write_time(gone);
    if (!gone) found.push_back({entry->path(), bytes, used, is_whole});
  }
  return found;
}

}  // namespace

DiskCache DiskCache::of_environment() {
  const auto variable = [](const char* name) -> files::path {
    const char* value = std::getenv(name);
    return value ? value : "";
  };
  if (std::getenv("NATTEN_CACHE_DIR")) return DiskCache(variable("NATTEN_CACHE_DIR"));
  files::path home = variable("XDG_CACHE_HOME");  // ignored where it is not absolute, as its standard says
  if (!home.is_absolute()) home = variable("HOME").empty() ? "" : variable("HOME") / ".cache";
  return DiskCache(home.empty() ? home : home / "natten-mlx" / "kernels");
}

files::path DiskCache::file_of(const std::string& key) const {
  const std::string hash = hash_of(key);
  return folder_ / (std::string(kDigits - hash.size(), '0') + hash + std::string(kSuffix));
}

std::optional<std::string> DiskCache::find(const std::string& key) const {
  if (folder_.empty()) return std::nullopt;
  const files::path path = file_of(key);
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  std::ostringstream bytes;  // which a file that can't be read leaves empty; an iterator would throw
  bytes << file.rdbuf();
  const std::optional<std::string> contents = unpacked(key, bytes.str());
  if (contents) {
    utimensat(AT_FDCWD, path.c_str(), nullptr, 0);
  } else {
    unlink(path.c_str());
  }
  return contents;
}

bool DiskCache::insert(const std::string& key, const std::string& contents) const {
  if (folder_.empty() || key.size() + contents.size() > limit_) return false;
  std::error_code error;
  files::create_directories(folder_.parent_path(), error);
  mkdir(folder_.c_str(), 0700);  // what is in it will run
  const files::path path = file_of(key);
  std::string temporary = (folder_ / path.stem()).string() + std::string(kTemporary) + "XXXXXX";
  const int made = mkostemp(temporary.data(), O_CLOEXEC);
  if (made < 0) return false;
  close(made);
  std::ofstream file(temporary, std::ios::binary);
  file << packed(key, contents);
  file.close();
  if (!file || rename(temporary.c_str(), path.c_str()) != 0) {
    unlink(temporary.c_str());
    return false;
  }
  trim();
  return true;
}

void DiskCache::trim() const {
  std::vector<File> all = list(folder_);
  std::uint64_t bytes = 0;
  for (const File& file : all) bytes += file.bytes;
  const auto now = files::file_time_type::clock::now();
  std::sort(all.begin(), all.end(), [](const File& a, const File& b) { return a.used < b.used; });
  for (const File& file : all) {
    const bool is_left_over = !file.is_whole && now - file.used > std::chrono::hours(1);
    if (!is_left_over && (bytes <= limit_ || !file.is_whole)) continue;
    if (unlink(file.path.c_str()) == 0) bytes -= file.bytes;
  }
}

DiskUsage DiskCache::usage() const {
  DiskUsage usage;
  if (folder_.empty()) return usage;
  for (const File& file : list(folder_)) {
    usage.files += file.is_whole;
    usage.bytes += file.bytes;
  }
  return usage;
}

DiskUsage DiskCache::clear() const {
  DiskUsage gone;
  if (folder_.empty()) return gone;
  for (const File& file : list(folder_)) {
    if (unlink(file.path.c_str()) != 0) continue;
    gone.files += file.is_whole;
    gone.bytes += file.bytes;
  }
  return gone;
}

}  // namespace natten::fast

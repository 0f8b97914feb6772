// Compiled kernels in files, for the processes that come after this one. What cannot be read or written, for whatever
// reason, is as if it were not there: a cache makes nothing fail.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace natten::fast {

struct DiskUsage {
  std::size_t files = 0;
  std::uint64_t bytes = 0;
};

class DiskCache {
 public:
  static constexpr std::uint64_t kLimit = 256 << 20;  ///< a kernel is 10 to 200 KB, and its text, the key, up to 100

  /// In NATTEN_CACHE_DIR, or the folder natten-mlx/kernels in XDG_CACHE_HOME or ~/.cache, as the environment is now.
  /// An empty NATTEN_CACHE_DIR, or no home at all: nothing is kept.
  static DiskCache of_environment();
  explicit DiskCache(std::filesystem::path folder, std::uint64_t limit = kLimit)
      : folder_(std::move(folder)), limit_(limit) {}

  const std::filesystem::path& folder() const { return folder_; }  ///< empty: nothing is kept
  std::uint64_t limit() const { return limit_; }

  /// The contents stored under a key, which may be any bytes. A file that is cut off, damaged or another key's is
  /// removed. What is found counts as used now.
  std::optional<std::string> find(const std::string& key) const;
  /// A file appears as a whole or not at all, whoever else writes it at the same time. Files used longest ago give way
  /// where all are more than the limit. Says whether it is stored.
  bool insert(const std::string& key, const std::string& contents) const;

  DiskUsage usage() const;
  /// Removes what this class has written, and nothing else. Returns what is gone.
  DiskUsage clear() const;

 private:
  std::filesystem::path file_of(const std::string& key) const;
  void trim() const;

  std::filesystem::path folder_;
  std::uint64_t limit_;
};

}  // namespace natten::fast

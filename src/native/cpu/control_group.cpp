#include "native/cpu/control_group.h"

#include <charconv>
#include <fstream>
#include <functional>
#include <locale>
#include <sstream>
#include <string>

namespace natten::cpu {
namespace {

namespace fs = std::filesystem;

/// The first word of a file, empty where there is none.
std::string first_word(const fs::path& file) {
  std::ifstream in(file);
  std::string word;
  in >> word;
  return word;
}

std::optional<double> ratio(const std::string& quota, const std::string& period) {
  std::istringstream in(quota + ' ' + period);
  in.imbue(std::locale::classic());
  double time = 0, per = 0;
  // "max" and -1 stand for no limit.
  if (!(in >> time >> per) || time <= 0 || per <= 0) return {};
  return time / per;
}

/// Calls visit(folder, is_first_version) for all groups of a controller that are visible.
void for_each_group(const fs::path& root, const std::string& controller,
                    const std::function<void(const fs::path&, bool)>& visit) {
  const auto visit_upwards = [&](const fs::path& mount, fs::path group, bool is_first_version) {
    // A container may not see the group's own path: its files are then at the mount.
    for (group = group.relative_path();; group = group.parent_path()) {
      visit(mount / group, is_first_version);
      if (group.empty()) break;
    }
  };
  const fs::path mounts = root / "sys/fs/cgroup";
  std::ifstream groups(root / "proc/self/cgroup");
  // Lines are "0::/path" in version 2, "4:cpu,cpuacct:/path" in version 1.
  for (std::string line; std::getline(groups, line);) {
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
    if (controllers.empty()) {
      visit_upwards(mounts, path, false);
      visit_upwards(mounts / "unified", path, false);
    } else if ((',' + controllers + ',').find(',' + controller + ',') != std::string::npos) {
      visit_upwards(mounts / controllers, path, true);
      visit_upwards(mounts / controller, path, true);
    }
  }
}

template <class T>
void lower(std::optional<T>& least, std::optional<T> limit) {
  if (limit && (!least || *limit < *least)) least = limit;
}

}  // namespace

std::optional<double> cpu_quota(const fs::path& root) {
  std::optional<double> least;
  for_each_group(root, "cpu", [&](const fs::path& group, bool is_first_version) {
    if (is_first_version) {
      return lower(least, ratio(first_word(group / "cpu.cfs_quota_us"), first_word(group / "cpu.cfs_period_us")));
    }
    std::ifstream in(group / "cpu.max");
    std::string quota, period;
    in >> quota >> period;
    lower(least, ratio(quota, period));
  });
  return least;
}

std::optional<std::uint64_t> memory_limit(const fs::path& root) {
  std::optional<std::uint64_t> least;
  for_each_group(root, "memory", [&](const fs::path& group, bool is_first_version) {
    const std::string word = first_word(group / (is_first_version ? "memory.limit_in_bytes" : "memory.max"));
    std::uint64_t bytes = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), bytes);
    // "max" stands for no limit, as does a number near 2^63 in version 1.
    if (error == std::errc() && end == word.data() + word.size()) lower(least, std::optional(bytes));
  });
  return least;
}

}  // namespace natten::cpu

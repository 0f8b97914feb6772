#include "native/cpu/cpu_quota.h"

#include <fstream>
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

std::optional<double> limit_of(const fs::path& group, bool is_first_version) {
  if (is_first_version) return ratio(first_word(group / "cpu.cfs_quota_us"), first_word(group / "cpu.cfs_period_us"));
  std::ifstream in(group / "cpu.max");
  std::string quota, period;
  in >> quota >> period;
  return ratio(quota, period);
}

}  // namespace

std::optional<double> cpu_quota(const fs::path& root) {
  std::optional<double> least;
  const auto consider = [&](const fs::path& mount, fs::path group, bool is_first_version) {
    // A container may not see the group's own path: its files are then at the mount. Limits of the groups around hold
    // too.
    for (group = group.relative_path();; group = group.parent_path()) {
      const std::optional<double> limit = limit_of(mount / group, is_first_version);
      if (limit && (!least || *limit < *least)) least = limit;
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
      consider(mounts, path, false);
      consider(mounts / "unified", path, false);
    } else if ((',' + controllers + ',').find(",cpu,") != std::string::npos) {
      consider(mounts / controllers, path, true);
      consider(mounts / "cpu", path, true);
    }
  }
  return least;
}

}  // namespace natten::cpu

// How many CPUs the control groups of this process leave it, on Linux.
#pragma once

#include <filesystem>
#include <optional>

namespace natten::cpu {

/// CPU time per time of the tightest limit among the process's control groups and those around them, version 2
/// (cpu.max) or 1 (cpu.cfs_quota_us); none where there is no limit or nothing can be read. Files are looked for under
/// `root`.
std::optional<double> cpu_quota(const std::filesystem::path& root = "/");

}  // namespace natten::cpu

// What the control groups of this process leave it, on Linux: those it is in, and those around them, version 2 or 1.
// None where there is no limit or nothing can be read. Files are looked for under `root`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

namespace natten::cpu {

/// CPU time per time (cpu.max; cpu.cfs_quota_us).
std::optional<double> cpu_quota(const std::filesystem::path& root = "/");

/// Bytes (memory.max; memory.limit_in_bytes).
std::optional<std::uint64_t> memory_limit(const std::filesystem::path& root = "/");

}  // namespace natten::cpu

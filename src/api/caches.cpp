// What is kept from one call to the next, of all tiers.
#include "fast/disk_cache.h"
#include "fast/launch.h"
#include "fast/nvrtc.h"
#include "mlx/device.h"
#include "native/result_memory.h"
#include "natten/tiers.h"

namespace natten {

KernelCacheUsage kernel_cache_usage() {
  const fast::CacheUsage usage = fast::kernel_cache_usage();
  return {usage.entries, usage.bytes, usage.limit};
}

std::size_t get_cache_memory() {
  return result_cache_bytes();
}

void clear_cache() {
  fast::clear_kernel_cache();
  clear_result_cache();
}

namespace {

KernelFiles in(const fast::DiskCache& cache, const fast::DiskUsage& usage) {
  return {cache.folder().string(), usage.files, usage.bytes, cache.limit()};
}

}  // namespace

KernelFiles kernel_files() {
  const fast::DiskCache cache = fast::DiskCache::of_environment();
  return in(cache, cache.usage());
}

KernelFiles clear_kernel_files() {
  const fast::DiskCache cache = fast::DiskCache::of_environment();
  return in(cache, cache.clear());
}

std::string kernel_compiler() {
  const fast::Target target = fast::target();
  if (fast::is_emulated()) return "GCC, for the emulator";
  if (!mx::is_available(mx::Device::gpu)) return "none, without a GPU";
  if (target.platform == fast::Platform::metal) return "Metal, which keeps what it compiled for later processes";
  if (const auto reason = fast::objection_to_compiler(target)) return "MLX, anew in each process: " + *reason;
  return "NVRTC " + fast::Nvrtc::find()->version() + ", for " + fast::Nvrtc::architecture(target.capability);
}

}  // namespace natten

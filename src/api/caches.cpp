// What is kept from one call to the next, of all tiers.
#include "fast/launch.h"
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

}  // namespace natten

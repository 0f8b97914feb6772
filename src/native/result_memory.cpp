#include "native/result_memory.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>

#include "mlx/device.h"
#include "native/cpu/block_cache.h"
#include "native/cpu/control_group.h"

namespace natten {
namespace {

namespace mx = mlx::core;
using Block = cpu::BlockCache::Block;

constexpr std::size_t kLeastKept = std::size_t{1} << 20;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr auto kBetweenLooks = std::chrono::milliseconds(100);

void free_block(void* memory) {
  mx::allocator::allocator().free(mx::allocator::Buffer(memory));
}

// Never destroyed: arrays may die after every static object.
cpu::BlockCache& cache() {
  static cpu::BlockCache* const instance = [] {
    static auto* const made = new cpu::BlockCache(free_block);
    pthread_atfork([] { made->lock(); }, [] { made->unlock(); }, [] { made->unlock(); });
    return made;
  }();
  return *instance;
}

std::uint64_t machine_memory() {
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  const std::uint64_t all = pages > 0 && page > 0 ? static_cast<std::uint64_t>(pages) * page : std::uint64_t{8} << 30;
  return std::min(all, cpu::memory_limit().value_or(all));
}

/// Whether other programs need what is kept here: an eighth of the machine's memory must stay available.
bool is_memory_short() {
#if defined(__linux__)
  // Reading takes 20 us.
  static std::atomic<std::int64_t> last_look{0};
  const std::int64_t now = std::chrono::steady_clock::now().time_since_epoch() / kBetweenLooks;
  if (last_look.exchange(now, std::memory_order_relaxed) == now) return false;
  std::ifstream in("/proc/meminfo");
  std::uint64_t total = 0;
  for (std::string name, line; in >> name; std::getline(in, line)) {
    if (name == "MemTotal:") in >> total;
    std::uint64_t available;
    if (name == "MemAvailable:" && in >> available) return available < total / 8;
  }
#endif
  return false;
}

/// Whether the system gives huge pages to those who ask.
bool may_advise() {
#if defined(MADV_HUGEPAGE)
  static const bool result = [] {
    std::ifstream in("/sys/kernel/mm/transparent_hugepage/enabled");
    std::string line;
    return std::getline(in, line) && line.find("[madvise]") != std::string::npos;
  }();
  return result;
#else
  return false;
#endif
}

void advise(void* memory, std::size_t bytes) {
#if defined(MADV_HUGEPAGE)
  if (bytes < 2 * kHugePage || !may_advise()) return;
  // Whole pages inside of the block.
  const auto begin = (reinterpret_cast<std::uintptr_t>(memory) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<std::uintptr_t>(memory) + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

void give_back(Block block) {
  if (is_memory_short()) {
    free_block(block.memory);
    clear_result_cache();
  } else {
    cache().put(block, result_cache_limit());
  }
}

const void* pointer_of(const mx::allocator::Buffer& buffer) {
  return buffer.ptr();
}
const void* pointer_of(const mx::allocator::Data& data) {
  return data.buffer().ptr();
}

/// What `allocate` makes of `bytes`. MLX hands out null when memory is short.
template <class Allocate>
auto with_room(std::size_t bytes, Allocate&& allocate) {
  for (int attempt = 0; attempt < 2; ++attempt) {
    auto made = allocate(bytes);
    if (pointer_of(made) != nullptr || bytes == 0) return made;
    clear_result_cache();
  }
  throw std::bad_alloc();
}

mx::allocator::Buffer new_buffer(std::size_t bytes) {
  return with_room(bytes, [](std::size_t size) { return mx::allocator::allocator().malloc(size); });
}

}  // namespace

mx::allocator::Data allocate_owned(std::size_t bytes) {
  return with_room(bytes, mx::allocator::malloc);
}

mx::allocator::Data allocate_result(std::size_t bytes) {
  // MLX's allocators for GPUs keep memory themselves.
  static const bool is_kept_elsewhere = mx::is_available(mx::Device::gpu);
  if (bytes < kLeastKept || is_kept_elsewhere || result_cache_limit() == 0) {
    return mx::allocator::Data(new_buffer(bytes), [](mx::allocator::Buffer b) { free_block(b.ptr()); });
  }
  std::optional<Block> block = cache().take(bytes);
  if (!block) {
    mx::allocator::Buffer buffer = new_buffer(bytes);
    advise(buffer.raw_ptr(), bytes);
    block = Block{buffer.ptr(), bytes};
  }
  return mx::allocator::Data(mx::allocator::Buffer(block->memory), [bytes = block->bytes](mx::allocator::Buffer b) {
    give_back({b.ptr(), bytes});
  });
}

std::size_t result_cache_bytes() {
  return cache().bytes();
}

void clear_result_cache() {
  cache().clear();
}

std::size_t result_cache_limit() {
  static const std::size_t limit = [] {
    const char* text = std::getenv("NATTEN_CACHE_LIMIT");
    if (text == nullptr || *text == '\0') return static_cast<std::size_t>(machine_memory() / 8);
    std::size_t bytes = 0;
    const char* const end = text + std::strlen(text);
    const auto [rest, error] = std::from_chars(text, end, bytes);
    if (error != std::errc() || rest != end) {
      throw std::invalid_argument("NATTEN_CACHE_LIMIT must be a number of bytes, got '" + std::string(text) + "'");
    }
    return bytes;
  }();
  return limit;
}

}  // namespace natten

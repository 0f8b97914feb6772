#include "emulator.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>

#include "compile.h"

namespace natten::metal_host {

namespace {

using ::metal_host::Buffer;

/// A copy of a buffer, alone in a reserved stretch of address space: an index that is wrong by up to gigabytes meets
/// nothing. Within a page the emulator's own check decides.
class GuardedMemory {
 public:
  /// Aligned like `original`, up to 16 bytes.
  GuardedMemory(std::int64_t bytes, const void* original) : bytes_(bytes) {
    const auto shift = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(original) % 16);
    const auto page = static_cast<std::int64_t>(sysconf(_SC_PAGESIZE));
    const std::int64_t used = (bytes + shift + page) / page * page;
    reserved_ = used + 2 * kGap;
    base_ = static_cast<char*>(mmap(nullptr, reserved_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + kGap, used, PROT_READ | PROT_WRITE) != 0) {
      throw std::runtime_error("the emulator cannot reserve memory");
    }
    data_ = base_ + kGap + (used - (bytes + shift + 15) / 16 * 16) + shift;
  }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;
  ~GuardedMemory() { munmap(base_, reserved_); }

  char* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }

 private:
  static constexpr std::int64_t kGap = std::int64_t{1} << 32;
  std::int64_t bytes_, reserved_;
  char* base_;
  char* data_;
};

class Arguments {
 public:
  /// `origin`: byte of the data that the kernel's pointer points to.
  void add(const std::string& name, const void* data, std::int64_t bytes, std::int64_t origin) {
    memory_.push_back(std::make_unique<GuardedMemory>(bytes, data));
    if (data != nullptr && bytes != 0) std::memcpy(memory_.back()->data(), data, bytes);
    names_.push_back(std::make_unique<std::string>(name));
    Buffer buffer{};
    buffer.name = names_.back()->c_str();
    buffer.data = memory_.back()->data();
    buffer.bytes = bytes;
    buffer.origin = origin;
    buffers_.push_back(buffer);
  }
  void add_metadata(const std::string& name, const void* data, std::int64_t bytes) {
    add(name, data, bytes, 0);
    buffers_.back().is_metadata = true;
  }
  void add_output(const std::string& name, std::int64_t bytes) {
    add(name, nullptr, bytes, 0);
    buffers_.back().is_output = true;
  }
  std::vector<Buffer>& buffers() { return buffers_; }

 private:
  std::vector<std::unique_ptr<GuardedMemory>> memory_;
  std::vector<std::unique_ptr<std::string>> names_;
  std::vector<Buffer> buffers_;
};

::metal_host::Size3 size3(const std::array<int, 3>& size) {
  return {static_cast<std::uint32_t>(size[0]), static_cast<std::uint32_t>(size[1]),
          static_cast<std::uint32_t>(size[2])};
}

/// Stacks for the threads of one group, with a guard below each. Kept for the life of the process.
char* stacks() {
  static char* const all = [] {
    using ::metal_host::kStackPitch;
    const std::int64_t bytes = kStackPitch * ::metal_host::kMaxThreads;
    auto* base =
        static_cast<char*>(mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (base == MAP_FAILED) throw std::runtime_error("the emulator cannot reserve stacks");
    const std::int64_t guard = kStackPitch - ::metal_host::kStackBytes;
    for (int i = 0; i < ::metal_host::kMaxThreads; ++i) {
      mprotect(base + i * kStackPitch + guard, ::metal_host::kStackBytes, PROT_READ | PROT_WRITE);
    }
    return base + guard;
  }();
  return all;
}

/// Bytes before and after element (0, 0, ...) that a strided array spans.
struct Extent {
  std::int64_t before = 0, after = 0;
};

Extent extent(const fast::ArraySpec& array, const std::vector<std::int64_t>& strides) {
  const std::int64_t size = size_of(array.type);
  if (strides.size() != array.shape.size()) throw std::invalid_argument(array.name + ": as many strides as axes");
  if (element_count(array) == 0) return {};
  Extent extent{0, size};
  for (size_t i = 0; i < strides.size(); ++i) {
    const std::int64_t span = (array.shape[i] - 1) * strides[i] * size;
    (span < 0 ? extent.before : extent.after) += span < 0 ? -span : span;
  }
  return extent;
}

Traffic traffic(const Buffer& buffer) {
  return {buffer.name, buffer.loaded, buffer.loaded_once, buffer.stored};
}

}  // namespace

std::int64_t Report::loaded() const {
  std::int64_t sum = 0;
  for (const Traffic& buffer : traffic) sum += buffer.loaded;
  return sum;
}

std::int64_t Report::loaded_once() const {
  std::int64_t sum = 0;
  for (const Traffic& buffer : traffic) sum += buffer.loaded_once;
  return sum;
}

std::int64_t Report::stored() const {
  std::int64_t sum = 0;
  for (const Traffic& buffer : traffic) sum += buffer.stored;
  return sum;
}

Report run(const fast::KernelSource& kernel, const std::vector<Input>& inputs, const std::vector<void*>& outputs,
           std::uint64_t order) {
  if (inputs.size() != kernel.inputs.size() || outputs.size() != kernel.outputs.size()) {
    throw std::invalid_argument(kernel.name + ": as many arrays as the kernel declares");
  }
  const LaunchFunction launch_kernel = compiled(host_text(kernel));

  Arguments arguments;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const fast::ArraySpec& input = kernel.inputs[i];
    const auto [before, after] = extent(input, inputs[i].strides);
    arguments.add(input.name, static_cast<const char*>(inputs[i].data) - before, before + after, before);
    const auto ndim = static_cast<std::int32_t>(input.shape.size());
    const std::vector<std::int32_t> shape(input.shape.begin(), input.shape.end());
    if (asks_for(kernel, input, "_shape")) arguments.add_metadata(input.name + "_shape", shape.data(), 4 * ndim);
    if (asks_for(kernel, input, "_strides")) {
      arguments.add_metadata(input.name + "_strides", inputs[i].strides.data(), 8 * ndim);
    }
    if (asks_for(kernel, input, "_ndim")) arguments.add_metadata(input.name + "_ndim", &ndim, 4);
  }
  for (const fast::ArraySpec& output : kernel.outputs) {
    arguments.add_output(output.name, element_count(output) * size_of(output.type));
  }

  static std::mutex one_at_a_time;  // a compiled kernel's state is global
  const std::lock_guard lock(one_at_a_time);
  ::metal_host::Launch launch{};
  launch.stacks = stacks();
  launch.buffers = arguments.buffers().data();
  launch.buffer_count = static_cast<std::int32_t>(arguments.buffers().size());
  launch.grid = size3(kernel.grid);
  launch.threadgroup = size3(kernel.threadgroup);
  launch.threadgroup_limit =
      std::max((kernel.platform == fast::Platform::metal ? 32 : 48) * 1024, kernel.dynamic_bytes);
  launch.order = order;
  launch_kernel(&launch);

  Report report;
  report.barriers = launch.barriers;
  report.threadgroup_bytes = launch.threadgroup_bytes;
  report.threadgroup_loaded = launch.threadgroup_loaded;
  if (launch.error[0] != 0) report.error = kernel.name + ": " + launch.error;
  size_t next_output = 0;
  for (const Buffer& buffer : arguments.buffers()) {
    if (!buffer.is_metadata) report.traffic.push_back(traffic(buffer));
    if (buffer.is_output) std::memcpy(outputs[next_output++], buffer.data, buffer.bytes);
  }
  return report;
}

Report run_emulated(const fast::KernelSource& kernel, const std::vector<Input>& inputs,
                    const std::vector<void*>& outputs) {
  std::vector<std::vector<char>> shuffled;
  std::vector<void*> shuffled_outputs;
  for (const fast::ArraySpec& output : kernel.outputs) {
    shuffled.emplace_back(element_count(output) * size_of(output.type));
    shuffled_outputs.push_back(shuffled.back().data());
  }
  constexpr std::uint64_t kShuffled = 0x5eed;
  for (const std::uint64_t order : {kShuffled, std::uint64_t{0}}) {
    Report report = run(kernel, inputs, order == 0 ? outputs : shuffled_outputs, order);
    if (report.error.empty() && report.threadgroup_bytes > std::max(kernel.shared_bytes, kernel.dynamic_bytes)) {
      report.error = kernel.name + ": declares " + std::to_string(kernel.shared_bytes) +
                     " bytes of shared memory, uses " + std::to_string(report.threadgroup_bytes);
    }
    if (!report.error.empty()) throw std::runtime_error(report.error);
    if (order != 0) continue;
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (std::memcmp(outputs[i], shuffled[i].data(), shuffled[i].size()) != 0) {
        throw std::runtime_error(kernel.name + ": output " + kernel.outputs[i].name +
                                 " depends on the order in which threads run");
      }
    }
    return report;
  }
  return {};
}

}  // namespace natten::metal_host

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
  explicit GuardedMemory(int64_t bytes) : bytes_(bytes) {
    const auto page = static_cast<int64_t>(sysconf(_SC_PAGESIZE));
    const int64_t used = (bytes + page) / page * page;
    reserved_ = used + 2 * kGap;
    base_ = static_cast<char*>(mmap(nullptr, reserved_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + kGap, used, PROT_READ | PROT_WRITE) != 0) {
      throw std::runtime_error("the emulator cannot reserve memory");
    }
    data_ = base_ + kGap + (used - (bytes + 15) / 16 * 16);
  }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;
  ~GuardedMemory() { munmap(base_, reserved_); }

  char* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  static constexpr int64_t kGap = int64_t{1} << 32;
  int64_t bytes_, reserved_;
  char* base_;
  char* data_;
};

class Arguments {
 public:
  void add(const std::string& name, const void* data, int64_t bytes, bool is_output, bool is_metadata) {
    memory_.push_back(std::make_unique<GuardedMemory>(bytes));
    if (data != nullptr && bytes != 0) std::memcpy(memory_.back()->data(), data, bytes);
    names_.push_back(std::make_unique<std::string>(name));
    buffers_.push_back(Buffer{names_.back()->c_str(), memory_.back()->data(), bytes, is_output, is_metadata, 0, 0, 0});
  }
  std::vector<Buffer>& buffers() { return buffers_; }

 private:
  std::vector<std::unique_ptr<GuardedMemory>> memory_;
  std::vector<std::unique_ptr<std::string>> names_;
  std::vector<Buffer> buffers_;
};

/// Stacks for the threads of one group, with a guard below each. Kept for the life of the process.
char* stacks() {
  static char* const all = [] {
    using ::metal_host::kStackPitch;
    const int64_t bytes = kStackPitch * ::metal_host::kMaxThreads;
    auto* base =
        static_cast<char*>(mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (base == MAP_FAILED) throw std::runtime_error("the emulator cannot reserve stacks");
    const int64_t guard = kStackPitch - ::metal_host::kStackBytes;
    for (int i = 0; i < ::metal_host::kMaxThreads; ++i) {
      mprotect(base + i * kStackPitch + guard, ::metal_host::kStackBytes, PROT_READ | PROT_WRITE);
    }
    return base + guard;
  }();
  return all;
}

/// C++ that runs the kernel for the current thread, with MLX's arguments in the order of the signature.
std::string call_text(const Kernel& kernel, const GeneratedText& text, const std::vector<Input>& inputs,
                      const std::vector<Output>& outputs) {
  int index = 0;
  std::string call;
  const auto argument = [&](const std::string& prefix, const std::string& type) {
    call += (call.empty() ? "      " : ",\n      ") + prefix + "static_cast<" + type + "*>(metal_host_argument(" +
            std::to_string(index++) + "))";
  };
  const char* const names[] = {"bool", "int32_t", "int64_t", "uint32_t", "float16_t", "bfloat16_t", "float"};
  for (const Input& input : inputs) {
    argument("", std::string("const ") + names[static_cast<int>(input.parameter.type)]);
    if (asks_for(kernel, input.parameter, "_shape")) argument("", "const int");
    if (asks_for(kernel, input.parameter, "_strides")) argument("", "const int64_t");
    if (asks_for(kernel, input.parameter, "_ndim")) argument("*", "const int");
  }
  for (const Output& output : outputs) argument("", names[static_cast<int>(output.parameter.type)]);
  for (const std::string& attribute : text.attributes) call += ",\n      metal_host::vector(at." + attribute + ")";
  std::string values;
  for (const auto& [name, value] : kernel.template_arguments) {
    values += values.empty() ? "<" : ", ";
    if (const auto* type = std::get_if<Scalar>(&value)) {
      values += names[static_cast<int>(*type)];
    } else if (const auto* number = std::get_if<int>(&value)) {
      values += std::to_string(*number);
    } else {
      values += std::get<bool>(value) ? "1" : "0";
    }
  }
  if (!values.empty()) values += ">";
  return "\nMETAL_HOST_PLAIN void metal_host_run_thread() {\n  const auto& at = *metal_host_thread();\n  " +
         text.kernel_name + values + "(\n" + call + ");\n}\n";
}

std::vector<Parameter> parameters(const auto& arguments) {
  std::vector<Parameter> all;
  for (const auto& argument : arguments) all.push_back(argument.parameter);
  return all;
}

Traffic traffic(const Buffer& buffer) {
  return {buffer.name, buffer.loaded, buffer.loaded_once, buffer.stored};
}

}  // namespace

int64_t Report::loaded() const {
  int64_t sum = 0;
  for (const Traffic& buffer : traffic) sum += buffer.loaded;
  return sum;
}

int64_t Report::loaded_once() const {
  int64_t sum = 0;
  for (const Traffic& buffer : traffic) sum += buffer.loaded_once;
  return sum;
}

int64_t Report::stored() const {
  int64_t sum = 0;
  for (const Traffic& buffer : traffic) sum += buffer.stored;
  return sum;
}

Report run(const Kernel& kernel, const std::vector<Input>& inputs, const std::vector<Output>& outputs, const Run& run) {
  const GeneratedText text = metal_text(kernel, parameters(inputs), parameters(outputs));
  const LaunchFunction launch_kernel = compiled(text, call_text(kernel, text, inputs, outputs));

  Arguments arguments;
  for (const Input& input : inputs) {
    const Parameter& parameter = input.parameter;
    arguments.add(parameter.name, input.data, input.bytes, false, false);
    const auto ndim = static_cast<int32_t>(parameter.shape.size());
    if (asks_for(kernel, parameter, "_shape")) {
      arguments.add(parameter.name + "_shape", parameter.shape.data(), 4 * ndim, false, true);
    }
    if (asks_for(kernel, parameter, "_strides")) {
      arguments.add(parameter.name + "_strides", parameter.strides.data(), 8 * ndim, false, true);
    }
    if (asks_for(kernel, parameter, "_ndim")) arguments.add(parameter.name + "_ndim", &ndim, 4, false, true);
  }
  for (const Output& output : outputs) {
    const int64_t bytes = output.parameter.size() * size_of(output.parameter.type);
    arguments.add(output.parameter.name, nullptr, bytes, true, false);
  }

  static std::mutex one_at_a_time;  // a compiled kernel's state is global
  const std::lock_guard lock(one_at_a_time);
  ::metal_host::Launch launch{};
  launch.stacks = stacks();
  launch.buffers = arguments.buffers().data();
  launch.buffer_count = static_cast<int32_t>(arguments.buffers().size());
  launch.grid = {run.grid[0], run.grid[1], run.grid[2]};
  launch.threadgroup = {run.threadgroup[0], run.threadgroup[1], run.threadgroup[2]};
  launch.order = run.order;
  launch_kernel(&launch);

  Report report;
  report.barriers = launch.barriers;
  report.threadgroup_bytes = launch.threadgroup_bytes;
  if (launch.error[0] != 0) report.error = kernel.name + ": " + launch.error;
  size_t next_output = 0;
  for (const Buffer& buffer : arguments.buffers()) {
    if (!buffer.is_metadata) report.traffic.push_back(traffic(buffer));
    if (buffer.is_output) std::memcpy(outputs[next_output++].data, buffer.data, buffer.bytes);
  }
  return report;
}

Report run_checked(const Kernel& kernel, const std::vector<Input>& inputs, const std::vector<Output>& outputs,
                   const Run& how) {
  std::vector<std::vector<char>> shuffled;
  std::vector<Output> shuffled_outputs = outputs;
  for (Output& output : shuffled_outputs) {
    shuffled.emplace_back(output.parameter.size() * size_of(output.parameter.type));
    output.data = shuffled.back().data();
  }
  Run second = how;
  second.order = how.order * 2 + 0x5eed;
  for (const Report& report : {run(kernel, inputs, shuffled_outputs, second)}) {
    if (!report.error.empty()) throw std::runtime_error(report.error);
  }
  Report report = run(kernel, inputs, outputs, how);
  if (!report.error.empty()) throw std::runtime_error(report.error);
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (std::memcmp(outputs[i].data, shuffled[i].data(), shuffled[i].size()) != 0) {
      throw std::runtime_error(kernel.name + ": output " + outputs[i].parameter.name +
                               " depends on the order in which threads run");
    }
  }
  return report;
}

}  // namespace natten::metal_host

#include "fast/launch.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <unordered_map>

#include "mlx/fast.h"
#include "mlx/primitives.h"
#ifdef NATTEN_BUILD_EMULATOR
#include "mlx_node.h"
#endif

namespace natten::fast {

namespace {

using Arrays = std::vector<mx::array>;

mx::Dtype dtype(ElementType type) {
  const mx::Dtype types[] = {mx::float16, mx::bfloat16, mx::float32, mx::int32};  // in the order of ElementType
  return types[static_cast<int>(type)];
}

mx::Shape shape_of(const ArraySpec& spec) {
  return mx::Shape(spec.shape.begin(), spec.shape.end());
}

struct Kernel {
  KernelSource source;
  mx::fast::CustomKernelFunction function;  ///< empty under emulation
};

/// Everything that a kernel's text depends on.
std::string cache_key(const Problem& p, KernelId kernel) {
  std::string key;
  const auto add = [&](auto value) { key.append(reinterpret_cast<const char*>(&value), sizeof value); };
  add(kernel), add(platform()), add(p.op), add(p.rank);
  add(p.batch), add(p.heads), add(p.kv_heads), add(p.head_dim), add(p.value_dim), add(p.scale);
  for (const Axis& axis : p.axes) {
    add(axis.length), add(axis.kernel_size), add(axis.stride), add(axis.dilation), add(axis.gna_stride);
    add(axis.is_causal);
  }
  add(p.query_type), add(p.key_type), add(p.value_type), add(p.has_rpb), add(p.has_lengths);
  const char* tile = std::getenv("NATTEN_FAST_TILE");
  return tile ? key + tile : key;
}

/// Kernel objects are built once: their text is long, and MLX compiles by name.
std::shared_ptr<const Kernel> kernel_of(const Problem& problem, KernelId id) {
  static std::mutex mutex;
  static std::unordered_map<std::string, std::shared_ptr<const Kernel>> cache;
  const std::string key = cache_key(problem, id);
  const std::lock_guard lock(mutex);
  std::shared_ptr<const Kernel>& found = cache[key];
  if (found) return found;
  auto kernel = std::make_shared<Kernel>();
  kernel->source = kernel_source(problem, id, platform());
  if (!is_emulated()) {
    std::vector<std::string> inputs, outputs;
    for (const ArraySpec& input : kernel->source.inputs) inputs.push_back(input.name);
    for (const ArraySpec& output : kernel->source.outputs) outputs.push_back(output.name);
    const KernelSource& k = kernel->source;
    kernel->function = platform() == Platform::metal
                           ? mx::fast::metal_kernel(k.name, inputs, outputs, k.source, k.header, false)
                           : mx::fast::cuda_kernel(k.name, inputs, outputs, k.source, k.header, false);
  }
  return found = kernel;
}

/// MLX's node of a kernel. Only its primitive is used: `inputs` stand for arrays of their shapes.
std::shared_ptr<mx::Primitive> node_of(const std::shared_ptr<const Kernel>& kernel, const Arrays& inputs,
                                       mx::Stream stream) {
#ifdef NATTEN_BUILD_EMULATOR
  if (is_emulated()) return std::make_shared<metal_host::EmulatedKernel>(stream, kernel->source);
#endif
  const KernelSource& k = kernel->source;
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> types;
  for (const ArraySpec& output : k.outputs) {
    shapes.push_back(shape_of(output));
    types.push_back(dtype(output.type));
  }
  const auto triple = [](const std::array<int, 3>& a) { return std::tuple(a[0], a[1], a[2]); };
  return kernel->function(inputs, shapes, types, triple(k.grid), triple(k.threadgroup), {}, std::nullopt, false, stream)
      .front()
      .primitive_ptr();
}

struct Step {
  std::shared_ptr<mx::Primitive> kernel;
  std::vector<int> inputs;   ///< of the arrays of a launch: its inputs, then its outputs
  std::vector<int> outputs;  ///< the same
};

/// Runs steps in order. All that they hand on are outputs, so that MLX keeps it until the device is done.
class Launch : public mx::Primitive {
 public:
  Launch(mx::Stream stream, std::string name, std::vector<Step> steps)
      : Primitive(stream), name_(std::move(name)), steps_(std::move(steps)) {}

  const char* name() const override { return name_.c_str(); }
  void eval_cpu(const Arrays& inputs, Arrays& outputs) override { run(inputs, outputs, &mx::Primitive::eval_cpu); }
  void eval_gpu(const Arrays& inputs, Arrays& outputs) override { run(inputs, outputs, &mx::Primitive::eval_gpu); }

 private:
  void run(const Arrays& inputs, Arrays& outputs, void (mx::Primitive::*eval)(const Arrays&, Arrays&)) {
    const auto select = [&](const std::vector<int>& indices) {
      Arrays arrays;
      const int count = static_cast<int>(inputs.size());
      for (int i : indices) arrays.push_back(i < count ? inputs[i] : outputs[i - count]);
      return arrays;
    };
    for (const Step& step : steps_) {
      Arrays to = select(step.outputs);
      (step.kernel.get()->*eval)(select(step.inputs), to);
    }
  }

  std::string name_;
  std::vector<Step> steps_;
};

}  // namespace

bool is_emulated() {
#ifdef NATTEN_BUILD_EMULATOR
  const char* value = std::getenv("NATTEN_TEST_FAST_EMULATOR");
  return value && std::string(value) == "1";
#else
  return false;
#endif
}

Platform platform() {
  return is_emulated() ? Platform::metal : kPlatform;
}

Arrays launch(const Problem& problem, const std::vector<KernelId>& ids, const std::vector<NamedArray>& inputs,
              const std::vector<std::string>& results, mx::Stream stream) {
  std::vector<std::shared_ptr<const Kernel>> kernels;
  for (const KernelId id : ids) kernels.push_back(kernel_of(problem, id));

  std::vector<std::string> names;
  Arrays arrays;  // of the whole launch; outputs are placeholders
  for (const NamedArray& input : inputs) {
    names.push_back(input.name);
    arrays.push_back(input.array);
  }
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> types;
  const auto add_output = [&](const ArraySpec& spec) {
    names.push_back(spec.name);
    shapes.push_back(shape_of(spec));
    types.push_back(dtype(spec.type));
    arrays.emplace_back(shapes.back(), types.back(), nullptr, Arrays{});
  };
  for (const bool wanted : {true, false}) {
    for (const auto& kernel : kernels) {
      for (const ArraySpec& output : kernel->source.outputs) {
        if (wanted == (std::find(results.begin(), results.end(), output.name) != results.end())) add_output(output);
      }
    }
  }
  const auto index_of = [&](const ArraySpec& spec) {
    const auto found = std::find(names.begin(), names.end(), spec.name);
    if (found == names.end()) throw std::logic_error("no array " + spec.name + " for a kernel");
    return static_cast<int>(found - names.begin());
  };
  std::vector<Step> steps;
  for (const auto& kernel : kernels) {
    Step step;
    Arrays placeholders;
    for (const ArraySpec& input : kernel->source.inputs) {
      step.inputs.push_back(index_of(input));
      placeholders.push_back(arrays[step.inputs.back()]);
    }
    for (const ArraySpec& output : kernel->source.outputs) step.outputs.push_back(index_of(output));
    step.kernel = node_of(kernel, placeholders, stream);
    steps.push_back(std::move(step));
  }
  return mx::array::make_arrays(std::move(shapes), std::move(types),
                                std::make_shared<Launch>(stream, kernels.back()->source.name, std::move(steps)),
                                Arrays(arrays.begin(), arrays.begin() + static_cast<std::ptrdiff_t>(inputs.size())));
}

}  // namespace natten::fast

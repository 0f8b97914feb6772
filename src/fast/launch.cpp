#include "fast/launch.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <unordered_map>

#include "fast/plan.h"
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

std::tuple<int, int, int> triple(const std::array<int, 3>& a) {
  return {a[0], a[1], a[2]};
}

using Node = std::shared_ptr<mx::Primitive>;

/// A kernel whose machine code is ours. MLX's node of one is made when the strides of its inputs are known; the last
/// one is kept, because the next call is mostly the same.
class Precompiled {
 public:
  Precompiled(CudaProgram program, int capability) : code_(request_cubin(program, capability)) {
    program_ = std::move(program);
    program_.text = {};
  }

  Node node(const KernelLaunch& launch, const Arrays& inputs, const Arrays& outputs, mx::Stream stream) {
    std::vector<int> scalars;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i].ndim() != launch.inputs[i].shape.size()) throw std::logic_error("an input of another rank");
      append_scalars(scalars, program_, i, {inputs[i].shape().begin(), inputs[i].shape().end()},
                     {inputs[i].strides().begin(), inputs[i].strides().end()});
    }
    const std::lock_guard lock(mutex_);
    if (last_ && scalars_ == scalars && grid_ == launch.grid && last_->stream() == stream) return last_;
    std::vector<mx::Shape> shapes;
    std::vector<mx::Dtype> types;
    for (const mx::array& output : outputs) {
      shapes.push_back(output.shape());
      types.push_back(output.dtype());
    }
    last_ = mx::fast::precompiled_cuda_kernel(
                program_.name, code_->code(), inputs, shapes, types, {scalars.begin(), scalars.end()},
                triple(launch.grid), triple(launch.threadgroup), launch.dynamic_bytes, std::nullopt, false, stream)
                .front()
                .primitive_ptr();
    scalars_ = std::move(scalars);
    grid_ = launch.grid;
    return last_;
  }

  const CubinPtr& code() const { return code_; }

 private:
  CudaProgram program_;
  CubinPtr code_;

  std::mutex mutex_;
  Node last_;
  std::vector<int> scalars_;
  std::array<int, 3> grid_{};
};

/// Both programs of a kernel: the wide one is made when strides need it.
class PrecompiledKernel {
 public:
  PrecompiledKernel(const Problem& problem, KernelId id, Target target)
      : problem_(problem), id_(id), target_(target), narrow_(make(false)) {}

  Node node(const KernelLaunch& launch, const Arrays& inputs, const Arrays& outputs, mx::Stream stream) {
    for (const mx::array& input : inputs) {
      if (needs_wide({input.shape().begin(), input.shape().end()}, {input.strides().begin(), input.strides().end()})) {
        std::call_once(wide_is_made_, [this] { wide_ = make(true); });
        return wide_->node(launch, inputs, outputs, stream);
      }
    }
    return narrow_->node(launch, inputs, outputs, stream);
  }

  const CubinPtr& code() const { return narrow_->code(); }

 private:
  std::unique_ptr<Precompiled> make(bool wide) const {
    return std::make_unique<Precompiled>(cuda_program(kernel_source(problem_, id_, target_), wide), target_.capability);
  }

  Problem problem_;
  KernelId id_;
  Target target_;
  std::unique_ptr<Precompiled> narrow_, wide_;
  std::once_flag wide_is_made_;
};

/// What all launches of a kernel share. MLX keeps what it compiled by name, too.
struct Kernel {
  KernelText text;                                 ///< under emulation only; else its name alone
  mx::fast::CustomKernelFunction function;         ///< where MLX compiles
  std::unique_ptr<PrecompiledKernel> precompiled;  ///< where we do
};
using KernelPtr = std::shared_ptr<const Kernel>;

/// Kernel objects are built once: their text is long. Families of problems that choose the same tiles have the same
/// text, so names of texts are found first. Never destroyed, because threads may still ask at exit.
struct KernelCaches {
  LruCache<std::string> names{2 << 20};
  LruCache<KernelPtr> kernels{16 << 20};

  static KernelCaches& instance() {
    static auto& caches = *new KernelCaches;
    return caches;
  }
};

KernelPtr kernel_of(const Problem& problem, KernelId id, Target target, const KernelLaunch& launch) {
  KernelCaches& caches = KernelCaches::instance();
  const bool is_ours = !is_emulated() && is_compiled_here(target);
  const std::string key = (is_ours ? "+" : "") + family_key(family_of(problem), id, target);
  const std::optional<std::string> name = caches.names.find(key);
  if (const auto found = name ? caches.kernels.find(*name) : std::nullopt) return *found;
  KernelText text = kernel_text(problem, id, target);
  const std::string kernel_name = (is_ours ? "+" : "") + text.name;
  caches.names.insert(key, kernel_name, kernel_name.size());
  if (const auto found = caches.kernels.find(kernel_name)) return *found;
  auto kernel = std::make_shared<Kernel>();
  const std::size_t bytes = text.header.size() + text.source.size();
  if (is_emulated()) {
    kernel->text = std::move(text);
  } else if (is_ours) {
    kernel->text.name = text.name;
    kernel->precompiled = std::make_unique<PrecompiledKernel>(problem, id, target);
  } else {
    std::vector<std::string> inputs, outputs;
    for (const ArraySpec& input : launch.inputs) inputs.push_back(input.name);
    for (const ArraySpec& output : launch.outputs) outputs.push_back(output.name);
    kernel->function =
        target.platform == Platform::metal
            ? mx::fast::metal_kernel(text.name, inputs, outputs, text.source, text.header, false)
            : mx::fast::cuda_kernel(text.name, inputs, outputs, text.source, text.header, false, launch.dynamic_bytes);
    kernel->text.name = text.name;
  }
  caches.kernels.insert(kernel_name, kernel, bytes);
  return kernel;
}

/// Numbers of a call as kernels take them. Of those used last the arrays are kept, so that a call neither allocates nor
/// writes memory that a GPU shares.
template <class T>
mx::array constant(const T* values, const ArraySpec& spec) {
  static auto& cache = *new LruCache<mx::array>(64 << 10);
  const mx::Shape shape = shape_of(spec);
  std::size_t bytes = sizeof(T);
  for (const int length : shape) bytes *= static_cast<std::size_t>(length);
  const std::string key(reinterpret_cast<const char*>(values), bytes);
  std::optional<mx::array> found = cache.find(key);
  if (!found) {
    found = mx::array(values, shape, dtype(spec.type));
    cache.insert(key, *found, sizeof(mx::array) + bytes);
  }
  return *found;
}

/// MLX's node of a kernel that MLX compiles. Only its primitive is used: `inputs` stand for arrays of their shapes.
Node node_of(const KernelPtr& kernel, const KernelLaunch& launch, const Arrays& inputs, mx::Stream stream) {
#ifdef NATTEN_BUILD_EMULATOR
  if (is_emulated()) {
    return std::make_shared<metal_host::EmulatedKernel>(stream, KernelSource{kernel->text, launch});
  }
#endif
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> types;
  for (const ArraySpec& output : launch.outputs) {
    shapes.push_back(shape_of(output));
    types.push_back(dtype(output.type));
  }
  return kernel
      ->function(inputs, shapes, types, triple(launch.grid), triple(launch.threadgroup), {}, std::nullopt, false,
                 stream)
      .front()
      .primitive_ptr();
}

struct Step {
  Node node;                 ///< empty: made when the arrays are there
  KernelPtr kernel;          ///< of that node
  KernelLaunch launch;       ///< the same
  std::vector<int> inputs;   ///< of the arrays of a launch: its inputs, then its outputs
  std::vector<int> outputs;  ///< the same
};

/// Runs steps in order. All that they hand on are outputs, so that MLX keeps it until the device is done. So are the
/// constants, the last ones, which share their memory: that must live as long.
class Launch : public mx::Primitive {
 public:
  Launch(mx::Stream stream, std::string name, std::vector<Step> steps, Arrays constants)
      : Primitive(stream), name_(std::move(name)), steps_(std::move(steps)), constants_(std::move(constants)) {}

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
    const std::size_t first = outputs.size() - constants_.size();
    for (std::size_t i = 0; i < constants_.size(); ++i) outputs[first + i].copy_shared_buffer(constants_[i]);
    for (const Step& step : steps_) {
      const Arrays from = select(step.inputs);
      Arrays to = select(step.outputs);
      const Node node = step.node ? step.node : step.kernel->precompiled->node(step.launch, from, to, stream());
      (node.get()->*eval)(from, to);
    }
  }

  std::string name_;
  std::vector<Step> steps_;
  Arrays constants_;
};

}  // namespace

/// MLX's own switch for its products of float32, which it reads once too (and does not export).
static bool rounds_to_tf32() {
  static const char* const value = std::getenv("MLX_ENABLE_TF32");
  static const bool rounds = !value || std::atoi(value) != 0;
  return rounds;
}

/// The platform whose kernels run on the emulator, if any do.
static std::optional<Platform> emulated_platform() {
#ifdef NATTEN_BUILD_EMULATOR
  const char* value = std::getenv("NATTEN_TEST_FAST_EMULATOR");
  if (value && std::string(value) == "metal") return Platform::metal;
  if (value && std::string(value) == "cuda") return Platform::cuda;
#endif
  return std::nullopt;
}

bool is_emulated() {
  return emulated_platform().has_value();
}

Target target(mx::Device device) {
  if (const auto emulated = emulated_platform()) return {*emulated, Target::kOldestCapability, rounds_to_tf32()};
  if (kPlatform == Platform::metal || !mx::is_available(mx::Device::gpu)) return Platform::metal;
  // Asked once for each device: MLX measures its free memory every time.
  static std::mutex mutex;
  static std::unordered_map<int, int> capabilities;
  const int index = device == mx::Device::gpu ? device.index : 0;
  const std::lock_guard lock(mutex);
  const auto [found, is_new] = capabilities.try_emplace(index, Target::kOldestCapability);
  if (is_new) {
    const auto& info = mx::device_info(mx::Device(mx::Device::gpu, index));
    const auto number = [&](const char* name) {
      const auto value = info.find(name);
      const auto* n = value == info.end() ? nullptr : std::get_if<std::size_t>(&value->second);
      return n ? static_cast<int>(*n) : 0;
    };
    const int capability = 10 * number("compute_capability_major") + number("compute_capability_minor");
    if (capability > 0) found->second = capability;
  }
  return {kPlatform, found->second, rounds_to_tf32()};
}

std::vector<PreparedKernel> prepare(const Problem& call, bool gradients) {
  const Problem problem = nearest(call);
  const Target made_for = target();
  std::vector<KernelId> ids = forward_kernels(problem);
  if (gradients) {
    const std::vector<KernelId> more = gradient_kernels(problem);
    ids.insert(ids.end(), more.begin(), more.end());
  }
  std::vector<PreparedKernel> prepared;
  for (const KernelId id : ids) {
    const KernelPtr kernel = kernel_of(problem, id, made_for, kernel_launch(problem, id, made_for));
    prepared.push_back({kernel->text.name, kernel->precompiled ? kernel->precompiled->code() : nullptr});
  }
  return prepared;
}

CacheUsage kernel_cache_usage() {
  CacheUsage usage = KernelCaches::instance().kernels.usage();
  for (const CacheUsage& other : {KernelCaches::instance().names.usage(), plan_cache_usage()}) {
    usage.bytes += other.bytes;
    usage.limit += other.limit;
  }
  return usage;
}

void clear_kernel_cache() {
  KernelCaches::instance().names.clear();
  KernelCaches::instance().kernels.clear();
  clear_plan_cache();
}

Arrays launch(const Problem& problem, const std::vector<KernelId>& ids, const std::vector<NamedArray>& inputs,
              const std::vector<std::string>& results, mx::Stream stream) {
  const Target made_for = target(stream.device);
  std::vector<KernelLaunch> launches;
  for (const KernelId id : ids) launches.push_back(kernel_launch(problem, id, made_for));

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
    for (const KernelLaunch& launch : launches) {
      for (const ArraySpec& output : launch.outputs) {
        if (wanted == (std::find(results.begin(), results.end(), output.name) != results.end())) add_output(output);
      }
    }
  }
  Arrays constants;
  const auto add_constant = [&](const auto* values, const ArraySpec& spec) {
    add_output(spec);
    constants.push_back(constant(values, spec));
  };
  const auto scale = static_cast<float>(problem.scale);
  add_constant(&scale, spec_of(problem, Array::scale));
  if (problem.spans) add_constant(span_numbers(problem).data(), spec_of(problem, Array::spans));
  const auto index_of = [&](const ArraySpec& spec) {
    const auto found = std::find(names.begin(), names.end(), spec.name);
    if (found == names.end()) throw std::logic_error("no array " + spec.name + " for a kernel");
    return static_cast<int>(found - names.begin());
  };
  std::vector<Step> steps;
  std::string name;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    Step step;
    Arrays placeholders;
    for (const ArraySpec& input : launches[i].inputs) {
      step.inputs.push_back(index_of(input));
      placeholders.push_back(arrays[step.inputs.back()]);
    }
    for (const ArraySpec& output : launches[i].outputs) step.outputs.push_back(index_of(output));
    const KernelPtr kernel = kernel_of(problem, ids[i], made_for, launches[i]);
    name = kernel->text.name;
    if (kernel->precompiled) {
      step.kernel = kernel;
      step.launch = std::move(launches[i]);
    } else {
      step.node = node_of(kernel, launches[i], placeholders, stream);
    }
    steps.push_back(std::move(step));
  }
  return mx::array::make_arrays(
      std::move(shapes), std::move(types),
      std::make_shared<Launch>(stream, std::move(name), std::move(steps), std::move(constants)),
      Arrays(arrays.begin(), arrays.begin() + static_cast<std::ptrdiff_t>(inputs.size())));
}

}  // namespace natten::fast

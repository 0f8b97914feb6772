#include "fast/launch.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <unordered_map>

#include "fast/plan.h"
#include "mlx/fast.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#ifdef NATTEN_BUILD_EMULATOR
#include "mlx_node.h"
#endif

namespace natten::fast {

namespace {

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

struct Types {
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;

  explicit Types(const std::vector<ArraySpec>& arrays) {
    for (const ArraySpec& array : arrays) {
      shapes.push_back(shape_of(array));
      dtypes.push_back(dtype(array.type));
    }
  }
};

using Node = std::shared_ptr<mx::Primitive>;

/// A kernel whose machine code is ours. MLX's node of one is made when the strides of its inputs are known; the last
/// one is kept, because the next call is mostly the same.
class Precompiled {
 public:
  Precompiled(CudaProgram program, int capability) : code_(request_cubin(program, capability)) {
    program_ = std::move(program);
    program_.text = {};
  }

  /// Leaves the arrays in `inputs` that the node takes.
  Node node(const KernelLaunch& launch, Arrays& inputs, mx::Stream stream) {
    std::vector<int> scalars;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i].ndim() != launch.inputs[i].shape.size()) throw std::logic_error("an input of another rank");
      append_scalars(scalars, program_, i, {inputs[i].shape().begin(), inputs[i].shape().end()},
                     {inputs[i].strides().begin(), inputs[i].strides().end()});
    }
    if (program_.scale) inputs.erase(inputs.begin() + static_cast<std::ptrdiff_t>(*program_.scale));
    const std::lock_guard lock(mutex_);
    if (last_ && scalars_ == scalars && scale_ == launch.scale && grid_ == launch.grid && last_->stream() == stream) {
      return last_;
    }
    const Types outputs(launch.outputs);
    std::vector<mx::fast::ScalarArg> parameters(scalars.begin(), scalars.end());
    if (program_.scale) parameters.emplace_back(launch.scale);
    last_ = mx::fast::precompiled_cuda_kernel(program_.name, code_->code(), inputs, outputs.shapes, outputs.dtypes,
                                              parameters, triple(launch.grid), triple(launch.threadgroup),
                                              launch.dynamic_bytes, std::nullopt, false, stream)
                .front()
                .primitive_ptr();
    scalars_ = std::move(scalars);
    scale_ = launch.scale;
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
  float scale_ = 0.0f;
  std::array<int, 3> grid_{};
};

/// Both programs of a kernel: the wide one is made when strides need it.
class PrecompiledKernel {
 public:
  PrecompiledKernel(const Problem& problem, KernelId id, Target target, const KernelSource& source)
      : problem_(problem), id_(id), target_(target), narrow_(cuda_program(source), target.capability) {}

  Node node(const KernelLaunch& launch, Arrays& inputs, mx::Stream stream) {
    for (const mx::array& input : inputs) {
      if (needs_wide({input.shape().begin(), input.shape().end()}, {input.strides().begin(), input.strides().end()})) {
        std::call_once(wide_is_made_, [this] {
          wide_.emplace(cuda_program(kernel_source(problem_, id_, target_), true), target_.capability);
        });
        return wide_->node(launch, inputs, stream);
      }
    }
    return narrow_.node(launch, inputs, stream);
  }

  const CubinPtr& code() const { return narrow_.code(); }

 private:
  Problem problem_;
  KernelId id_;
  Target target_;
  Precompiled narrow_;
  std::optional<Precompiled> wide_;
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

KernelPtr kernel_of(const Problem& problem, KernelId id, Target target) {
  KernelCaches& caches = KernelCaches::instance();
  const bool is_ours = !is_emulated() && is_compiled_here(target);
  const std::string prefix = is_ours ? "+" : "", key = prefix + family_key(family_of(problem), id, target);
  const std::optional<std::string> name = caches.names.find(key);
  if (const auto found = name ? caches.kernels.find(*name) : std::nullopt) return *found;
  const KernelSource source = kernel_source(problem, id, target);
  caches.names.insert(key, prefix + source.name, source.name.size());
  if (const auto found = caches.kernels.find(prefix + source.name)) return *found;
  auto kernel = std::make_shared<Kernel>();
  kernel->text.name = source.name;
  if (is_emulated()) {
    kernel->text = source;
  } else if (is_ours) {
    kernel->precompiled = std::make_unique<PrecompiledKernel>(problem, id, target, source);
  } else {
    const auto names_of = [](const std::vector<ArraySpec>& arrays) {
      std::vector<std::string> names;
      for (const ArraySpec& array : arrays) names.push_back(array.name);
      return names;
    };
    const std::vector<std::string> inputs = names_of(source.inputs), outputs = names_of(source.outputs);
    kernel->function = target.platform == Platform::metal
                           ? mx::fast::metal_kernel(source.name, inputs, outputs, source.source, source.header, false)
                           : mx::fast::cuda_kernel(source.name, inputs, outputs, source.source, source.header, false,
                                                   source.dynamic_bytes);
  }
  caches.kernels.insert(prefix + source.name, kernel, source.header.size() + source.source.size());
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
  const Types outputs(launch.outputs);
  return kernel
      ->function(inputs, outputs.shapes, outputs.dtypes, triple(launch.grid), triple(launch.threadgroup), {},
                 std::nullopt, false, stream)
      .front()
      .primitive_ptr();
}

struct Step {
  Node node;  ///< empty: made of kernel and launch when the arrays are there
  KernelPtr kernel;
  KernelLaunch launch;
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
      Arrays from = select(step.inputs);
      Arrays to = select(step.outputs);
      const Node node = step.node ? step.node : step.kernel->precompiled->node(step.launch, from, stream());
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

/// The GPU whose kernels run on the emulator, if any do.
static std::optional<Target> emulated_target() {
#ifdef NATTEN_BUILD_EMULATOR
  const char* value = std::getenv("NATTEN_TEST_FAST_EMULATOR");
  const std::string name = value ? value : "";
  if (name == "metal") return Target{Platform::metal, Target::kOldestCapability, rounds_to_tf32()};
  if (name == "cuda") return Target{Platform::cuda, Target::kOldestCapability, rounds_to_tf32()};
  if (name == "hopper") return Target{Platform::cuda, 90, rounds_to_tf32()};
#endif
  return std::nullopt;
}

bool is_emulated() {
  return emulated_target().has_value();
}

Target target(mx::Device device) {
  if (const auto emulated = emulated_target()) return *emulated;
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
  std::vector<PreparedKernel> prepared;
  for (const Role role : {Role::forward, Role::backward}) {
    if (role != Role::forward && !gradients) continue;
    for (const KernelId id : kernels_of(problem, role)) {
      const KernelPtr kernel = kernel_of(problem, id, made_for);
      prepared.push_back({kernel->text.name, kernel->precompiled ? kernel->precompiled->code() : nullptr});
    }
  }
  return prepared;
}

CacheUsage kernel_cache_usage() {
  CacheUsage usage = KernelCaches::instance().kernels.usage();
  for (const CacheUsage& other : {KernelCaches::instance().names.usage(), plan_cache().usage()}) {
    usage.bytes += other.bytes;
    usage.limit += other.limit;
  }
  return usage;
}

void clear_kernel_cache() {
  KernelCaches::instance().names.clear();
  KernelCaches::instance().kernels.clear();
  plan_cache().clear();
}

Arrays run_kernels(const Call& call) {
  const Problem problem = nearest(call.problem);
  const Target made_for = target(call.stream.device);
  const std::vector<KernelId> ids = kernels_of(problem, call.role);
  std::vector<KernelLaunch> launches;
  for (const KernelId id : ids) launches.push_back(kernel_launch(problem, id, made_for));

  const auto name_in_text = [](Argument argument) { return std::string("na_") + name_of(argument); };
  std::vector<std::string> names;
  Arrays arrays;  // of the whole launch; outputs are placeholders
  const Arguments arguments = inputs_of(call.problem, call.role);
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const bool is_dense =  // as kernels take them: no copy is made of what is so already
        arguments[i] == Argument::rpb || arguments[i] == Argument::lengths || arguments[i] == Argument::lse;
    names.push_back(name_in_text(arguments[i]));
    arrays.push_back(is_dense ? mx::contiguous(call.inputs[i], false, call.stream) : call.inputs[i]);
  }
  // Results, what kernels hand on to each other, constants.
  const Arguments results = outputs_of(call.problem, call.role);
  std::vector<ArraySpec> outputs;
  for (const KernelLaunch& launch : launches) {
    outputs.insert(outputs.end(), launch.outputs.begin(), launch.outputs.end());
  }
  std::stable_partition(outputs.begin(), outputs.end(), [&](const ArraySpec& output) {
    return std::any_of(results.begin(), results.end(), [&](Argument a) { return name_in_text(a) == output.name; });
  });
  Arrays constants;
  const auto add_constant = [&](const auto* values, Array array) {
    outputs.push_back(spec_of(problem, array));
    constants.push_back(constant(values, outputs.back()));
  };
  const auto scale = static_cast<float>(problem.scale);
  add_constant(&scale, Array::scale);
  if (problem.spans) add_constant(span_numbers(problem).data(), Array::spans);
  Types types(outputs);
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    names.push_back(outputs[i].name);
    arrays.emplace_back(types.shapes[i], types.dtypes[i], nullptr, Arrays{});
  }
  const auto indices_of = [&](const std::vector<ArraySpec>& specs) {
    std::vector<int> indices;
    for (const ArraySpec& spec : specs) {
      const auto found = std::find(names.begin(), names.end(), spec.name);
      if (found == names.end()) throw std::logic_error("no array " + spec.name + " for a kernel");
      indices.push_back(static_cast<int>(found - names.begin()));
    }
    return indices;
  };
  std::vector<Step> steps;
  std::string name;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const KernelPtr kernel = kernel_of(problem, ids[i], made_for);
    name = kernel->text.name;
    Step step{nullptr, kernel, {}, indices_of(launches[i].inputs), indices_of(launches[i].outputs)};
    if (kernel->precompiled) {
      step.launch = std::move(launches[i]);
    } else {
      Arrays placeholders;
      for (const int index : step.inputs) placeholders.push_back(arrays[index]);
      step.node = node_of(kernel, launches[i], placeholders, call.stream);
    }
    steps.push_back(std::move(step));
  }
  Arrays made = mx::array::make_arrays(
      std::move(types.shapes), std::move(types.dtypes),
      std::make_shared<Launch>(call.stream, std::move(name), std::move(steps), std::move(constants)),
      Arrays(arrays.begin(), arrays.begin() + static_cast<std::ptrdiff_t>(arguments.size())));
  made.erase(made.begin() + static_cast<std::ptrdiff_t>(results.size()), made.end());
  return made;
}

}  // namespace natten::fast

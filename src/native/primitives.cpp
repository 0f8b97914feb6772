#include "native/primitives.h"

#include <cstdint>
#include <stdexcept>

#include "graph/dtype.h"
#include "graph/trace.h"
#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "native/cpu/dense_copy.h"
#include "native/cpu/kernels.h"
#include "native/cpu/tuning.h"
#include "native/result_memory.h"

namespace natten::cpu {
namespace {

using Arrays = std::vector<mx::array>;

constexpr const char* kNames[] = {"NattenAttention",
                                  "NattenAttentionBackwardQuery",
                                  "NattenAttentionBackwardKeyValue",
                                  "NattenAttentionBackward",
                                  "NattenQk",
                                  "NattenQkBackwardQuery",
                                  "NattenQkBackwardKey",
                                  "NattenAv",
                                  "NattenAvBackwardAttn",
                                  "NattenAvBackwardValue"};

// Blocks do not start at a cache line: large ones are shifted to one, which writing past the caches needs.
void allocate(mx::array& a) {
  constexpr std::size_t kLine = 64;
  const bool is_large = a.nbytes() >= static_cast<std::size_t>(tuning::kStreamBytes);
  mx::allocator::Data data = allocate_result(a.nbytes() + (is_large ? kLine : 0));
  const auto address = reinterpret_cast<std::uintptr_t>(data.buffer().raw_ptr());
  a.set_data(std::move(data));
  if (is_large && address % kLine != 0 && (kLine - address % kLine) % a.itemsize() == 0) {
    const mx::Strides strides = a.strides();
    a.copy_shared_buffer(a, strides, a.flags(), a.data_size(),
                         static_cast<std::int64_t>((kLine - address % kLine) / a.itemsize()));
  }
}

// Raw memory of a kernel's arguments: a task must not hold arrays.
struct Task {
  Kernel kernel;
  AttentionInputs inputs;
  SavedForward saved;
  Tensor x, y;  // what the split form reads besides, in the order of the primitive's inputs
  Tensor outputs[3];
  float* float_output = nullptr;  // lse or drpb
  std::vector<DenseCopy> copies;

  void run() const {
    for (const DenseCopy& copy : copies) copy.run();
    switch (kernel) {
      case Kernel::attention_forward:
        return attention_forward(inputs, outputs[0], float_output);
      case Kernel::attention_backward_query:
        return attention_backward_query(inputs, saved, outputs[0], float_output);
      case Kernel::attention_backward_key_value:
        return attention_backward_key_value(inputs, saved, outputs[0], outputs[1]);
      case Kernel::attention_backward:
        return attention_backward(inputs, saved, outputs[0], float_output, outputs[1], outputs[2]);
      case Kernel::qk:
        return qk(inputs, outputs[0]);
      case Kernel::qk_backward_query:
        return qk_backward_query(inputs, x, outputs[0], float_output);
      case Kernel::qk_backward_key:
        return qk_backward_key(inputs, x, outputs[0]);
      case Kernel::av:
        return av(inputs, x, outputs[0]);
      case Kernel::av_backward_attn:
        return av_backward_attn(inputs, y, outputs[0]);
      case Kernel::av_backward_value:
        return av_backward_value(inputs, x, y, outputs[0]);
    }
  }
};

// Hands out the inputs of a primitive one after the other, as raw memory.
class Reader {
 public:
  Reader(const Arrays& inputs, mx::cpu::CommandEncoder& encoder, std::vector<DenseCopy>& copies)
      : next_(inputs.begin()), encoder_(encoder), copies_(copies) {}

  /// [B, A0, A1, A2, H, C] read in place when its last axis is dense.
  Tensor tensor() {
    const mx::array& a = *next_++;
    Tensor tensor;
    tensor.type = float_type(a.dtype());
    const bool in_place = a.shape(5) == 1 || a.strides(5) == 1;
    tensor.data = in_place ? const_cast<char*>(a.data<char>()) : copy(a);
    for (int i = 4; i >= 0; --i) {
      tensor.strides[i] = in_place ? a.strides(i) : (i == 4 ? a.shape(5) : tensor.strides[i + 1] * a.shape(i + 1));
    }
    return tensor;
  }

  /// An array whose kernel expects it row-major.
  template <class T>
  T* dense() {
    const mx::array& a = *next_++;
    return a.flags().row_contiguous ? const_cast<T*>(a.data<T>()) : static_cast<T*>(copy(a));
  }

 private:
  void* copy(const mx::array& a) {
    mx::array dense(a.shape(), a.dtype(), nullptr, {});
    allocate(dense);
    encoder_.add_temporary(dense);
    copies_.push_back({a.data<char>(),
                       dense.data<char>(),
                       static_cast<std::int64_t>(a.itemsize()),
                       {a.shape().begin(), a.shape().end()},
                       {a.strides().begin(), a.strides().end()}});
    return dense.data<char>();
  }

  Arrays::const_iterator next_;
  mx::cpu::CommandEncoder& encoder_;
  std::vector<DenseCopy>& copies_;
};

class KernelPrimitive : public mx::Primitive {
 public:
  KernelPrimitive(mx::Stream s, Kernel kernel, const Problem& problem, std::vector<mx::Shape> input_shapes,
                  std::vector<mx::Shape> output_shapes)
      : Primitive(s),
        kernel_(kernel),
        problem_(problem),
        input_shapes_(std::move(input_shapes)),
        output_shapes_(std::move(output_shapes)) {}

  const char* name() const override { return kNames[static_cast<int>(kernel_)]; }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    for (mx::array& output : outputs) allocate(output);
    Task task{kernel_, {}, {}, {}, {}, {}, nullptr, {}};
    read(inputs, Reader(inputs, encoder, task.copies), task);
    int tensors = 0;
    for (mx::array& output : outputs) {
      if (output.ndim() == 6) {
        task.outputs[tensors++] = dense_tensor(output);
      } else {
        task.float_output = output.data<float>();
      }
    }
    encoder.dispatch([task = std::move(task)] { task.run(); });
  }

  void eval_gpu(const Arrays&, Arrays&) override {
    throw std::runtime_error("[natten] a CPU kernel was asked to run on a GPU stream");
  }

  bool is_equivalent(const Primitive& other) const override {
    const auto& o = static_cast<const KernelPrimitive&>(other);
    return kernel_ == o.kernel_ && problem_ == o.problem_ && input_shapes_ == o.input_shapes_;
  }

  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    check_replay(input_shapes_, inputs);
    return output_shapes_;
  }

 private:
  void read(const Arrays& inputs, Reader reader, Task& task) const {
    const bool is_attention = problem_.op == Op::attention;
    task.inputs.problem = problem_;
    if (problem_.op != Op::av) task.inputs.query = reader.tensor();
    if (problem_.op == Op::av) task.x = reader.tensor();
    if (problem_.op != Op::av) task.inputs.key = reader.tensor();
    if (problem_.op != Op::qk) task.inputs.value = reader.tensor();
    if (problem_.has_rpb) task.inputs.rpb = reader.dense<float>();
    if (problem_.has_lengths) task.inputs.lengths = reader.dense<std::int32_t>();
    const std::size_t first_saved =
        (is_attention ? 3 : 2) + (problem_.has_rpb ? 1 : 0) + (problem_.has_lengths ? 1 : 0);
    if (inputs.size() == first_saved) return;
    if (is_attention) {
      task.saved.out = reader.tensor();
      task.saved.lse = reader.dense<float>();
      task.saved.dout = reader.tensor();
      task.saved.dlse = reader.dense<float>();
    } else {
      (problem_.op == Op::av ? task.y : task.x) = reader.tensor();
    }
  }

  static Tensor dense_tensor(mx::array& a) {
    Tensor tensor;
    tensor.data = a.data<char>();
    tensor.type = float_type(a.dtype());
    std::int64_t stride = 1;
    for (int i = 5; i-- > 0;) tensor.strides[i] = stride *= a.shape(i + 1);
    return tensor;
  }

  Kernel kernel_;
  Problem problem_;
  std::vector<mx::Shape> input_shapes_;
  std::vector<mx::Shape> output_shapes_;
};

mx::Shape rows(const Problem& p, std::int64_t last) {
  mx::Shape shape{static_cast<int>(p.batch)};
  for (const Axis& axis : p.axes) shape.push_back(static_cast<int>(output_length(axis.length, axis.stride)));
  shape.push_back(static_cast<int>(p.heads));
  if (last >= 0) shape.push_back(static_cast<int>(last));
  return shape;
}

struct Outputs {
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
};

Outputs outputs_of(Kernel kernel, const Problem& p, const Arrays& inputs) {
  Outputs outputs;
  const auto add = [&](mx::Shape shape, mx::Dtype dtype) {
    outputs.shapes.push_back(std::move(shape));
    outputs.dtypes.push_back(dtype);
  };
  const auto like = [&](int i) { add(inputs[i].shape(), inputs[i].dtype()); };
  const mx::Dtype type = inputs[0].dtype();
  switch (kernel) {
    case Kernel::attention_forward:
      add(rows(p, p.value_dim), type);
      add(rows(p, -1), mx::float32);
      break;
    case Kernel::attention_backward_query:
    case Kernel::qk_backward_query:
      like(0);
      if (p.has_rpb) like(p.op == Op::attention ? 3 : 2);
      break;
    case Kernel::attention_backward_key_value:
      like(1);
      like(2);
      break;
    case Kernel::attention_backward:
      like(0);
      if (p.has_rpb) like(3);
      like(1);
      like(2);
      break;
    case Kernel::qk:
      add(rows(p, p.kernel_volume()), type);
      break;
    case Kernel::av:
      add(rows(p, p.value_dim), type);
      break;
    case Kernel::qk_backward_key:
    case Kernel::av_backward_value:
      like(1);
      break;
    case Kernel::av_backward_attn:
      like(0);
      break;
  }
  return outputs;
}

}  // namespace

std::vector<mx::array> run_kernel(Kernel kernel, const Problem& problem, std::vector<mx::array> inputs, mx::Stream s) {
  Outputs outputs = outputs_of(kernel, problem, inputs);
  std::vector<mx::Shape> input_shapes;
  for (const mx::array& input : inputs) input_shapes.push_back(input.shape());
  auto primitive = std::make_shared<KernelPrimitive>(s, kernel, problem, std::move(input_shapes), outputs.shapes);
  return mx::array::make_arrays(std::move(outputs.shapes), outputs.dtypes, primitive, inputs);
}

}  // namespace natten::cpu

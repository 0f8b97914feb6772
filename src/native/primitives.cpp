#include "native/primitives.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "graph/dtype.h"
#include "graph/trace.h"
#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/primitives.h"
#include "native/cpu/dense_copy.h"
#include "native/cpu/kernels.h"
#include "native/cpu/tuning.h"
#include "native/result_memory.h"
#include "ops/canonical.h"

namespace natten::cpu {

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

namespace {

constexpr const char* kNames[3][6] = {
    {"NattenAttention", "NattenAttentionBackwardQuery", "NattenAttentionBackwardKeyValue", "NattenAttentionBackward",
     "NattenAttentionBackwardExtra", "NattenAttentionBackwardAll"},
    {"NattenQk", "NattenQkBackwardQuery", "NattenQkBackwardKey", "NattenQkBackward"},
    {"NattenAv", "NattenAvBackwardAttn", "NattenAvBackwardValue", "NattenAvBackward"}};

// Raw memory of a kernel's arguments: what runs later must not hold arrays.
struct Launch {
  Role role;
  AttentionInputs inputs;
  SavedForward saved;
  Tensor x, y;  // what the split form reads besides, in the order of the primitive's inputs
  Tensor outputs[5];
  float* float_output = nullptr;  // lse or drpb
  std::vector<DenseCopy> copies;

  void run() const {
    for (const DenseCopy& copy : copies) copy.run();
    switch (inputs.problem.op) {
      case Op::attention:
        return run_attention();
      case Op::qk:
        if (role == Role::forward) return qk(inputs, outputs[0]);
        if (role == Role::backward_query) return qk_backward_query(inputs, x, outputs[0], float_output);
        return qk_backward_key(inputs, x, outputs[0]);
      case Op::av:
        if (role == Role::forward) return av(inputs, x, outputs[0]);
        if (role == Role::backward_query) return av_backward_attn(inputs, y, outputs[0]);
        return av_backward_value(inputs, x, y, outputs[0]);
    }
  }

 private:
  void run_attention() const {
    switch (role) {
      case Role::forward:
        return attention_forward(inputs, outputs[0], float_output);
      case Role::backward_query:
        return attention_backward(inputs, saved, {outputs[0], float_output});
      case Role::backward_key_value:
        return attention_backward(inputs, saved, {{}, nullptr, outputs[0], outputs[1]});
      case Role::backward:
        return attention_backward(inputs, saved, {outputs[0], float_output, outputs[1], outputs[2]});
      case Role::backward_all:
        return attention_backward(inputs, saved, {outputs[0], float_output, outputs[1], outputs[2], outputs + 3});
      case Role::backward_extra:
        break;  // declined
    }
  }
};

// [B, A0, A1, A2, H, C], row-major at `data`.
Tensor dense_tensor(const mx::array& a, void* data) {
  Tensor tensor;
  tensor.data = data;
  tensor.type = float_type(a.dtype());
  std::int64_t stride = 1;
  for (int i = 5; i-- > 0;) tensor.strides[i] = stride *= a.shape(i + 1);
  return tensor;
}

// Hands out the inputs of a primitive one after the other, as raw memory.
class Reader {
 public:
  Reader(const Arrays& inputs, mx::cpu::CommandEncoder& encoder, std::vector<DenseCopy>& copies)
      : next_(inputs.begin()), encoder_(encoder), copies_(copies) {}

  /// [B, A0, A1, A2, H, C] read in place when its last axis is dense; of keys in pieces also the two before.
  Tensor tensor(bool is_piece = false) {
    const mx::array& a = *next_++;
    const bool is_token_dense = a.strides(3) == std::int64_t{a.shape(4)} * a.shape(5);
    const bool in_place = a.size() == 0 || ((a.shape(5) == 1 || a.strides(5) == 1) && (!is_piece || is_token_dense));
    if (!in_place) return dense_tensor(a, copy(a));
    Tensor tensor = dense_tensor(a, const_cast<char*>(a.data<char>()));
    std::copy_n(a.strides().begin(), 5, tensor.strides);
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

Tensor::Piece piece_of(const Tensor& tensor) {
  Tensor::Piece piece{tensor.data, {}};
  std::copy_n(tensor.strides, 5, piece.strides);
  return piece;
}

// Puts what lies before and after into `middle`, which has its own rows.
void join(Tensor& middle, const Problem& p, const Tensor& before, const Tensor& after) {
  const KeyPieces& pieces = *p.pieces;
  middle.cut_axis = pieces.axis;
  middle.first = pieces.before;
  constexpr std::int64_t kNever = std::int64_t{1} << 60;  // no border where nothing lies behind it
  middle.end = pieces.after > 0 ? p.span(pieces.axis).key_rows - pieces.after : kNever;
  middle.before = piece_of(before);
  middle.after = piece_of(after);
}

class KernelPrimitive : public mx::Primitive {
 public:
  KernelPrimitive(mx::Stream s, Role role, const Problem& problem, std::vector<mx::Shape> input_shapes,
                  std::vector<mx::Shape> output_shapes)
      : Primitive(s),
        role_(role),
        problem_(problem),
        input_shapes_(std::move(input_shapes)),
        output_shapes_(std::move(output_shapes)) {}

  const char* name() const override { return kNames[static_cast<int>(problem_.op)][static_cast<int>(role_)]; }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    for (mx::array& output : outputs) allocate(output);
    Launch launch{role_, {}, {}, {}, {}, {}, nullptr, {}};
    read(Reader(inputs, encoder, launch.copies), launch);
    std::vector<Tensor> tensors;
    for (mx::array& output : outputs) {
      if (output.ndim() == 6) {
        tensors.push_back(dense_tensor(output, output.data<char>()));
      } else {
        launch.float_output = output.data<float>();
      }
    }
    const bool has_key_gradients = role_ == Role::backward_key_value || role_ == Role::backward;
    if (problem_.pieces && has_key_gradients) {
      Tensor* const key = &tensors.end()[-6];  // and value; those before, those after
      for (const int tensor : {0, 1}) join(key[tensor], problem_, key[tensor + 2], key[tensor + 4]);
      tensors.resize(tensors.size() - 4);
    }
    std::copy(tensors.begin(), tensors.end(), launch.outputs);
    encoder.dispatch([launch = std::move(launch)] { launch.run(); });
  }

  void eval_gpu(const Arrays&, Arrays&) override {
    throw std::runtime_error("[natten] a CPU kernel was asked to run on a GPU stream");
  }

  bool is_equivalent(const Primitive& other) const override {
    const auto& o = static_cast<const KernelPrimitive&>(other);
    return role_ == o.role_ && problem_ == o.problem_ && input_shapes_ == o.input_shapes_;
  }

  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    check_replay(input_shapes_, inputs);
    return output_shapes_;
  }

 private:
  void read(Reader reader, Launch& launch) const {
    AttentionInputs& inputs = launch.inputs;
    SavedForward& saved = launch.saved;
    std::array<Tensor, static_cast<int>(Argument::dlogits) + 1> tensors;
    const auto tensor = [&](Argument argument) -> Tensor& { return tensors[static_cast<int>(argument)]; };
    for (const Argument argument : inputs_of(problem_, role_)) {
      if (argument == Argument::rpb) {
        inputs.rpb = reader.dense<float>();
      } else if (argument == Argument::lengths) {
        inputs.lengths = reader.dense<std::int32_t>();
      } else if (argument == Argument::lse) {
        saved.lse = reader.dense<float>();
      } else if (argument == Argument::dlse) {
        saved.dlse = reader.dense<float>();
      } else {
        const bool is_of_keys = Argument::query < argument && argument < Argument::lengths;
        tensor(argument) = reader.tensor(problem_.pieces && is_of_keys);
      }
    }
    if (problem_.pieces) {
      join(tensor(Argument::key), problem_, tensor(Argument::key_before), tensor(Argument::key_after));
      join(tensor(Argument::value), problem_, tensor(Argument::value_before), tensor(Argument::value_after));
    }
    inputs.problem = problem_;
    inputs.query = tensor(Argument::query);
    inputs.key = tensor(Argument::key);
    inputs.value = tensor(Argument::value);
    inputs.extra_key = tensor(Argument::extra_key);
    inputs.extra_value = tensor(Argument::extra_value);
    saved.out = tensor(Argument::out);
    saved.dout = launch.y = tensor(Argument::dout);
    launch.x = tensor(problem_.op == Op::av ? Argument::attn : Argument::dlogits);
  }

  Role role_;
  Problem problem_;
  std::vector<mx::Shape> input_shapes_;
  std::vector<mx::Shape> output_shapes_;
};

}  // namespace

Arrays run_kernel(const Call& call) {
  const Problem& p = call.problem;
  const mx::Dtype type = call.inputs[0].dtype();
  std::vector<mx::Shape> input_shapes, shapes;
  std::vector<mx::Dtype> dtypes;
  for (const mx::array& input : call.inputs) input_shapes.push_back(input.shape());
  for (const Argument result : outputs_of(p, call.role)) {
    const bool is_result = call.role == Role::forward;
    shapes.push_back(!is_result                   ? call[primal_of(result)].shape()
                     : result == Argument::lse    ? query_grid(p, {p.heads})
                     : result == Argument::logits ? query_grid(p, {p.heads, p.kernel_volume()})
                                                  : query_grid(p, {p.heads, p.value_dim}));
    dtypes.push_back(!is_result ? call[primal_of(result)].dtype() : result == Argument::lse ? mx::float32 : type);
  }
  auto primitive = std::make_shared<KernelPrimitive>(call.stream, call.role, p, std::move(input_shapes), shapes);
  return mx::array::make_arrays(std::move(shapes), dtypes, primitive, call.inputs);
}

}  // namespace natten::cpu

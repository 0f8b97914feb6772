// A step of decoding as one primitive: new rows go into the ring, in place where nobody else has it, and are attended.
// What of the ring is written is known when the step runs, so that nothing has to be masked.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "graph/dtype.h"
#include "graph/pin.h"
#include "graph/trace.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/transforms.h"
#include "native/cpu/dense_copy.h"
#include "native/cpu/half.h"
#include "native/cpu/kernels.h"
#include "native/cpu/thread_pool.h"
#include "native/primitives.h"
#include "native/result_memory.h"

namespace natten::cpu {
namespace {

enum Input { kQuery, kKey, kValue, kKeys, kValues, kPosition };

// What follows the axes `from` on, as it lies in an array.
DenseCopy copy_of(const mx::array& a, int from) {
  return {a.data<char>(),
          nullptr,
          static_cast<std::int64_t>(a.itemsize()),
          {a.shape().begin() + from, a.shape().end()},
          {a.strides().begin() + from, a.strides().end()}};
}

// The new rows of key or value, and their ring.
struct Side {
  Side(const mx::array& rows, mx::array& ring_of_step, int rank)
      : batch_stride(rows.strides(0) * rows.itemsize()),
        row_stride(rows.strides(1) * rows.itemsize()),
        row(copy_of(rows, 2)),
        is_row_dense(row.is_dense()),
        ring(ring_of_step.data<char>()) {
    tensor.type = float_type(rows.dtype());
    // Not the ring's strides: those of axes of length 1 may be anything.
    std::int64_t stride = tensor.strides[4] = ring_of_step.shape(-1);
    stride *= ring_of_step.shape(-2);
    for (int i = rank - 1; i >= 0; --i) {
      tensor.strides[kAxes - rank + 1 + i] = stride;
      stride *= ring_of_step.shape(2 + i);
    }
    bytes = tensor.strides[kAxes - rank + 1] * row.element_size;
  }

  void copy_new(std::int64_t sample, std::int64_t at, char* to) const {
    const char* from = row.from + sample * batch_stride + at * row_stride;
    if (is_row_dense) {
      std::memcpy(to, from, bytes);
      return;
    }
    DenseCopy copy = row;
    copy.from = from;
    copy.to = to;
    copy.run();
  }

  std::int64_t elements(std::int64_t of_bytes) const { return of_bytes / row.element_size; }

  /// The ring from `data` on, samples `rows` rows apart.
  Tensor at(char* data, std::int64_t rows) const {
    Tensor result = tensor;
    result.data = data;
    result.strides[0] = elements(rows * bytes);
    return result;
  }

  std::int64_t batch_stride, row_stride;  ///< of the new rows, in bytes
  DenseCopy row;
  bool is_row_dense;
  std::int64_t bytes = 0;  ///< of a row
  char* ring;
  char* copied = nullptr;  ///< room for the new rows, where they don't lie as in a ring
  Tensor tensor;
};

// Raw memory: what runs later must not hold arrays.
struct Step {
  Problem problem;
  int first;  ///< the axis of the rows
  const std::int64_t* position;
  std::int64_t* next;
  Tensor query, out;
  Side keys, values;
  std::vector<DenseCopy> copies;
  float* lse;

  void run() const {
    for (const DenseCopy& copy : copies) copy.run();
    constexpr std::int64_t kMost = std::int64_t{1} << 62;  // a position that no step made must not lead out of the ring
    const std::int64_t rows = problem.span(first).query_rows, before = std::clamp<std::int64_t>(*position, 0, kMost);
    *next = before + rows;
    rows == 1 ? one(before) : several(before, rows);
  }

 private:
  std::int64_t kernel() const { return problem.axes[first].kernel_size; }
  std::int64_t dilation() const { return problem.axes[first].dilation; }

  /// Where the ring has a row.
  std::int64_t place(std::int64_t sample, std::int64_t row) const {
    return (sample * dilation() + row % dilation()) * kernel() + row / dilation() % kernel();
  }

  // Of queries `dilation` rows apart, in `groups` of which each begins a row after the one before.
  void attend(const Axis& axis, const AxisSpan& span, const Tensor& key, const Tensor& value, std::int64_t first_row,
              std::int64_t groups) const {
    const auto rows_of = [&](Tensor tensor) {
      std::int64_t& stride = tensor.strides[1 + first];
      const std::int64_t distance = first_row * stride * static_cast<std::int64_t>(element_size(tensor.type));
      tensor.data = static_cast<char*>(tensor.data) + distance;
      if (groups > 1) tensor.strides[first] = stride;
      stride *= dilation();
      return tensor;
    };
    AttentionInputs inputs{problem, rows_of(query), key, value, nullptr, nullptr};
    inputs.problem.axes[first] = axis;
    (*inputs.problem.spans)[first] = span;
    if (groups > 1) {
      inputs.problem.axes[first - 1] = {groups, 1, 1, 1, 1, false};
      (*inputs.problem.spans)[first - 1] = {0, groups, 0, groups};
    }
    attention_forward(inputs, rows_of(out), lse);
  }

  // All that is written of the row's group in the dilation, which softmax does not see the order of.
  void one(std::int64_t before) const {
    const std::int64_t written = std::min(before / dilation() + 1, kernel()), group = before % dilation();
    write(before, 0);
    const auto rows = [&](const Side& side) {
      return side.at(side.ring + group * kernel() * side.bytes, dilation() * kernel());
    };
    attend({written, written, 1, 1, 1, false}, {0, 1, 0, written}, rows(keys), rows(values), 0, 1);
  }

  // A group of the dilation is an axis of its own: what its windows reach of the ring, which ends where it began, and
  // the new rows are three pieces of it, read where they lie. Groups whose pieces have the same lengths are the
  // positions of an axis that is free, with windows of one.
  void several(std::int64_t before, std::int64_t rows) const {
    copy_new_rows(rows);
    const std::int64_t groups = std::min(dilation(), rows), longer = rows % dilation();
    for (std::int64_t row = 0, end; row < groups; row = end) {
      end = std::min(groups, row + dilation() - (before + row) % dilation());
      if (row < longer) end = std::min(end, longer);
      if (first == 0) end = row + 1;
      attend_groups(before, row, end - row, rows);
    }
    for (std::int64_t at = std::max<std::int64_t>(rows - kernel() * dilation(), 0); at < rows; ++at) write(before, at);
  }

  void write(std::int64_t before, std::int64_t at) const {
    for (const Side* side : {&keys, &values}) {
      for (std::int64_t b = 0; b < problem.batch; ++b) {
        side->copy_new(b, at, side->ring + place(b, before + at) * side->bytes);
      }
    }
  }

  void copy_new_rows(std::int64_t rows) const {
    for (const Side* side : {&keys, &values}) {
      if (side->copied == nullptr) continue;
      const double bytes = static_cast<double>(problem.batch * rows * side->bytes);
      parallel_for(problem.batch * rows, bytes, [&](std::int64_t i) {
        const std::int64_t at = i % rows;
        side->copy_new(i / rows, at, side->copied + (i - at + place_of_copy(at, rows)) * side->bytes);
      });
    }
  }

  // Groups of the dilation one after the other.
  std::int64_t place_of_copy(std::int64_t at, std::int64_t rows) const {
    const std::int64_t group = at % dilation();
    return group * (rows / dilation()) + std::min(group, rows % dilation()) + at / dilation();
  }

  // Those that begin with the rows from `first_row` on; in each a row is `dilation` rows after the one before.
  void attend_groups(std::int64_t before, std::int64_t first_row, std::int64_t groups, std::int64_t rows) const {
    const std::int64_t count = (rows - first_row + dilation() - 1) / dilation();
    const std::int64_t group = (before + first_row) % dilation(), place = (before + first_row) / dilation();
    const std::int64_t seen = std::min(place, kernel() - 1), start = (place - seen) % kernel();
    const std::int64_t to_end = std::min(seen, kernel() - start);  // of the ring
    const auto pieces = [&](const Side& side) {
      char* const ring = side.ring + group * kernel() * side.bytes;
      Tensor tensor = side.at(ring, dilation() * kernel());
      tensor.cut_axis = first;
      tensor.first = to_end;
      tensor.end = seen;
      if (groups > 1) tensor.strides[first] = side.elements(kernel() * side.bytes);
      const auto piece = [&](char* data, std::int64_t batch_step, std::int64_t group_step, std::int64_t step) {
        Tensor::Piece result{data, {}};
        std::copy(std::begin(tensor.strides), std::end(tensor.strides), result.strides);
        result.strides[0] = side.elements(batch_step);
        if (groups > 1) result.strides[first] = side.elements(group_step);
        result.strides[1 + first] = side.elements(step);
        return result;
      };
      const std::int64_t samples = dilation() * kernel() * side.bytes;
      tensor.before = piece(ring + start * side.bytes, samples, kernel() * side.bytes, side.bytes);
      tensor.after = side.copied != nullptr ? piece(side.copied + place_of_copy(first_row, rows) * side.bytes,
                                                    rows * side.bytes, count * side.bytes, side.bytes)
                                            : piece(const_cast<char*>(side.row.from) + first_row * side.row_stride,
                                                    side.batch_stride, side.row_stride, dilation() * side.row_stride);
      return tensor;
    };
    attend({seen + count, kernel(), 1, 1, 1, true}, {seen, count, 0, seen + count}, pieces(keys), pieces(values),
           first_row, groups);
  }
};

// Memory for a ring: of MLX itself, which the next step may change in place, unlike what allocate() gives. From the
// start of a cache line on, so that a load of 64 bytes meets one line instead of two.
void allocate_ring(mx::array& a) {
  constexpr std::size_t kLine = 64;
  a.set_data(allocate_owned(a.nbytes() + kLine));
  const std::size_t past = reinterpret_cast<std::uintptr_t>(a.data<char>()) % kLine;
  const mx::Strides strides = a.strides();
  a.copy_shared_buffer(a, strides, a.flags(), a.data_size(), (kLine - past) % kLine / a.itemsize());
}

class DecodingStep : public mx::Primitive {
 public:
  DecodingStep(const StepCall& call, std::vector<mx::Shape> outputs)
      : Primitive(call.stream), problem_(call.problem), composed_(call.composed), output_shapes_(std::move(outputs)) {
    for (const mx::array& input : call.inputs) input_shapes_.push_back(input.shape());
  }

  const char* name() const override { return "NattenDecodingStep:natten_mlx.exportable"; }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    // Every output holds the inputs until it is detached, which comes next: a ring that others do not have is changed
    // in place.
    for (mx::array& output : outputs) {
      if (&output.inputs() != &inputs && !output.is_tracer()) output.inputs().clear();
    }
    const int rank = problem_.rank;
    std::vector<DenseCopy> copies;
    const auto copied = [&](const mx::array& a, mx::array& to) {
      copies.push_back(copy_of(a, 0));
      copies.back().to = to.data<char>();
    };
    allocate(outputs[0]);
    for (const int ring : {kKeys, kValues}) {
      mx::array& to = outputs[ring - kKeys + 1];
      const mx::array& a = inputs[ring];
      if (a.is_donatable() && a.flags().row_contiguous) {
        to.copy_shared_buffer(a);
      } else {
        allocate_ring(to);
        copied(a, to);
      }
    }
    allocate(outputs[3]);
    const auto temporary = [&](mx::Shape shape, mx::Dtype type) {
      mx::array a(std::move(shape), type, nullptr, {});
      encoder.add_temporary(a);
      return a;
    };
    mx::array query = inputs[kQuery];
    if (query.strides(-1) != 1 && query.shape(-1) != 1) {
      query = temporary(query.shape(), query.dtype());
      allocate(query);
      copied(inputs[kQuery], query);
    }
    Step step{problem_,
              kAxes - rank,
              inputs[kPosition].data<std::int64_t>(),
              outputs[3].data<std::int64_t>(),
              tensor_of(query),
              tensor_of(outputs[0]),
              Side(inputs[kKey], outputs[1], rank),
              Side(inputs[kValue], outputs[2], rank),
              {},
              nullptr};
    const AxisSpan rows = problem_.span(kAxes - rank);
    if (rows.query_rows > 1) {
      // Along the last axis all pieces of a tensor must have the same distance of rows.
      const std::int64_t dilation = problem_.axes[kAxes - rank].dilation;
      for (const int input : {kKey, kValue}) {
        Side& side = input == kKey ? step.keys : step.values;
        const bool is_as_far = rank > 1 || side.row_stride * dilation == side.bytes || rows.query_rows <= dilation;
        if (side.is_row_dense && is_as_far) continue;
        mx::array copied = temporary(inputs[input].shape(), inputs[input].dtype());
        allocate(copied);
        side.copied = copied.data<char>();
      }
    }
    mx::Shape weights = outputs[0].shape();
    weights.back() = 1;
    mx::array lse = temporary(std::move(weights), mx::float32);
    allocate(lse);
    step.lse = lse.data<float>();
    step.copies = std::move(copies);
    encoder.dispatch([step = std::move(step)] { step.run(); });
  }

  void eval_gpu(const Arrays&, Arrays&) override {
    throw std::runtime_error("[natten] a CPU kernel was asked to run on a GPU stream");
  }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums, const Arrays&) override {
    const Arrays gradients =
        mx::vjp(of_floats(primals), floats(primals), {cotangents.begin(), cotangents.begin() + 3}).second;
    Arrays result;
    for (const int arg : argnums) {
      result.push_back(arg == kPosition ? mx::zeros_like(primals[arg], stream()) : gradients[arg]);
    }
    return result;
  }

  Arrays jvp(const Arrays& primals, const Arrays& tangents, const std::vector<int>& argnums) override {
    Arrays every;
    for (const mx::array& primal : floats(primals)) every.push_back(mx::zeros_like(primal, stream()));
    for (std::size_t i = 0; i < argnums.size(); ++i) {
      if (argnums[i] != kPosition) every[argnums[i]] = tangents[i];
    }
    Arrays result = mx::jvp(of_floats(primals), floats(primals), every).second;
    result.push_back(mx::zeros_like(primals[kPosition], stream()));
    return result;
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs, const std::vector<int>& axes) override {
    const mx::array rows(problem_.span(kAxes - problem_.rank).query_rows, mx::int64);
    Arrays result = mx::vmap(composed_, axes, {0, 0, 0})(with_fixed_position(inputs));
    result.push_back(mx::add(mapped_first(inputs, axes, stream())[kPosition], rows, stream()));
    return {result, {0, 0, 0, 0}};
  }

  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    check_replay(input_shapes_, inputs);
    return output_shapes_;
  }

 private:
  static Arrays floats(const Arrays& inputs) { return {inputs.begin(), inputs.begin() + kPosition}; }

  // The position is an output of the step before, so of what is differentiated; indices are made of it, through which
  // MLX differentiates nothing.
  Arrays with_fixed_position(Arrays inputs) {
    inputs[kPosition] = mx::stop_gradient(inputs[kPosition], stream());
    return inputs;
  }

  std::function<Arrays(const Arrays&)> of_floats(const Arrays& inputs) {
    return [composed = composed_, position = with_fixed_position(inputs)[kPosition]](Arrays x) {
      x.push_back(position);
      return composed(x);
    };
  }

  // [B, rows, grid..., H, C]
  Tensor tensor_of(mx::array& a) const {
    Tensor tensor;
    tensor.data = a.data<char>();
    tensor.type = float_type(a.dtype());
    tensor.strides[0] = a.strides(0);
    for (int i = 0; i <= problem_.rank; ++i) tensor.strides[kAxes - problem_.rank + 1 + i] = a.strides(1 + i);
    return tensor;
  }

  Problem problem_;
  std::function<Arrays(const Arrays&)> composed_;
  std::vector<mx::Shape> input_shapes_, output_shapes_;
};

}  // namespace

Arrays run_step(const StepCall& call) {
  const Problem& p = call.problem;
  const Arrays& inputs = call.inputs;
  mx::Shape out{static_cast<int>(p.batch)};
  for (int axis = kAxes - p.rank; axis < kAxes; ++axis) out.push_back(static_cast<int>(p.queries(axis)));
  out.push_back(static_cast<int>(p.heads));
  out.push_back(static_cast<int>(p.value_dim));
  const std::vector<mx::Shape> shapes{out, inputs[kKeys].shape(), inputs[kValues].shape(), {}};
  return mx::array::make_arrays(
      shapes, {inputs[kQuery].dtype(), inputs[kKeys].dtype(), inputs[kValues].dtype(), inputs[kPosition].dtype()},
      std::make_shared<DecodingStep>(call, shapes), inputs);
}

}  // namespace natten::cpu

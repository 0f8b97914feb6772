#include "distributed/add_rows.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "graph/pin.h"
#include "graph/trace.h"
#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"

namespace natten::distributed {

namespace {

using Arrays = std::vector<mx::array>;

// [outer, row] elements of `from`, added to rows that lie `step` elements apart.
template <class T>
void add_runs(T* to, const T* from, std::int64_t outer, std::int64_t row, std::int64_t step) {
  for (std::int64_t i = 0; i < outer; ++i, to += step, from += row) {
    for (std::int64_t j = 0; j < row; ++j) to[j] = to[j] + from[j];
  }
}

using Add = void (*)(char* to, const char* from, std::int64_t outer, std::int64_t row, std::int64_t step);

template <class T>
void add_bytes(char* to, const char* from, std::int64_t outer, std::int64_t row, std::int64_t step) {
  add_runs(reinterpret_cast<T*>(to), reinterpret_cast<const T*>(from), outer, row, step);
}

// Null for types that gradients do not have.
Add add_of(mx::Dtype type) {
  switch (type) {
    case mx::float32:
      return add_bytes<float>;
    case mx::float16:
      return add_bytes<mx::float16_t>;
    case mx::bfloat16:
      return add_bytes<mx::bfloat16_t>;
    case mx::float64:
      return add_bytes<double>;
    default:
      return nullptr;
  }
}

std::pair<mx::Shape, mx::Shape> bounds(const mx::array& a, int axis, const Rows& rows) {
  std::pair<mx::Shape, mx::Shape> result{mx::Shape(a.ndim(), 0), a.shape()};
  result.first[axis] = static_cast<int>(rows.first);
  result.second[axis] = static_cast<int>(rows.second);
  return result;
}

// Inputs: the sum, then the addends. Linear in all of them together.
class AddRows : public mx::Primitive {
 public:
  AddRows(mx::Stream s, int axis, std::vector<Rows> rows, const Arrays& inputs)
      : Primitive(s), axis_(axis), rows_(std::move(rows)) {
    for (const mx::array& input : inputs) input_shapes_.push_back(input.shape());
  }

  const char* name() const override { return "NattenAddRows"; }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    const mx::array& sum = inputs[0];
    mx::array& out = outputs[0];
    auto& encoder = mx::cpu::get_command_encoder(stream());
    if (sum.is_donatable()) {
      out.copy_shared_buffer(sum);
    } else {
      out.set_data(mx::allocator::malloc(out.nbytes()));
      encoder.dispatch([to = out.data<char>(), from = sum.data<char>(), bytes = out.nbytes()] {
        if (bytes > 0) std::memcpy(to, from, bytes);
      });
    }
    std::int64_t outer = 1, inner = 1;
    for (int i = 0; i < axis_; ++i) outer *= out.shape(i);
    for (int i = axis_ + 1; i < static_cast<int>(out.ndim()); ++i) inner *= out.shape(i);
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      encoder.dispatch([add = add_of(out.dtype()),
                        to = out.data<char>() + rows_[i].first * inner * static_cast<std::int64_t>(out.itemsize()),
                        from = inputs[1 + i].data<char>(), outer, row = (rows_[i].second - rows_[i].first) * inner,
                        step = out.shape(axis_) * inner] { add(to, from, outer, row, step); });
    }
  }

  void eval_gpu(const Arrays&, Arrays&) override {
    throw std::runtime_error("[natten.distributed] rows are added on a CPU stream");
  }

  Arrays vjp(const Arrays&, const Arrays& cotangents, const std::vector<int>& argnums, const Arrays&) override {
    Arrays result;
    for (const int arg : argnums) {
      if (arg == 0) {
        result.push_back(cotangents[0]);
        continue;
      }
      const auto [from, to] = bounds(cotangents[0], axis_, rows_[arg - 1]);
      result.push_back(mx::slice(cotangents[0], from, to, stream()));
    }
    return result;
  }

  Arrays jvp(const Arrays& primals, const Arrays& tangents, const std::vector<int>& argnums) override {
    Arrays all;
    for (const mx::array& primal : primals) all.push_back(mx::zeros_like(primal, stream()));
    for (std::size_t i = 0; i < argnums.size(); ++i) all[argnums[i]] = tangents[i];
    return {add_rows(all[0], {all.begin() + 1, all.end()}, rows_, axis_, stream())};
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs, const std::vector<int>& axes) override {
    const Arrays mapped = mapped_first(inputs, axes, stream());
    return {{add_rows(mapped[0], {mapped.begin() + 1, mapped.end()}, rows_, axis_ + 1, stream())}, {0}};
  }

  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    check_replay(input_shapes_, inputs);
    return {inputs[0].shape()};
  }

 private:
  int axis_;
  std::vector<Rows> rows_;
  std::vector<mx::Shape> input_shapes_;
};

}  // namespace

mx::array add_rows(const mx::array& sum, const Arrays& addends, const std::vector<Rows>& rows, int axis, mx::Stream s) {
  Arrays inputs{sum};
  std::vector<Rows> used;
  for (std::size_t i = 0; i < addends.size(); ++i) {
    if (addends[i].size() == 0) continue;
    inputs.push_back(addends[i]);
    used.push_back(rows[i]);
  }
  if (used.empty()) return sum;
  if (s.device != mx::Device::cpu || add_of(sum.dtype()) == nullptr) {
    for (std::size_t i = 0; i < used.size(); ++i) {
      const auto [from, to] = bounds(sum, axis, used[i]);
      inputs[0] = mx::slice_update_add(inputs[0], inputs[1 + i], from, to, s);
    }
    return inputs[0];
  }
  for (mx::array& input : inputs) input = mx::contiguous(mx::astype(input, sum.dtype(), s), false, s);
  return mx::array(sum.shape(), sum.dtype(), std::make_shared<AddRows>(s, axis, std::move(used), inputs), inputs);
}

}  // namespace natten::distributed

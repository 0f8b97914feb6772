#include "distributed/split.h"

#include <algorithm>
#include <cstdlib>

#include "distributed/add_rows.h"
#include "graph/pin.h"
#include "graph/trace.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"

namespace natten::distributed {

namespace {

using Arrays = std::vector<mx::array>;

mx::Shape part_shape(mx::Shape shape, int axis, const Rows& rows) {
  shape[axis] = static_cast<int>(rows.second - rows.first);
  return shape;
}

// Outputs: the tensors, then by part the tensors, then the anchor.
class Split : public mx::Primitive {
 public:
  Split(mx::Stream s, int axis, std::vector<Rows> parts, const Arrays& tensors)
      : Primitive(s), axis_(axis), parts_(std::move(parts)) {
    for (const mx::array& tensor : tensors) input_shapes_.push_back(tensor.shape());
  }

  const char* name() const override { return "NattenSplit"; }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override { share(inputs, outputs); }
  void eval_gpu(const Arrays& inputs, Arrays& outputs) override { share(inputs, outputs); }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums, const Arrays&) override {
    Arrays sums;
    for (const int arg : argnums) {
      Arrays addends;
      for (std::size_t part = 0; part < parts_.size(); ++part) {
        addends.push_back(cotangents[(1 + part) * primals.size() + arg]);
      }
      sums.push_back(add_rows(cotangents[arg], addends, parts_, axis_, stream()));
    }
    return pin(sums, {cotangents.back()}, stream());
  }

  Arrays jvp(const Arrays& primals, const Arrays& tangents, const std::vector<int>& argnums) override {
    Arrays all;
    for (const mx::array& primal : primals) all.push_back(mx::zeros_like(primal, stream()));
    for (std::size_t i = 0; i < argnums.size(); ++i) all[argnums[i]] = tangents[i];
    return flat(split(all, axis_, parts_, stream()));
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs, const std::vector<int>& axes) override {
    Views views = split(mapped_first(inputs, axes, stream()), axis_ + 1, parts_, stream());
    views.anchor = mx::broadcast_to(views.anchor, {views.whole[0].shape(0), 1}, stream());
    Arrays outputs = flat(views);
    return {outputs, std::vector<int>(outputs.size(), 0)};
  }

  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    check_replay(input_shapes_, inputs);
    return shapes(inputs, axis_, parts_);
  }

  static std::vector<mx::Shape> shapes(const Arrays& tensors, int axis, const std::vector<Rows>& parts) {
    std::vector<mx::Shape> result;
    for (const mx::array& tensor : tensors) result.push_back(tensor.shape());
    for (const Rows& rows : parts) {
      for (const mx::array& tensor : tensors) result.push_back(part_shape(tensor.shape(), axis, rows));
    }
    result.push_back({1});
    return result;
  }

 private:
  static Arrays flat(const Views& views) {
    Arrays all = views.whole;
    for (const Arrays& part : views.parts) all.insert(all.end(), part.begin(), part.end());
    all.push_back(views.anchor);
    return all;
  }

  void share(const Arrays& inputs, Arrays& outputs) const {
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      outputs[i].copy_shared_buffer(inputs[i]);
      for (std::size_t part = 0; part < parts_.size(); ++part) {
        view(inputs[i], axis_, parts_[part].first, outputs[(1 + part) * inputs.size() + i]);
      }
    }
    outputs.back().copy_shared_buffer(inputs[0], {1}, {true, true, true}, 1);
  }

  static void view(const mx::array& whole, int axis, std::int64_t first, mx::array& rows) {
    std::size_t extent = 1;
    for (int i = 0; i < static_cast<int>(whole.ndim()); ++i) {
      extent += static_cast<std::size_t>(std::max(rows.shape(i) - 1, 0) * std::abs(whole.strides(i)));
    }
    const bool is_empty = rows.size() == 0;
    const auto is_one = [](int length) { return length == 1; };
    const bool is_outermost = std::all_of(whole.shape().begin(), whole.shape().begin() + axis, is_one);
    const bool is_dense = is_empty || (is_outermost && whole.flags().row_contiguous);
    rows.copy_shared_buffer(whole, whole.strides(), {is_dense, is_dense, is_empty}, is_empty ? 0 : extent,
                            is_empty ? 0 : first * whole.strides(axis));
  }

  int axis_;
  std::vector<Rows> parts_;
  std::vector<mx::Shape> input_shapes_;
};

}  // namespace

Views split(const Arrays& tensors, int axis, const std::vector<Rows>& parts, mx::Stream s) {
  std::vector<mx::Dtype> types;
  for (std::size_t i = 0; i <= parts.size(); ++i) {
    for (const mx::array& tensor : tensors) types.push_back(tensor.dtype());
  }
  types.push_back(tensors[0].dtype());
  const Arrays outputs = mx::array::make_arrays(Split::shapes(tensors, axis, parts), types,
                                                std::make_shared<Split>(s, axis, parts, tensors), tensors);
  const auto count = static_cast<std::ptrdiff_t>(tensors.size());
  Views views{{outputs.begin(), outputs.begin() + count}, {}, outputs.back()};
  for (std::size_t part = 0; part < parts.size(); ++part) {
    const auto first = outputs.begin() + count * static_cast<std::ptrdiff_t>(1 + part);
    views.parts.emplace_back(first, first + count);
  }
  return views;
}

}  // namespace natten::distributed

#include "graph/slices.h"

#include <memory>
#include <utility>

#include "graph/exportable.h"
#include "graph/pin.h"
#include "graph/trace.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"

namespace natten {

namespace {

using Arrays = std::vector<mx::array>;

mx::Shape lengths_of(const mx::Shape& shape, const std::vector<int>& axes) {
  mx::Shape lengths;
  for (const int axis : axes) lengths.push_back(shape[axis]);
  return lengths;
}

mx::array example(const mx::array& x, int number, mx::Stream s) {
  mx::Shape start(x.ndim(), 0), stop = x.shape();
  start[0] = number;
  stop[0] = number + 1;
  return mx::squeeze(mx::slice(x, start, stop, s), 0, s);
}

// Of MLX's primitives it takes the evaluation. The last input is the start.
class RuntimeSlice : public mx::Primitive {
 public:
  RuntimeSlice(const mx::array& node, std::vector<int> axes, mx::Stream s)
      : Primitive(s), axes_(std::move(axes)), inner_(node.primitive_ptr()), shape_(node.shape()) {
    for (const mx::array& input : node.inputs()) input_shapes_.push_back(input.shape());
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override { inner_->eval_cpu(inputs, outputs); }
  void eval_gpu(const Arrays& inputs, Arrays& outputs) override { inner_->eval_gpu(inputs, outputs); }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs, const std::vector<int>& axes) override {
    const Arrays mapped = mapped_first(inputs, axes, stream());
    if (axes.back() < 0) {
      std::vector<int> behind = axes_;
      for (int& axis : behind) ++axis;
      Arrays all = mapped;
      all.back() = inputs.back();
      return {{again(all, behind)}, {0}};
    }
    Arrays parts;
    for (int i = 0; i < mapped.back().shape(0); ++i) {
      Arrays own;
      for (const mx::array& x : mapped) own.push_back(example(x, i, stream()));
      parts.push_back(again(own, axes_));
    }
    return {{mx::stack(parts, 0, stream())}, {0}};
  }

  bool is_equivalent(const Primitive& other) const override {
    const auto& o = static_cast<const RuntimeSlice&>(other);
    return axes_ == o.axes_ && shape_ == o.shape_ && input_shapes_ == o.input_shapes_;
  }

  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    check_replay(input_shapes_, inputs);
    return {shape_};
  }

 protected:
  // The same of other inputs, whose `axes` these are.
  virtual mx::array again(const Arrays& inputs, const std::vector<int>& axes) = 0;

  std::vector<int> axes_;
  std::shared_ptr<mx::Primitive> inner_;
  mx::Shape shape_;
  std::vector<mx::Shape> input_shapes_;
};

class SliceFrom : public RuntimeSlice {
 public:
  using RuntimeSlice::RuntimeSlice;

  const char* name() const override { return "NattenSlice:natten_mlx.exportable"; }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums, const Arrays&) override {
    Arrays result;
    for (const int arg : argnums) {
      const mx::array zeros = mx::zeros_like(primals[arg], stream());
      result.push_back(arg == 0 ? slice_updated(zeros, cotangents[0], primals[1], axes_, stream()) : zeros);
    }
    return result;
  }

  Arrays jvp(const Arrays& primals, const Arrays& tangents, const std::vector<int>& argnums) override {
    for (std::size_t i = 0; i < argnums.size(); ++i) {
      if (argnums[i] == 0) return {again({tangents[i], primals[1]}, axes_)};
    }
    return {mx::zeros(shape_, primals[0].dtype(), stream())};
  }

 private:
  mx::array again(const Arrays& inputs, const std::vector<int>& axes) override {
    return slice_from(inputs[0], inputs[1], axes, lengths_of(shape_, axes_), stream());
  }
};

class SliceUpdated : public RuntimeSlice {
 public:
  using RuntimeSlice::RuntimeSlice;

  const char* name() const override { return "NattenSliceUpdate:natten_mlx.exportable"; }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums, const Arrays&) override {
    const mx::array &update = primals[1], &start = primals[2], &cotangent = cotangents[0];
    Arrays result;
    for (const int arg : argnums) {
      if (arg == 1) {
        result.push_back(slice_from(cotangent, start, axes_, lengths_of(update.shape(), axes_), stream()));
      } else {
        result.push_back(arg == 0 ? again({cotangent, mx::zeros_like(update, stream()), start}, axes_)
                                  : mx::zeros_like(start, stream()));
      }
    }
    return result;
  }

  Arrays jvp(const Arrays& primals, const Arrays& tangents, const std::vector<int>& argnums) override {
    Arrays inputs{mx::zeros_like(primals[0], stream()), mx::zeros_like(primals[1], stream()), primals[2]};
    for (std::size_t i = 0; i < argnums.size(); ++i) {
      if (argnums[i] < 2) inputs[argnums[i]] = tangents[i];
    }
    return {again(inputs, axes_)};
  }

 private:
  mx::array again(const Arrays& inputs, const std::vector<int>& axes) override {
    return slice_updated(inputs[0], inputs[1], inputs[2], axes, stream());
  }
};

template <class Node>
mx::array with_node(const mx::array& x, const std::vector<int>& axes, mx::Stream s) {
  if (is_exporting()) return x;
  return mx::array(x.shape(), x.dtype(), std::make_shared<Node>(x, axes, s), x.inputs());
}

}  // namespace

mx::array slice_from(const mx::array& x, const mx::array& start, const std::vector<int>& axes, const mx::Shape& lengths,
                     mx::Stream s) {
  mx::Shape shape = x.shape();
  for (std::size_t i = 0; i < axes.size(); ++i) shape[axes[i]] = lengths[i];
  return with_node<SliceFrom>(mx::slice(x, start, axes, shape, s), axes, s);
}

mx::array slice_updated(const mx::array& x, const mx::array& update, const mx::array& start,
                        const std::vector<int>& axes, mx::Stream s) {
  return with_node<SliceUpdated>(mx::slice_update(x, update, start, axes, s), axes, s);
}

}  // namespace natten

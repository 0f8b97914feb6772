#include "graph/pin.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "graph/exportable.h"
#include "graph/trace.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"

namespace natten {

namespace {

using Arrays = std::vector<mx::array>;

// Inputs: the values, then the arrays they come after.
class Pin : public mx::Primitive {
 public:
  Pin(mx::Stream s, std::vector<mx::Shape> shapes) : Primitive(s), shapes_(std::move(shapes)) {}

  const char* name() const override { return "NattenPin:natten_mlx.exportable"; }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override { share(inputs, outputs); }
  void eval_gpu(const Arrays& inputs, Arrays& outputs) override { share(inputs, outputs); }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums, const Arrays&) override {
    Arrays result;
    for (int arg : argnums) {
      result.push_back(is_value(arg) ? cotangents[arg]
                                     : pin({mx::zeros_like(primals[arg], stream())}, cotangents, stream())[0]);
    }
    return result;
  }

  Arrays jvp(const Arrays& primals, const Arrays& tangents, const std::vector<int>& argnums) override {
    Arrays result;
    for (std::size_t i = 0; i < shapes_.size(); ++i) {
      const auto found = std::find(argnums.begin(), argnums.end(), static_cast<int>(i));
      result.push_back(found == argnums.end() ? mx::zeros_like(primals[i], stream())
                                              : tangents[found - argnums.begin()]);
    }
    Arrays after;
    for (std::size_t i = 0; i < argnums.size(); ++i) {
      if (!is_value(argnums[i])) after.push_back(tangents[i]);
    }
    return after.empty() ? result : pin(result, after, stream());
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs, const std::vector<int>& axes) override {
    const Arrays mapped = mapped_first(inputs, axes, stream());
    const auto split = mapped.begin() + shapes_.size();
    return {pin({mapped.begin(), split}, {split, mapped.end()}, stream()), std::vector<int>(shapes_.size(), 0)};
  }

  bool is_equivalent(const Primitive& other) const override {
    return may_merge(shapes_.size()) && shapes_ == static_cast<const Pin&>(other).shapes_;
  }

  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    check_replay(shapes_, inputs);
    return shapes_;
  }

 private:
  bool is_value(int arg) const { return arg < static_cast<int>(shapes_.size()); }

  static void share(const Arrays& inputs, Arrays& outputs) {
    for (std::size_t i = 0; i < outputs.size(); ++i) outputs[i].copy_shared_buffer(inputs[i]);
  }

  std::vector<mx::Shape> shapes_;
};

}  // namespace

Arrays pin(const Arrays& values, const Arrays& after, mx::Stream s) {
  if (is_exporting()) {
    check_export_has_shapes();
    return after.empty() ? values : mx::depends(values, after);
  }
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
  for (const mx::array& value : values) {
    shapes.push_back(value.shape());
    dtypes.push_back(value.dtype());
  }
  Arrays inputs = values;
  inputs.insert(inputs.end(), after.begin(), after.end());
  return mx::array::make_arrays(shapes, dtypes, std::make_shared<Pin>(s, shapes), inputs);
}

Arrays mapped_first(const Arrays& inputs, const std::vector<int>& axes, mx::Stream s) {
  int count = 1;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (axes[i] >= 0) count = inputs[i].shape(axes[i]);
  }
  Arrays result;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    mx::Shape shape = inputs[i].shape();
    shape.insert(shape.begin(), count);
    result.push_back(axes[i] >= 0 ? mx::moveaxis(inputs[i], axes[i], 0, s) : mx::broadcast_to(inputs[i], shape, s));
  }
  return result;
}

}  // namespace natten

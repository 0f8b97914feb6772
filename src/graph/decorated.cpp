#include "graph/decorated.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "graph/trace.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"

namespace natten {

namespace {

using Arrays = Rules::Arrays;

class Decorated : public mx::Primitive {
 public:
  Decorated(const mx::array& node, Rules rules, mx::Stream s)
      : Primitive(s), inner_(node.primitive_ptr()), rules_(std::move(rules)), shape_(node.shape()) {
    for (const mx::array& input : node.inputs()) input_shapes_.push_back(input.shape());
  }

  const char* name() const override { return rules_.name; }
  void eval_cpu(const Arrays& inputs, Arrays& outputs) override { inner_->eval_cpu(inputs, outputs); }
  void eval_gpu(const Arrays& inputs, Arrays& outputs) override { inner_->eval_gpu(inputs, outputs); }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums, const Arrays&) override {
    Arrays result;
    for (const int arg : argnums) {
      result.push_back(is_linear(arg) ? rules_.vjp(primals, cotangents[0], arg, stream())
                                      : mx::zeros_like(primals[arg], stream()));
    }
    return result;
  }

  Arrays jvp(const Arrays& primals, const Arrays& tangents, const std::vector<int>& argnums) override {
    Arrays inputs = primals;
    for (const int arg : rules_.linear) inputs[arg] = mx::zeros_like(primals[arg], stream());
    bool is_zero = true;
    for (std::size_t i = 0; i < argnums.size(); ++i) {
      if (!is_linear(argnums[i])) continue;
      inputs[argnums[i]] = tangents[i];
      is_zero = false;
    }
    return {is_zero ? mx::zeros(shape_, inputs[rules_.linear[0]].dtype(), stream()) : rules_.jvp(inputs, stream())};
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs, const std::vector<int>& axes) override {
    if (!rules_.vmap) return inner_->vmap(inputs, axes);
    const auto [output, axis] = rules_.vmap(inputs, axes, stream());
    return {{output}, {axis}};
  }

  bool is_equivalent(const Primitive& other) const override {
    const auto& o = static_cast<const Decorated&>(other);
    return std::strcmp(rules_.name, o.rules_.name) == 0 && rules_.axes == o.rules_.axes && shape_ == o.shape_ &&
           input_shapes_ == o.input_shapes_;
  }

  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    check_replay(input_shapes_, inputs);
    return {shape_};
  }

 private:
  bool is_linear(int arg) const {
    return std::find(rules_.linear.begin(), rules_.linear.end(), arg) != rules_.linear.end();
  }

  std::shared_ptr<mx::Primitive> inner_;
  Rules rules_;
  mx::Shape shape_;
  std::vector<mx::Shape> input_shapes_;
};

}  // namespace

mx::array decorated(const mx::array& node, Rules rules, mx::Stream s) {
  return mx::array(node.shape(), node.dtype(), std::make_shared<Decorated>(node, std::move(rules), s), node.inputs());
}

}  // namespace natten

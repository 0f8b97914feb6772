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
      result.push_back(is_argument(arg) ? rules_.vjp(primals, cotangents[0], stream())
                                        : mx::zeros_like(primals[arg], stream()));
    }
    return result;
  }

  Arrays jvp(const Arrays& primals, const Arrays& tangents, const std::vector<int>& argnums) override {
    const auto found = std::find_if(argnums.begin(), argnums.end(), [&](int arg) { return is_argument(arg); });
    if (found == argnums.end()) return {mx::zeros(shape_, primals[rules_.argument].dtype(), stream())};
    return {rules_.jvp(primals, tangents[found - argnums.begin()], stream())};
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs, const std::vector<int>& axes) override {
    if (!rules_.vmap) return inner_->vmap(inputs, axes);
    const auto [output, axis] = rules_.vmap(inputs, axes, stream());
    return {{output}, {axis}};
  }

  // All that a node depends on are its inputs.
  bool is_equivalent(const Primitive& other) const override {
    const auto& o = static_cast<const Decorated&>(other);
    return std::strcmp(rules_.name, o.rules_.name) == 0 && shape_ == o.shape_ && input_shapes_ == o.input_shapes_;
  }

  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    check_replay(input_shapes_, inputs);
    return {shape_};
  }

 private:
  bool is_argument(int arg) const { return arg == static_cast<int>(rules_.argument); }

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

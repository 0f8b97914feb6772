#include "ops/differentiable.h"

#include <algorithm>
#include <stdexcept>

#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/transforms.h"
#include "ops/fold.h"
#include "ops/validate.h"

namespace natten {

namespace {

// `function` of the inputs `argnums` alone, the others held.
std::function<Arrays(const Arrays&)> of_arguments(const std::function<Arrays(const Arrays&)>& function,
                                                  const Arrays& inputs, const std::vector<int>& argnums) {
  return [function, inputs, argnums](const Arrays& arguments) {
    Arrays all = inputs;
    for (std::size_t i = 0; i < argnums.size(); ++i) all[argnums[i]] = arguments[i];
    return function(all);
  };
}

Arrays select(const Arrays& arrays, const std::vector<int>& argnums) {
  Arrays selected;
  for (int arg : argnums) selected.push_back(arrays[arg]);
  return selected;
}

// Decorates the primitive of a tier. Evaluation is the inner primitive's.
class Differentiable : public mx::Primitive {
 public:
  Differentiable(mx::Stream s, std::shared_ptr<mx::Primitive> inner, Operation operation,
                 std::vector<mx::Shape> input_shapes, std::vector<mx::Shape> shapes)
      : Primitive(s),
        inner_(std::move(inner)),
        operation_(std::move(operation)),
        input_shapes_(std::move(input_shapes)),
        output_shapes_(std::move(shapes)) {}

  const char* name() const override { return operation_.name.c_str(); }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override { inner_->eval_cpu(inputs, outputs); }
  void eval_gpu(const Arrays& inputs, Arrays& outputs) override { inner_->eval_gpu(inputs, outputs); }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
             const Arrays& outputs) override {
    if (operation_.vjp) {
      return operation_.vjp(operation_.problem, primals, cotangents, argnums, outputs, stream());
    }
    return gradients(reference(), primals, argnums, cotangents);
  }

  Arrays jvp(const Arrays& primals, const Arrays& tangents, const std::vector<int>& argnums) override {
    return mx::jvp(of_arguments(reference(), primals, argnums), select(primals, argnums), tangents).second;
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs, const std::vector<int>& axes) override {
    return map_folded(operation_, inputs, axes, stream());
  }

  bool is_equivalent(const Primitive& other) const override {
    const auto& o = static_cast<const Differentiable&>(other);
    return operation_.name == o.operation_.name && operation_.problem == o.operation_.problem &&
           input_shapes_ == o.input_shapes_;
  }

  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i].shape() != input_shapes_[i]) {
        throw std::invalid_argument("[natten] a neighborhood attention traced with shape " +
                                    to_string(input_shapes_[i]) + " cannot be replayed with shape " +
                                    to_string(inputs[i].shape()) + ": compile it without shapeless=True");
      }
    }
    return output_shapes_;
  }

 private:
  std::function<Arrays(const Arrays&)> reference() {
    return [operation = operation_, s = stream()](const Arrays& inputs) {
      return operation.reference(operation.problem, inputs, s);
    };
  }

  std::shared_ptr<mx::Primitive> inner_;
  Operation operation_;
  std::vector<mx::Shape> input_shapes_;
  std::vector<mx::Shape> output_shapes_;
};

}  // namespace

Arrays gradients(const std::function<Arrays(const Arrays&)>& function, const Arrays& inputs,
                 const std::vector<int>& argnums, const Arrays& cotangents) {
  return mx::vjp(of_arguments(function, inputs, argnums), select(inputs, argnums), cotangents).second;
}

Arrays differentiable(const Operation& operation, const Arrays& inputs, mx::Stream s) {
  const Arrays inner = operation.run(operation.problem, inputs, s);
  const mx::array& first = inner.front();
  const bool is_one_primitive = first.has_primitive() && first.inputs().size() == inputs.size() &&
                                std::all_of(inner.begin(), inner.end(), [&](const mx::array& a) {
                                  return a.has_primitive() && a.primitive_id() == first.primitive_id();
                                });
  if (!is_one_primitive) {
    throw std::runtime_error("[natten] " + operation.name +
                             ": a tier must return the outputs of one primitive whose inputs are the arrays it got");
  }
  std::vector<mx::Shape> input_shapes, shapes;
  std::vector<mx::Dtype> dtypes;
  for (const mx::array& a : first.inputs()) input_shapes.push_back(a.shape());
  for (const mx::array& a : inner) {
    shapes.push_back(a.shape());
    dtypes.push_back(a.dtype());
  }
  return mx::array::make_arrays(
      shapes, dtypes,
      std::make_shared<Differentiable>(s, first.primitive_ptr(), operation, std::move(input_shapes), shapes),
      first.inputs());
}

}  // namespace natten

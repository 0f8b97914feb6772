#include "ops/differentiable.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "graph/trace.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/transforms.h"
#include "ops/fold.h"

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

std::function<Arrays(const Arrays&)> reference_of(const Operation& operation, mx::Stream s) {
  return [operation, s](const Arrays& inputs) { return operation.reference(operation.problem, inputs, s); };
}

Arrays cotangents_of(const Operation& operation, const Arrays& inputs, const Arrays& cotangents,
                     const std::vector<int>& argnums, const Arrays& outputs, mx::Stream s) {
  if (operation.vjp) return operation.vjp(operation.problem, inputs, cotangents, argnums, outputs, s);
  return gradients(reference_of(operation, s), inputs, argnums, cotangents);
}

Arrays tangents_of(const std::function<Arrays(const Arrays&)>& function, const Arrays& inputs, const Arrays& tangents,
                   const std::vector<int>& argnums) {
  return mx::jvp(of_arguments(function, inputs, argnums), select(inputs, argnums), tangents).second;
}

// Whether `a` is `input`, perhaps behind a change of layout.
bool is_layout_of(mx::array a, const mx::array& input) {
  while (a.id() != input.id()) {
    if (!a.has_primitive() || a.inputs().size() != 1) return false;
    a = mx::array(a.inputs()[0]);
  }
  return true;
}

// Whether `outputs` are those of one primitive whose inputs are `inputs`.
bool is_one_primitive(const Arrays& outputs, const Arrays& inputs) {
  const mx::array& first = outputs.front();
  return first.has_primitive() &&
         std::equal(first.inputs().begin(), first.inputs().end(), inputs.begin(), inputs.end(), is_layout_of) &&
         std::all_of(outputs.begin(), outputs.end(),
                     [&](const mx::array& a) { return a.has_primitive() && a.primitive_id() == first.primitive_id(); });
}

// Decorates the primitive of a tier. Evaluation is the inner primitive's.
class Differentiable : public mx::Primitive {
 public:
  Differentiable(mx::Stream s, std::shared_ptr<mx::Primitive> inner, Operation operation,
                 std::vector<mx::Shape> input_shapes, std::vector<mx::Shape> shapes)
      : Primitive(s),
        inner_(std::move(inner)),
        operation_(std::move(operation)),
        name_(operation_.name + ":natten_mlx.exportable"),
        input_shapes_(std::move(input_shapes)),
        output_shapes_(std::move(shapes)) {}

  const char* name() const override { return name_.c_str(); }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override { inner_->eval_cpu(inputs, outputs); }
  void eval_gpu(const Arrays& inputs, Arrays& outputs) override { inner_->eval_gpu(inputs, outputs); }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
             const Arrays& outputs) override {
    return cotangents_of(operation_, primals, results(cotangents), argnums, results(outputs), stream());
  }

  Arrays jvp(const Arrays& primals, const Arrays& tangents, const std::vector<int>& argnums) override {
    return tangents_of(reference_of(operation_, stream()), primals, tangents, argnums);
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
    check_replay(input_shapes_, inputs);
    return output_shapes_;
  }

 private:
  // Without the scratch that a tier's primitive hands on between its kernels.
  Arrays results(const Arrays& outputs) const {
    return {outputs.begin(), outputs.begin() + static_cast<std::ptrdiff_t>(operation_.outputs.size())};
  }

  std::shared_ptr<mx::Primitive> inner_;
  Operation operation_;
  std::string name_;
  std::vector<mx::Shape> input_shapes_;
  std::vector<mx::Shape> output_shapes_;
};

// What a tier composes of MLX operations (an external module in Python does) has no primitive to decorate. Its parts
// have a vmap, without which custom_function would not do. MLX refuses to compile it shapeless.
Arrays composed(const Operation& operation, const Arrays& inputs, mx::Stream s) {
  std::vector<int> every(inputs.size());
  std::iota(every.begin(), every.end(), 0);
  return mx::custom_function(
      [operation, s](const Arrays& a) { return operation.run(operation.problem, a, s); },
      [operation, every, s](const Arrays& primals, const Arrays& cotangents, const Arrays& outputs) {
        return cotangents_of(operation, primals, cotangents, every, outputs, s);
      },
      [operation, s](const Arrays& primals, const Arrays& tangents, const std::vector<int>& argnums) {
        return tangents_of(reference_of(operation, s), primals, tangents, argnums);
      },
      [operation, count = inputs.size(), s](const Arrays& a, const std::vector<int>& axes) {
        // After the inputs come what `run` made of them, which is not mapped but computed anew.
        return map_folded(operation, {a.begin(), a.begin() + count}, {axes.begin(), axes.begin() + count}, s);
      })(inputs);
}

}  // namespace

Arrays gradients(const std::function<Arrays(const Arrays&)>& function, const Arrays& inputs,
                 const std::vector<int>& argnums, const Arrays& cotangents) {
  return mx::vjp(of_arguments(function, inputs, argnums), select(inputs, argnums), cotangents).second;
}

Arrays differentiable(const Operation& operation, const Arrays& inputs, mx::Stream s) {
  const Arrays inner = operation.run(operation.problem, inputs, s);
  if (!is_one_primitive(inner, inputs)) return composed(operation, inputs, s);
  const mx::array& first = inner.front();
  std::vector<mx::Shape> input_shapes, shapes;
  std::vector<mx::Dtype> dtypes;
  for (const mx::array& a : first.inputs()) input_shapes.push_back(a.shape());
  for (const mx::array& a : first.outputs()) {  // `inner`, then scratch, which must live as long as the results
    shapes.push_back(a.shape());
    dtypes.push_back(a.dtype());
  }
  Arrays outputs = mx::array::make_arrays(
      shapes, dtypes,
      std::make_shared<Differentiable>(s, first.primitive_ptr(), operation, std::move(input_shapes), shapes),
      first.inputs());
  outputs.erase(outputs.begin() + static_cast<std::ptrdiff_t>(inner.size()), outputs.end());
  return outputs;
}

}  // namespace natten

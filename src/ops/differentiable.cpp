#include "ops/differentiable.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "graph/trace.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/transforms.h"
#include "ops/canonical.h"
#include "ops/fold.h"

namespace natten {

namespace {

using Function = std::function<Arrays(const Arrays&)>;

Arrays chosen(const Arrays& arrays, const std::vector<int>& argnums) {
  Arrays selected;
  for (int arg : argnums) selected.push_back(arrays[arg]);
  return selected;
}

// `function` of the inputs `argnums` alone, the others held.
Function of_arguments(const Function& function, const Arrays& inputs, const std::vector<int>& argnums) {
  return [function, inputs, argnums](const Arrays& arguments) {
    Arrays all = inputs;
    for (std::size_t i = 0; i < argnums.size(); ++i) all[argnums[i]] = arguments[i];
    return function(all);
  };
}

// Cotangents of the inputs `argnums`, as MLX differentiates `function`.
Arrays gradients(const Function& function, const Arrays& inputs, const std::vector<int>& argnums,
                 const Arrays& cotangents) {
  return mx::vjp(of_arguments(function, inputs, argnums), chosen(inputs, argnums), cotangents).second;
}

// The operation as MLX operations that can be differentiated. A backward is the reference's gradient, which depends on
// the saved results only through the inputs.
Arrays reference_of(const Operation& operation, const Arrays& inputs, mx::Stream s) {
  const auto forward = [&](const Arrays& a) {
    Problem problem = operation.problem;
    const Arrays whole = with_whole_keys(problem, a, s);
    problem.pieces.reset();
    return operation.reference->run({problem, Role::forward, whole, s});
  };
  if (operation.role == Role::forward) return forward(inputs);
  // The reference has this one by itself: differentiating its forward would attend every window again.
  if (operation.role == Role::backward_extra) {
    return operation.reference->run({operation.problem, operation.role, inputs, s});
  }
  const Arguments arguments = inputs_of(operation.problem, Role::forward);
  const auto cotangents = static_cast<std::ptrdiff_t>(outputs_of(operation.problem, Role::forward).size());
  std::vector<int> wanted;
  for (const Argument gradient : outputs_of(operation.problem, operation.role)) {
    const auto found = std::find(arguments.begin(), arguments.end(), primal_of(gradient));
    wanted.push_back(static_cast<int>(found - arguments.begin()));
  }
  return gradients(forward, {inputs.begin(), inputs.begin() + static_cast<std::ptrdiff_t>(arguments.size())}, wanted,
                   {inputs.end() - cotangents, inputs.end()});
}

Function reference_of(const Operation& operation, mx::Stream s) {
  return [operation, s](const Arrays& inputs) { return reference_of(operation, inputs, s); };
}

// The parts of a backward that the gradients of the inputs `wanted` need.
std::vector<Role> asked_roles(const Operation& forward, const Arguments& wanted) {
  const auto is_asked = [&](Role role) {
    const Arguments outputs = outputs_of(forward.problem, role);
    return std::any_of(outputs.begin(), outputs.end(), [&](Argument gradient) {
      return std::find(wanted.begin(), wanted.end(), primal_of(gradient)) != wanted.end();
    });
  };
  std::vector<Role> roles;
  for (const Role role : {Role::backward_query, Role::backward_key_value}) {
    if (is_asked(role)) roles.push_back(role);
  }
  const auto is_taken = [&](Role role) { return !forward.tier->supports(forward.problem, role); };
  if (is_asked(Role::backward_extra)) {
    if (!roles.empty() && is_taken(Role::backward_all)) return {Role::backward_all};
    roles.push_back(Role::backward_extra);
  }
  if (roles.size() >= 2 && roles[1] == Role::backward_key_value && is_taken(Role::backward)) {
    roles.erase(roles.begin());
    roles[0] = Role::backward;
  }
  return roles;
}

Arrays cotangents_of(const Operation& operation, const Arrays& inputs, const Arrays& cotangents,
                     const std::vector<int>& argnums, const Arrays& outputs, mx::Stream s) {
  if (operation.role != Role::forward) return gradients(reference_of(operation, s), inputs, argnums, cotangents);
  const Arguments arguments = inputs_of(operation.problem, Role::forward);
  Arguments wanted;
  for (int arg : argnums) wanted.push_back(arguments[arg]);
  Arrays all = inputs;
  if (operation.problem.op == Op::attention) all.insert(all.end(), outputs.begin(), outputs.end());
  all.insert(all.end(), cotangents.begin(), cotangents.end());

  std::vector<std::pair<Argument, mx::array>> found;
  for (const Role role : asked_roles(operation, wanted)) {
    const Operation backward{operation.tier, operation.reference, operation.problem, role};
    const bool has_kernel = !operation.tier->supports(operation.problem, role);
    const Arrays results = has_kernel ? run(backward, all, s) : reference_of(backward, all, s);
    const Arguments gradients = outputs_of(operation.problem, role);
    for (std::size_t i = 0; i < gradients.size(); ++i) found.emplace_back(primal_of(gradients[i]), results[i]);
  }
  Arrays result;
  for (std::size_t i = 0; i < argnums.size(); ++i) {  // lengths have none
    const auto gradient =
        std::find_if(found.begin(), found.end(), [&](const auto& entry) { return entry.first == wanted[i]; });
    result.push_back(gradient == found.end() ? mx::zeros_like(inputs[argnums[i]], s) : gradient->second);
  }
  return result;
}

Arrays tangents_of(const Operation& operation, const Arrays& inputs, const Arrays& tangents,
                   const std::vector<int>& argnums, mx::Stream s) {
  return mx::jvp(of_arguments(reference_of(operation, s), inputs, argnums), chosen(inputs, argnums), tangents).second;
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

std::string node_name(const Operation& operation) {
  const Op op = operation.problem.op;
  std::string name = operation.tier->name + (op == Op::attention ? "_attention" : op == Op::qk ? "_qk" : "_av");
  if (operation.role != Role::forward) name += "_backward";
  return name + ":natten_mlx.exportable";  // what mx.export_function says about it
}

// Decorates the primitive of a tier. Evaluation is the inner primitive's.
class Differentiable : public mx::Primitive {
 public:
  Differentiable(mx::Stream s, std::shared_ptr<mx::Primitive> inner, const Operation& operation, std::size_t results,
                 std::vector<mx::Shape> input_shapes, std::vector<mx::Shape> shapes)
      : Primitive(s),
        inner_(std::move(inner)),
        operation_(operation),
        name_(node_name(operation)),
        results_(static_cast<std::ptrdiff_t>(results)),
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
    return tangents_of(operation_, primals, tangents, argnums, stream());
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs, const std::vector<int>& axes) override {
    return map_folded(operation_, inputs, axes, stream());
  }

  bool is_equivalent(const Primitive& other) const override {
    const auto& o = static_cast<const Differentiable&>(other);
    return may_merge(output_shapes_.size()) && operation_.tier == o.operation_.tier &&
           operation_.problem == o.operation_.problem && operation_.role == o.operation_.role &&
           input_shapes_ == o.input_shapes_;
  }

  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    check_replay(input_shapes_, inputs);
    return output_shapes_;
  }

 private:
  // Without the scratch that a tier's primitive hands on between its kernels.
  Arrays results(const Arrays& outputs) const { return {outputs.begin(), outputs.begin() + results_}; }

  std::shared_ptr<mx::Primitive> inner_;
  Operation operation_;
  std::string name_;
  std::ptrdiff_t results_;
  std::vector<mx::Shape> input_shapes_;
  std::vector<mx::Shape> output_shapes_;
};

// What a tier composes of MLX operations (an external module in Python does) has no primitive to decorate. Its parts
// have a vmap, without which custom_function would not do. MLX refuses to compile it shapeless.
Arrays composed(const Operation& operation, const Arrays& inputs, const Arrays& results, mx::Stream s) {
  std::vector<int> every(inputs.size());
  std::iota(every.begin(), every.end(), 0);
  return mx::custom_function(
      [&](const Arrays&) { return results; },  // of these inputs
      [operation, every, s](const Arrays& primals, const Arrays& cotangents, const Arrays& outputs) {
        return cotangents_of(operation, primals, cotangents, every, outputs, s);
      },
      [operation, s](const Arrays& primals, const Arrays& tangents, const std::vector<int>& argnums) {
        return tangents_of(operation, primals, tangents, argnums, s);
      },
      [operation, count = inputs.size(), s](const Arrays& a, const std::vector<int>& axes) {
        // After the inputs come the results, which are not mapped but computed anew.
        return map_folded(operation, {a.begin(), a.begin() + count}, {axes.begin(), axes.begin() + count}, s);
      })(inputs);
}

}  // namespace

Arrays run(const Operation& operation, const Arrays& inputs, mx::Stream s) {
  const Arrays results = operation.tier->run({operation.problem, operation.role, inputs, s});
  if (operation.tier->differentiated_by_mlx) return results;
  if (!is_one_primitive(results, inputs)) return composed(operation, inputs, results, s);
  const mx::array& first = results.front();
  std::vector<mx::Shape> input_shapes, shapes;
  std::vector<mx::Dtype> dtypes;
  for (const mx::array& a : first.inputs()) input_shapes.push_back(a.shape());
  for (const mx::array& a : first.outputs()) {  // `results`, then scratch, which must live as long
    shapes.push_back(a.shape());
    dtypes.push_back(a.dtype());
  }
  Arrays outputs =
      mx::array::make_arrays(shapes, dtypes,
                             std::make_shared<Differentiable>(s, first.primitive_ptr(), operation, results.size(),
                                                              std::move(input_shapes), shapes),
                             first.inputs());
  outputs.erase(outputs.begin() + static_cast<std::ptrdiff_t>(results.size()), outputs.end());
  return outputs;
}

}  // namespace natten

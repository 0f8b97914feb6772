#include "ops/fold.h"

#include <algorithm>

#include "mlx/ops.h"

namespace natten {

namespace {

constexpr int kHeadAxis = 4;  // of Role::tokens

// Axis of `role` that a mapped axis joins; -1 where the array has none.
int joined_axis(Role role, bool into_heads) {
  if (role == Role::tokens) return into_heads ? kHeadAxis : 0;
  if (role == Role::bias) return into_heads ? 0 : -1;
  return into_heads ? -1 : 0;
}

// Adds the mapped axis (of size `count`) to `axis` as its outer part, repeating an array that is not mapped.
mx::array fold(const mx::array& x, int mapped, int axis, int count, mx::Stream s) {
  mx::array outer = mapped < 0 ? mx::expand_dims(x, axis, s) : mx::moveaxis(x, mapped, axis, s);
  if (mapped < 0) {
    mx::Shape shape = outer.shape();
    shape[axis] = count;
    outer = mx::broadcast_to(outer, shape, s);
  }
  return mx::flatten(outer, axis, axis + 1, s);
}

// Runs example by example, for what folds into neither batch nor heads: lengths and a bias mapped together.
std::pair<Arrays, std::vector<int>> map_unrolled(const Operation& operation, const Arrays& inputs,
                                                 const std::vector<int>& axes, int count, mx::Stream s) {
  std::vector<Arrays> results(operation.outputs.size());
  for (int example = 0; example < count; ++example) {
    Arrays slices;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      slices.push_back(axes[i] < 0 ? inputs[i] : mx::take(inputs[i], example, axes[i], s));
    }
    const Arrays outputs = differentiable(operation, slices, s);
    for (std::size_t i = 0; i < outputs.size(); ++i) results[i].push_back(outputs[i]);
  }
  Arrays stacked;
  for (const Arrays& result : results) stacked.push_back(mx::stack(result, 0, s));
  return {stacked, std::vector<int>(stacked.size(), 0)};
}

}  // namespace

std::pair<Arrays, std::vector<int>> map_folded(const Operation& operation, const Arrays& inputs,
                                               const std::vector<int>& axes, mx::Stream s) {
  int count = 1;
  bool maps_lengths = false, maps_bias = false;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (axes[i] < 0) continue;
    count = inputs[i].shape(axes[i]);
    maps_lengths = maps_lengths || operation.inputs[i] == Role::lengths;
    maps_bias = maps_bias || operation.inputs[i] == Role::bias;
  }
  const bool into_heads = maps_bias || std::count(operation.outputs.begin(), operation.outputs.end(), Role::bias) > 0;
  if (into_heads && maps_lengths) return map_unrolled(operation, inputs, axes, count, s);

  Operation folded = operation;
  if (into_heads) {
    folded.problem.heads *= count;
    folded.problem.kv_heads *= count;
  } else {
    folded.problem.batch *= count;
  }
  Arrays arrays;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const int axis = joined_axis(operation.inputs[i], into_heads);
    arrays.push_back(axis < 0 ? inputs[i] : fold(inputs[i], axes[i], axis, count, s));
  }
  Arrays outputs = differentiable(folded, arrays, s);
  std::vector<int> output_axes;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const int axis = joined_axis(operation.outputs[i], into_heads);
    outputs[i] = mx::unflatten(outputs[i], axis, {count, -1}, s);
    output_axes.push_back(axis);
  }
  return {outputs, output_axes};
}

}  // namespace natten

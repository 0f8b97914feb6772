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

// `count` examples as one call.
Problem folded(Problem problem, bool into_heads, std::int64_t count) {
  if (into_heads) {
    problem.heads *= count;
    problem.kv_heads *= count;
  } else {
    problem.batch *= count;
  }
  return problem;
}

// The most examples that the tier takes as one call; it takes one.
int largest_fold(const Operation& operation, bool into_heads, int count) {
  while (count > 1 && !operation.fits(folded(operation.problem, into_heads, count))) count = (count + 1) / 2;
  return count;
}

// All examples as one call; axes as in map_folded, the outputs' new axes in `output_axes`.
Arrays run_folded(Operation operation, bool into_heads, const Arrays& inputs, const std::vector<int>& axes, int count,
                  mx::Stream s) {
  operation.problem = folded(operation.problem, into_heads, count);
  Arrays arrays;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const int axis = joined_axis(operation.inputs[i], into_heads);
    arrays.push_back(axis < 0 ? inputs[i] : fold(inputs[i], axes[i], axis, count, s));
  }
  Arrays outputs = differentiable(operation, arrays, s);
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    outputs[i] = mx::unflatten(outputs[i], joined_axis(operation.outputs[i], into_heads), {count, -1}, s);
  }
  return outputs;
}

// Examples [first, last) of the mapped axis.
mx::array examples(const mx::array& x, int axis, int first, int last, mx::Stream s) {
  if (axis < 0) return x;
  mx::Shape start(x.ndim(), 0), stop = x.shape();
  start[axis] = first;
  stop[axis] = last;
  return mx::slice(x, start, stop, s);
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
  std::vector<int> output_axes;
  for (const Role role : operation.outputs) output_axes.push_back(joined_axis(role, into_heads));
  // Lengths and a bias mapped together fold into neither batch nor heads: example by example.
  const int step = into_heads && maps_lengths ? 1 : largest_fold(operation, into_heads, count);
  std::vector<Arrays> pieces(operation.outputs.size());
  for (int first = 0; first < count; first += step) {
    const int last = std::min(first + step, count);
    Arrays inputs_of_piece;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      inputs_of_piece.push_back(step < count ? examples(inputs[i], axes[i], first, last, s) : inputs[i]);
      if (axes[i] >= 0 && joined_axis(operation.inputs[i], into_heads) < 0) {
        inputs_of_piece[i] = mx::squeeze(inputs_of_piece[i], axes[i], s);
      }
    }
    const Arrays outputs = run_folded(operation, into_heads, inputs_of_piece, axes, last - first, s);
    for (std::size_t i = 0; i < outputs.size(); ++i) pieces[i].push_back(outputs[i]);
  }
  Arrays results;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    results.push_back(pieces[i].size() == 1 ? pieces[i][0] : mx::concatenate(pieces[i], output_axes[i], s));
  }
  return {results, output_axes};
}

}  // namespace natten

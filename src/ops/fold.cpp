#include "ops/fold.h"

#include <algorithm>

#include "mlx/ops.h"

namespace natten {

namespace {

// Axis of an array that a mapped axis joins; -1 where it has none. Tensors have the batch first and heads on axis 4, a
// bias has heads only, lengths the batch only.
int joined_axis(Argument argument, bool into_heads) {
  if (argument == Argument::lengths) return into_heads ? -1 : 0;
  if (argument == Argument::rpb || argument == Argument::drpb) return into_heads ? 0 : -1;
  return into_heads ? 4 : 0;
}

bool contains(const Arguments& arguments, Argument argument) {
  return std::find(arguments.begin(), arguments.end(), argument) != arguments.end();
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
  const auto fits = [&](int examples) {
    const Problem p = folded(operation.problem, into_heads, examples);
    return p.batch * std::max(p.query_tokens(), p.key_tokens()) <= kMaxTokens && !objection(*operation.tier, p);
  };
  while (count > 1 && !fits(count)) count = (count + 1) / 2;
  return count;
}

// All examples as one call; `axes` are those of the mapped axis, -1 where an input is not mapped.
Arrays run_folded(Operation operation, bool into_heads, const Arrays& inputs, const std::vector<int>& axes, int count,
                  mx::Stream s) {
  const Arguments arguments = inputs_of(operation.problem, operation.role);
  const Arguments results = outputs_of(operation.problem, operation.role);
  operation.problem = folded(operation.problem, into_heads, count);
  Arrays arrays;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const int axis = joined_axis(arguments[i], into_heads);
    arrays.push_back(axis < 0 ? inputs[i] : fold(inputs[i], axes[i], axis, count, s));
  }
  Arrays outputs = run(operation, arrays, s);
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    outputs[i] = mx::unflatten(outputs[i], joined_axis(results[i], into_heads), {count, -1}, s);
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
  const Arguments arguments = inputs_of(operation.problem, operation.role);
  const Arguments results = outputs_of(operation.problem, operation.role);
  int count = 1;
  Arguments mapped;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (axes[i] < 0) continue;
    count = inputs[i].shape(axes[i]);
    mapped.push_back(arguments[i]);
  }
  const bool into_heads = contains(mapped, Argument::rpb) || contains(results, Argument::drpb);
  std::vector<int> output_axes;
  for (const Argument result : results) output_axes.push_back(joined_axis(result, into_heads));
  // Lengths and a bias mapped together fold into neither batch nor heads: example by example.
  const bool one_by_one = into_heads && contains(mapped, Argument::lengths);
  const int step = one_by_one ? 1 : largest_fold(operation, into_heads, count);
  std::vector<Arrays> pieces(results.size());
  for (int first = 0; first < count; first += step) {
    const int last = std::min(first + step, count);
    Arrays part;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      part.push_back(step < count ? examples(inputs[i], axes[i], first, last, s) : inputs[i]);
      if (axes[i] >= 0 && joined_axis(arguments[i], into_heads) < 0) part[i] = mx::squeeze(part[i], axes[i], s);
    }
    const Arrays outputs = run_folded(operation, into_heads, part, axes, last - first, s);
    for (std::size_t i = 0; i < outputs.size(); ++i) pieces[i].push_back(outputs[i]);
  }
  Arrays joined;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    joined.push_back(pieces[i].size() == 1 ? pieces[i][0] : mx::concatenate(pieces[i], output_axes[i], s));
  }
  return {joined, output_axes};
}

}  // namespace natten

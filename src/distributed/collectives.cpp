#include "distributed/collectives.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "distributed/agreement.h"
#include "distributed/call.h"
#include "distributed/order.h"
#include "distributed/ring_collectives.h"
#include "distributed/slabs.h"
#include "graph/decorated.h"
#include "graph/pin.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"

namespace natten::distributed {

namespace {

// `communicate` of `x` in the order of the group.
template <class Function>
mx::array in_order(const mx::array& x, const Group& group, mx::Stream s, const Function& communicate) {
  const mx::array input = pin(Arrays{x}, previous(group, Arrays{x}), s)[0];
  const Arrays outputs = pin(Arrays{communicate(input), mx::zeros({1}, mx::float32, s)}, Arrays{}, s);
  set_previous(group, Arrays{x}, outputs[1]);
  return outputs[0];
}

mx::array summed(const mx::array& x, const Group& group, mx::Stream s) {
  return in_order(x, group, s, [&](const mx::array& input) { return all_sum(input, group, s); });
}

mx::array rows_of(const mx::array& x, int axis, std::int64_t start, std::int64_t rows, mx::Stream s) {
  mx::Shape from(x.ndim(), 0), to = x.shape();
  from[axis] = static_cast<int>(start);
  to[axis] = static_cast<int>(start + rows);
  return mx::slice(x, from, to, s);
}

// [rows, ...] of every rank below each other. Each rank's rows get the sum of all ranks' gradients of them.
mx::array gathered_slabs(const mx::array& x, const Group& group, mx::Stream s) {
  return in_order(x, group, s, [&](const mx::array& input) {
    const int rank = group.rank();
    const mx::array node = all_gather(mx::contiguous(input, false, s), group, s);
    Rules rules{"NattenGatherSlabs",
                [=](const Arrays& inputs, const mx::array& cotangent, int, mx::Stream stream) {
                  const std::int64_t rows = inputs[0].shape(0);
                  return rows_of(summed(cotangent, group, stream), 0, rank * rows, rows, stream);
                },
                [=](const Arrays& tangents, mx::Stream stream) { return gathered_slabs(tangents[0], group, stream); },
                [=](const Arrays& inputs, const std::vector<int>& axes, mx::Stream stream) {
                  return std::pair{gathered_slabs(mx::moveaxis(inputs[0], axes[0], 1, stream), group, stream), 1};
                }};
    return decorated(node, std::move(rules), node.primitive().stream());
  });
}

Caller caller_of(const mx::array& x, const char* name) {
  return {std::string("distributed.") + name, std::clamp(static_cast<int>(x.ndim()) - 1, 1, kAxes)};
}

int checked_axis(const Caller& caller, const mx::array& x, const SlabOptions& slabs) {
  if (x.ndim() < 2) fail(caller, "expected an array [B, spatial..., ...], got " + to_string(x.shape()));
  if (slabs.axis < 0 || slabs.axis + 1 >= static_cast<int>(x.ndim())) {
    fail(caller, "axis must count from the first spatial axis, 0 to " + std::to_string(x.ndim() - 2) + ", got " +
                     std::to_string(slabs.axis));
  }
  return array_axis(caller, slabs);
}

Group group_of(const std::optional<Group>& group) {
  return group ? *group : mx::distributed::init();
}

}  // namespace

mx::array shard(const Caller& caller, const mx::array& x, const SlabOptions& slabs, mx::StreamOrDevice stream) {
  const int axis = checked_axis(caller, x, slabs);
  const Group group = group_of(slabs.group);
  if (x.shape(axis) < group.size()) {
    fail(caller, "axis " + std::to_string(slabs.axis) + " must have a row for each of " + std::to_string(group.size()) +
                     " ranks, got " + std::to_string(x.shape(axis)));
  }
  const std::vector<std::int64_t> rows = slabs.rows ? *slabs.rows : equal_rows(x.shape(axis), group.size());
  if (static_cast<int>(rows.size()) != group.size() ||
      std::accumulate(rows.begin(), rows.end(), std::int64_t{0}) != x.shape(axis) ||
      *std::min_element(rows.begin(), rows.end()) < 1) {
    fail(caller, "rows must be at least 1 for each of " + std::to_string(group.size()) + " ranks, " +
                     std::to_string(x.shape(axis)) + " together");
  }
  if (group.size() == 1) return x;
  const std::int64_t start = std::accumulate(rows.begin(), rows.begin() + group.rank(), std::int64_t{0});
  return rows_of(x, axis, start, rows[group.rank()], mx::to_stream(stream));
}

mx::array gather(const Caller& caller, const mx::array& x, const SlabOptions& slabs, mx::StreamOrDevice stream) {
  const int axis = checked_axis(caller, x, slabs);
  const Group group = group_of(slabs.group);
  if (group.size() == 1 && !slabs.rows) return x;
  const mx::Stream s = mx::to_stream(stream);
  Arguments arguments;
  arguments.add("axis", {slabs.axis}, 1);
  arguments.add_array("x", x, axis);
  const std::vector<std::int64_t> rows =
      slabs.rows ? *slabs.rows : agree(caller, arguments, x.shape(axis), group, stream);
  if (static_cast<int>(rows.size()) != group.size() || rows[group.rank()] != x.shape(axis)) {
    fail(caller, "rows must be those of each of " + std::to_string(group.size()) + " ranks, " +
                     std::to_string(x.shape(axis)) + " on this one");
  }
  if (group.size() == 1) return x;
  const std::int64_t longest = *std::max_element(rows.begin(), rows.end());
  mx::array block = mx::moveaxis(x, axis, 0, s);
  if (x.shape(axis) < longest) {
    mx::Shape rest = block.shape();
    rest[0] = static_cast<int>(longest) - rest[0];
    block = mx::concatenate({block, mx::zeros(rest, x.dtype(), s)}, 0, s);
  }
  const mx::array all = gathered_slabs(block, group, s);
  Arrays parts;
  for (int rank = 0; rank < group.size(); ++rank) parts.push_back(rows_of(all, 0, rank * longest, rows[rank], s));
  return mx::moveaxis(mx::concatenate(parts, 0, s), 0, axis, s);
}

mx::array shard(const mx::array& x, const SlabOptions& slabs, mx::StreamOrDevice s) {
  return shard(caller_of(x, "shard"), x, slabs, s);
}

mx::array gather(const mx::array& x, const SlabOptions& slabs, mx::StreamOrDevice s) {
  return gather(caller_of(x, "gather"), x, slabs, s);
}

std::vector<mx::array> sum_over_ranks(const std::vector<mx::array>& arrays, const std::optional<Group>& given,
                                      mx::StreamOrDevice stream) {
  const Group group = group_of(given);
  if (group.size() == 1) return arrays;
  const mx::Stream s = mx::to_stream(stream);
  std::vector<mx::array> result = arrays;
  std::map<mx::Dtype::Val, std::vector<std::size_t>> by_type;
  for (std::size_t i = 0; i < arrays.size(); ++i) by_type[mx::Dtype::Val(arrays[i].dtype())].push_back(i);
  for (const auto& [type, members] : by_type) {
    Arrays flat;
    for (const std::size_t i : members) flat.push_back(mx::flatten(arrays[i], s));
    const mx::array sum = summed(mx::concatenate(flat, 0, s), group, s);
    std::int64_t start = 0;
    for (const std::size_t i : members) {
      result[i] =
          mx::reshape(rows_of(sum, 0, start, static_cast<std::int64_t>(arrays[i].size()), s), arrays[i].shape(), s);
      start += static_cast<std::int64_t>(arrays[i].size());
    }
  }
  return result;
}

}  // namespace natten::distributed

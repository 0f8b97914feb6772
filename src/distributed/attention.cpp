// The way of a spread call: agree on the arguments, plan, exchange the halo, attend, join.
#include <algorithm>
#include <numeric>

#include "api/entry.h"
#include "distributed/agreement.h"
#include "distributed/call.h"
#include "distributed/halo.h"
#include "graph/pin.h"
#include "mlx/distributed/distributed_impl.h"
#include "mlx/ops.h"

namespace natten::distributed {

namespace {

using Ints = std::vector<std::int64_t>;

template <class T>
Ints values_of(const PerAxis<T>& values) {
  Ints result;
  for (std::size_t i = 0; i < std::min<std::size_t>(values.size(), 3); ++i) {
    result.push_back(static_cast<std::int64_t>(values[i]));
  }
  return result;
}

Arguments arguments_of(const mx::array& query, const mx::array& key, const mx::array& value, const Neighborhood& n,
                       const AttentionOptions& options, const SlabOptions& slabs) {
  const int rank = static_cast<int>(query.ndim()) - 3;
  const int axis = 1 + (slabs.axis < 0 ? slabs.axis + rank : slabs.axis);
  const auto rows = [&](const mx::array& a) {
    return axis >= 0 && axis < static_cast<int>(a.ndim()) ? std::int64_t{a.shape(axis)} : std::int64_t{-1};
  };
  Arguments a;
  a.add("axis", {slabs.axis}, 1);
  a.add_array("query", query, axis);
  a.add_array("key", key, axis);
  a.add_array("value", value, axis);
  a.add("the rows that key and value have besides query's", {rows(key) - rows(query), rows(value) - rows(query)}, 2);
  a.add("kernel_size", values_of(n.kernel_size), 3);
  a.add("stride", values_of(n.stride), 3);
  a.add("dilation", values_of(n.dilation), 3);
  a.add("is_causal", values_of(n.is_causal), 3);
  a.add("gna_stride", values_of(n.gna_stride), 3);
  a.add("is_circular", values_of(n.is_circular), 3);
  // All options by name: a new one does not compile until it is decided how ranks agree on it.
  const auto& [scale, additional_keys, additional_values, rpb, lengths, stream, query_start, key_start, shape] =
      options;  // each rank's own: where its rows lie, which validation refuses, and how it runs
  const bool has_number = scale && !scale->array;
  a.add_number("scale", has_number ? std::optional(scale->number) : std::nullopt);
  a.add_array("scale", scale ? std::optional<Spec>(scale->array) : std::nullopt);
  a.add_array("additional_keys", additional_keys);
  a.add_array("additional_values", additional_values);
  a.add_array("rpb", rpb);
  a.add_array("lengths", lengths);
  a.add("overlap", slabs.overlap ? Ints{*slabs.overlap ? 1 : 0} : Ints{}, 1);
  return a;
}

mx::Shape with_rows(mx::Shape shape, int axis, std::int64_t rows) {
  shape[axis] = static_cast<int>(rows);
  return shape;
}

class SpreadCall {
 public:
  SpreadCall(const Caller& caller, const Neighborhood& neighborhood, const AttentionOptions& options,
             const SlabOptions& slabs, Group group, const Problem& problem, int axis, const Ints& rows)
      : caller_(caller),
        neighborhood_(neighborhood),
        options_(options),
        group_(std::move(group)),
        axis_(axis),
        slab_axis_{problem.axes[kAxes - problem.rank + axis - 1], problem.has_lengths},
        plan_(plan_slabs(slab_axis_, rows)),
        own_(plan_.slabs[group_.rank()]),
        stream_(mx::to_stream(options.stream)),
        link_(link_of(slabs)) {
    Ints lengths;
    for (int i = kAxes - problem.rank; i < kAxes; ++i) lengths.push_back(problem.axes[i].length);
    options_.shape = PerAxis<std::int64_t>(lengths);
    const bool can_overlap = plan_.left_border + plan_.right_border > 0;
    overlaps_ = can_overlap && slabs.overlap.value_or(link_ != stream_);
  }

  AttentionResult run(const mx::array& query, const mx::array& key, const mx::array& value) {
    const AttentionResult result = overlaps_ ? in_parts(query, key, value) : at_once(query, key, value);
    const Arrays tied = pin({result.out, result.lse}, {*done_}, stream_);
    return {tied[0], tied[1]};
  }

 private:
  mx::Stream link_of(const SlabOptions& slabs) const {
    const bool is_chosen = !std::holds_alternative<std::monostate>(slabs.communication_stream);
    const mx::Stream s = is_chosen ? mx::to_stream(slabs.communication_stream) : stream_;
    return group_.raw_group()->communication_stream(s);
  }

  Halo exchanged(const mx::array& key, const mx::array& value, std::vector<Rows> parts) {
    Halo halo = exchange_halo({key, value}, {plan_, axis_, group_, link_, std::move(parts)}, stream_);
    done_ = halo.done;
    return halo;
  }

  // Rows [start, start + rows) of the slab, with keys from the absolute position key_start on.
  AttentionOptions options_of(std::int64_t start, std::int64_t key_start) const {
    AttentionOptions options = options_;
    Ints query_starts(options.shape->size(), 0), key_starts = query_starts;
    query_starts[axis_ - 1] = own_.start + start;
    key_starts[axis_ - 1] = key_start;
    options.query_start = PerAxis<std::int64_t>(query_starts);
    options.key_start = PerAxis<std::int64_t>(key_starts);
    return options;
  }

  AttentionResult attend(const mx::array& query, std::int64_t start, const Arrays& keys, std::int64_t key_start) const {
    return natten::attention(caller_, query, keys[0], keys[1], neighborhood_, options_of(start, key_start));
  }

  // Pieces without rows too, so that all ranks build the same graph.
  Arrays joined(const std::vector<Arrays>& pieces) const {
    Arrays result;
    for (std::size_t tensor = 0; tensor < pieces[0].size(); ++tensor) {
      Arrays rows;
      for (const Arrays& piece : pieces) rows.push_back(piece[tensor]);
      result.push_back(mx::concatenate(rows, axis_, stream_));
    }
    return result;
  }

  AttentionResult at_once(const mx::array& query, const mx::array& key, const mx::array& value) {
    const Halo halo = exchanged(key, value, {});
    if (own_.outputs == 0) {  // the query stride leaves none on this rank
      mx::Shape shape = query.shape();
      for (int i = 1; i + 2 < static_cast<int>(query.ndim()); ++i) {
        const std::int64_t stride = neighborhood_.stride[i - 1];
        shape[i] = i == axis_ ? 0 : static_cast<int>(output_length<std::int64_t>(shape[i], stride));
      }
      mx::Shape lse(shape.begin(), shape.end() - 1);
      shape.back() = value.shape(-1);
      const mx::Dtype sums = query.dtype() == mx::float64 ? mx::float64 : mx::float32;
      return {mx::zeros(shape, query.dtype(), stream_), mx::zeros(lse, sums, stream_)};
    }
    if (plan_.hops.empty()) return attend(query, 0, halo.own, own_.start);
    return natten::attention(caller_, query, ApartKeys{halo.left, halo.own, halo.right, axis_}, neighborhood_,
                             options_of(0, own_.start - own_.left));
  }

  // What needs no halo first. The others come after it, so that one queue of a GPU does not wait for messages
  // meanwhile.
  AttentionResult in_parts(const mx::array& query, const mx::array& key, const mx::array& value) {
    const std::int64_t left = plan_.left_border, right = plan_.right_border, inner = own_.rows - right;
    const std::int64_t left_end = needed_keys(slab_axis_, own_.start, own_.start + left).end - own_.start;
    const std::int64_t right_start = needed_keys(slab_axis_, own_.start + inner, own_.end()).start - own_.start;
    const Rows left_rows{0, std::clamp<std::int64_t>(left_end, 0, own_.rows)};
    const Rows right_rows{std::clamp<std::int64_t>(right_start, 0, own_.rows), own_.rows};
    const Halo halo = exchanged(key, value, {left_rows, right_rows});
    const Arrays queries = mx::split(query, mx::Shape{static_cast<int>(left), static_cast<int>(inner)}, axis_, stream_);
    const AttentionResult interior = attend(queries[1], left, halo.own, own_.start);
    std::vector<Arrays> outs{{interior.out}}, lses{{interior.lse}};
    if (left > 0) {
      const Arrays keys = pin(joined({halo.left, halo.parts[0]}), {interior.lse}, stream_);
      const AttentionResult border = attend(queries[0], 0, keys, own_.start - own_.left);
      outs.insert(outs.begin(), {border.out});
      lses.insert(lses.begin(), {border.lse});
    }
    if (right > 0) {
      const Arrays keys = pin(joined({halo.parts[1], halo.right}), {interior.lse}, stream_);
      const AttentionResult border = attend(queries[2], inner, keys, own_.start + right_rows.first);
      outs.push_back({border.out});
      lses.push_back({border.lse});
    }
    return {joined(outs)[0], joined(lses)[0]};
  }

  const Caller& caller_;
  const Neighborhood& neighborhood_;
  AttentionOptions options_;
  Group group_;
  int axis_;  // of the arrays
  SlabAxis slab_axis_;
  SlabPlan plan_;
  Slab own_;
  mx::Stream stream_, link_;
  bool overlaps_ = false;
  std::optional<mx::array> done_;
};

Ints checked_rows(const Caller& caller, const SlabOptions& slabs, const Group& group, std::int64_t own) {
  const Ints& rows = *slabs.rows;
  if (static_cast<int>(rows.size()) != group.size()) {
    fail(caller, "rows must have one value for each of " + std::to_string(group.size()) + " ranks, got " +
                     std::to_string(rows.size()));
  }
  if (rows[group.rank()] != own) {
    fail(caller, "rows[" + std::to_string(group.rank()) + "]=" + std::to_string(rows[group.rank()]) +
                     " must be the rows of this rank's slab, " + std::to_string(own));
  }
  return rows;
}

}  // namespace

int array_axis(const Caller& caller, const SlabOptions& slabs) {
  if (slabs.axis < -caller.rank || slabs.axis >= caller.rank) {
    fail(caller, "axis must be a spatial axis from " + std::to_string(-caller.rank) + " to " +
                     std::to_string(caller.rank - 1) + ", got " + std::to_string(slabs.axis));
  }
  return 1 + (slabs.axis < 0 ? slabs.axis + caller.rank : slabs.axis);
}

AttentionResult attention(const Caller& caller, const mx::array& query, const mx::array& key, const mx::array& value,
                          const Neighborhood& neighborhood, const AttentionOptions& options, const SlabOptions& slabs) {
  const Group group = slabs.group ? *slabs.group : mx::distributed::init();
  const mx::StreamOrDevice link =
      std::holds_alternative<std::monostate>(slabs.communication_stream) ? options.stream : slabs.communication_stream;
  const bool has_rows =
      static_cast<int>(query.ndim()) == caller.rank + 3 && slabs.axis >= -caller.rank && slabs.axis < caller.rank;
  const std::int64_t own = has_rows ? query.shape(array_axis(caller, slabs)) : 0;
  if (group.size() == 1) {
    array_axis(caller, slabs);
    if (slabs.rows && has_rows) checked_rows(caller, slabs, group, own);
    return natten::attention(caller, query, key, value, neighborhood, options);
  }
  const Ints rows =
      slabs.rows ? checked_rows(caller, slabs, group, own)
                 : agree(caller, arguments_of(query, key, value, neighborhood, options, slabs), own, group, link);
  // From here on every rank sees the same.
  const int axis = array_axis(caller, slabs);
  const std::int64_t length = std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
  const auto whole = [&](const mx::array& a) {
    const bool has_axis = axis < static_cast<int>(a.ndim());
    return has_axis ? with_rows(a.shape(), axis, length + a.shape(axis) - own) : a.shape();
  };
  const mx::Shape shapes[] = {whole(query), whole(key), whole(value)};
  const Problem problem = validate_attention(caller, Spec(shapes[0], query.dtype()), Spec(shapes[1], key.dtype()),
                                             Spec(shapes[2], value.dtype()), neighborhood,
                                             given_of(options, mx::to_stream(options.stream).device));
  validate_additional(caller, problem, options.additional_keys, options.additional_values);
  if (problem.spans) fail(caller, "query_start, key_start and shape are those of the slab, and not given");
  const auto empty = std::find_if(rows.begin(), rows.end(), [](std::int64_t count) { return count < 1; });
  if (empty != rows.end()) {
    fail(caller, "every rank must hold at least one row of the axis, rank " + std::to_string(empty - rows.begin()) +
                     " holds " + std::to_string(*empty));
  }
  return SpreadCall(caller, neighborhood, options, slabs, group, problem, axis, rows).run(query, key, value);
}

AttentionResult attention(const mx::array& query, const mx::array& key, const mx::array& value,
                          const Neighborhood& neighborhood, const AttentionOptions& options, const SlabOptions& slabs) {
  const int rank = std::clamp(static_cast<int>(query.ndim()) - 3, 1, kAxes);
  return attention({"distributed.na" + std::to_string(rank) + "d", rank}, query, key, value, neighborhood, options,
                   slabs);
}

}  // namespace natten::distributed

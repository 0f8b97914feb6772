#include "ops/validate_axes.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "graph/trace.h"
#include "mlx/ops.h"

namespace natten {

namespace {

template <class T>
void check_count(const Caller& caller, const char* name, const PerAxis<T>& values) {
  if (!values.is_scalar() && static_cast<int>(values.size()) != caller.rank) {
    fail(caller, text(name, " must have length ", caller.rank, ", got ", values.size()));
  }
}

void check_positive(const Caller& caller, const char* name, const PerAxis<std::int64_t>& values) {
  check_count(caller, name, values);
  for (int axis = 0; axis < caller.rank; ++axis) {
    if (values[axis] < 1) fail(caller, text(name, " values must be positive, got ", values[axis]));
  }
}

void check_most(const Caller& caller, const char* name, int axis, std::int64_t value) {
  if (value > kMostPositions) fail(caller, text(name, "[", axis, "]=", value, " must be at most 2^60"));
}

std::string positions(std::int64_t start, std::int64_t rows) {
  return text(start, "..", start + rows - 1);
}

std::int64_t floored_multiple(std::int64_t value, std::int64_t of) {
  const std::int64_t rest = value % of;
  return value - (rest < 0 ? rest + of : rest);
}

// Tokens of the axis that windows of the span reach. Those of a circular axis with lengths are positions of the axis
// itself: all of them where a window goes around it.
Range<std::int64_t> keys_to_hold(const Axis& axis, const AxisSpan& span, bool has_lengths) {
  const Range<std::int64_t> needed = needed_keys(axis, span);
  const bool wraps = axis.is_circular && (needed.start < 0 || needed.end > axis.length);
  return wraps && has_lengths ? Range<std::int64_t>{0, axis.length} : needed;
}

[[noreturn]] void fail_keys(const Caller& caller, int axis, Range<std::int64_t> needed, const AxisSpan& span,
                            const std::string& of = "") {
  fail(caller, text("keys of axis ", axis, " must hold positions ", positions(needed.start, needed.end - needed.start),
                    " of the window's queries", of, ", got ", positions(span.key_start, span.key_rows)));
}

bool holds(const AxisSpan& span, Range<std::int64_t> needed) {
  return needed.start >= needed.end || (span.key_start <= needed.start && needed.end <= span.key_start + span.key_rows);
}

// Turns key_start by whole lengths until the rows hold the unwrapped positions of every window, if all of the axis is
// not there; else to where a window's key is at most one length away from its row.
void unwrap_keys(const Caller& caller, int axis, const Axis& a, AxisSpan& span) {
  const Range<std::int64_t> needed = needed_keys(a, span);
  AxisSpan turned = span;
  turned.key_start += floored_multiple(needed.start - span.key_start, a.length);
  if (!holds(turned, needed)) {
    if (span.key_rows < a.length) fail_keys(caller, axis, needed, span);
    turned.key_start = span.key_start - floored_multiple(span.key_start + a.length / 2, a.length);
  }
  span = turned;
}

void check_span(const Caller& caller, int axis, const Axis& a, bool has_lengths, AxisSpan& span) {
  validate_positions(caller, "queries", axis, span.query_start, span.query_rows, a.length);
  if (!a.is_circular || has_lengths) {
    validate_positions(caller, "keys", axis, span.key_start, span.key_rows, a.length);
    if (!has_lengths && !holds(span, needed_keys(a, span))) fail_keys(caller, axis, needed_keys(a, span), span);
    return;
  }
  if (span.key_start < -a.length || span.key_start >= a.length || span.key_rows > a.length) {
    fail(caller,
         text("keys of circular axis ", axis, " must start at a position from ", -a.length, " to ", a.length - 1,
              " and have at most ", a.length, " rows, got ", positions(span.key_start, span.key_rows)));
  }
  unwrap_keys(caller, axis, a, span);
}

// `where` names the length.
void check_length(const Caller& caller, const Axis& a, std::int64_t length, const std::string& where,
                  const std::string& longest) {
  const std::int64_t least = least_length(a);
  if (length < least) {
    fail(caller, text(where, " must be >= ", a.is_causal ? "" : "kernel_size * dilation = ", least));
  }
  if (length > a.length) fail(caller, text(where, " must be <= ", longest, " = ", a.length));
  if (!a.is_circular) return;
  if (length % a.dilation != 0 || length / a.dilation % a.gna_stride != 0) {
    fail(caller, text(where, " must be a multiple of dilation * gna_stride = ", a.dilation * a.gna_stride,
                      " on a circular axis"));
  }
}

}  // namespace

void check_placement(const Caller& caller, const Placement& placement) {
  check_count(caller, "query_start", placement.query_start);
  check_count(caller, "key_start", placement.key_start);
  if (placement.shape) validate_lengths(caller, "shape", *placement.shape);
}

bool is_whole(const Caller& caller, const Placement& placement) {
  if (placement.shape) return false;
  for (int axis = 0; axis < caller.rank; ++axis) {
    if (placement.query_start[axis] != 0 || placement.key_start[axis] != 0) return false;
  }
  return true;
}

void set_axes(const Caller& caller, const mx::Shape& shape, const Neighborhood& neighborhood,
              const Placement& placement, Problem& problem) {
  validate_neighborhood(caller, neighborhood);
  problem.rank = caller.rank;
  const int leading = kAxes - caller.rank;
  for (int axis = 0; axis < leading; ++axis) problem.axes[axis] = Axis{1, 1, 1, 1, 1, false};
  for (int axis = 0; axis < caller.rank; ++axis) {
    const std::int64_t length = placement.shape ? (*placement.shape)[axis] : shape[axis + 1];
    problem.axes[leading + axis] = validate_axis(caller, axis, length, neighborhood);
  }
}

Rows rows_of(const Caller& caller, const mx::Shape& shape) {
  Rows rows{};
  std::copy_n(shape.begin() + 1, caller.rank, rows.begin());
  return rows;
}

void set_spans(const Caller& caller, const Placement& placement, const Rows& query, const Rows& key, bool has_lengths,
               Problem& problem) {
  std::array<AxisSpan, kAxes> spans;
  bool is_partial = false;
  for (int axis = 0; axis < caller.rank; ++axis) {
    const int at = kAxes - caller.rank + axis;
    spans[at] = {placement.query_start[axis], query[axis], placement.key_start[axis], key[axis]};
    check_span(caller, axis, problem.axes[at], has_lengths, spans[at]);
    is_partial |= spans[at] != whole(problem.axes[at]);
  }
  if (is_partial) problem.spans = spans;
}

void shorten_causal_windows(Problem& problem) {
  if (problem.op != Op::attention || problem.has_rpb) return;
  for (int axis = 0; axis < kAxes; ++axis) {
    Axis& a = problem.axes[axis];
    if (!a.is_causal) continue;
    const std::int64_t places = group_length(problem.span(axis).key_rows, a.dilation, std::int64_t{0});
    const auto most = static_cast<std::uint64_t>(std::max(places + a.gna_stride, a.stride));
    // Odd stays odd: CPU kernels sum every second slot of a row of keys apart, and a span has the bits of the whole.
    const auto shortened = static_cast<std::int64_t>(std::bit_ceil(most));
    a.kernel_size = std::min(a.kernel_size, shortened + (shortened + a.kernel_size) % 2);
  }
}

void shorten_dilations(Problem& problem) {
  for (int axis = 0; axis < kAxes; ++axis) {
    Axis& a = problem.axes[axis];
    if (a.kernel_size == 1 && (a.is_causal || !problem.has_lengths)) a.dilation = 1;
    if (!a.is_causal) continue;
    const AxisSpan span = problem.span(axis);
    std::int64_t end = std::max(span.query_start + span.query_rows, span.key_start + span.key_rows);
    if (a.dilation < end) continue;
    if (problem.spans && !problem.has_lengths) {  // the same anywhere, as each window holds its query only
      std::int64_t shift = std::min(span.query_start, span.key_start);
      shift -= shift % a.stride;
      (*problem.spans)[axis].query_start -= shift;
      (*problem.spans)[axis].key_start -= shift;
      end -= shift;
    }
    a.dilation = std::min(a.dilation, static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(end))));
  }
}

void set_lengths(const Caller& caller, const std::optional<Spec>& lengths, Problem& problem) {
  if (!lengths) return;
  const std::string& name = caller.lengths_name;
  if (lengths->dtype != mx::int32 && lengths->dtype != mx::int64) {
    fail(caller, text(name, " must be int32 or int64, got ", to_string(lengths->dtype)));
  }
  const mx::Shape& shape = lengths->shape;
  const bool is_vector = shape.size() == 1 && caller.rank == 1;
  const bool is_table = shape.size() == 2 && shape[1] == caller.rank;
  if (!(is_vector || is_table) || shape[0] != problem.batch) {
    fail(caller, text(name, " must have shape [", problem.batch, caller.rank == 1 ? "]" : text(", ", caller.rank, "]"),
                      ", got ", to_string(shape)));
  }
  for (int axis = 0; axis < caller.rank; ++axis) {
    const std::int64_t most = std::numeric_limits<std::int32_t>::max();
    const std::int64_t length = problem.axes[kAxes - caller.rank + axis].length;
    if (length > most) fail(caller, text("with ", name, " shape[", axis, "] must be below 2^31, got ", length));
  }
  problem.has_lengths = true;
}

Rows query_rows_of_attn(const Caller& caller, const mx::Shape& attn, const mx::Shape& value, const Placement& placement,
                        const Problem& problem) {
  Rows rows{};
  for (int axis = 0; axis < caller.rank; ++axis) {
    const Axis& a = problem.axes[kAxes - caller.rank + axis];
    const std::int64_t start = placement.query_start[axis], count = attn[axis + 1];
    validate_positions(caller, "queries", axis, start, 0, a.length);
    const std::int64_t first = query_index(a, start), most = query_index(a, a.length) - first;
    const bool is_whole_call = is_whole(caller, placement);
    if (is_whole_call ? count != most : count > most) {
      fail(caller, text("Spatial dimensions must match: attn ", to_string(attn), " for value ", to_string(value),
                        ", expected ", is_whole_call ? "ceil(L / stride)" : text("at most ", most), " queries on ",
                        is_whole_call ? "each axis" : text("axis ", axis)));
    }
    const std::int64_t last = (first + count - 1) * a.stride;
    rows[axis] = count == 0 ? 0 : count == most ? a.length - start : last + 1 - start;
  }
  return rows;
}

void validate_neighborhood(const Caller& caller, const Neighborhood& neighborhood) {
  check_positive(caller, "kernel_size", neighborhood.kernel_size);
  check_positive(caller, "stride", neighborhood.stride);
  check_positive(caller, "dilation", neighborhood.dilation);
  check_positive(caller, "gna_stride", neighborhood.gna_stride);
  check_count(caller, "is_causal", neighborhood.is_causal);
  check_count(caller, "is_circular", neighborhood.is_circular);
  for (int axis = 0; axis < caller.rank; ++axis) {
    const std::int64_t kernel_size = neighborhood.kernel_size[axis];
    const std::int64_t stride = neighborhood.stride[axis], gna_stride = neighborhood.gna_stride[axis];
    for (const auto& [name, value] : {std::pair("stride", stride), std::pair("gna_stride", gna_stride)}) {
      if (value > kernel_size) {
        fail(caller, text(name, "[", axis, "]=", value, " must be <= kernel_size[", axis, "]=", kernel_size));
      }
    }
    if (stride > 1 && gna_stride > 1) {
      fail(caller,
           text("stride[", axis, "]=", stride, " and gna_stride[", axis, "]=", gna_stride, " must not both exceed 1"));
    }
    if (neighborhood.is_causal[axis] && neighborhood.is_circular[axis]) {
      fail(caller, text("is_causal[", axis, "] and is_circular[", axis, "] must not both be true"));
    }
  }
}

void validate_count(const Caller& caller, const char* name, const PerAxis<std::int64_t>& values) {
  check_count(caller, name, values);
}

void validate_lengths(const Caller& caller, const char* name, const PerAxis<std::int64_t>& values) {
  check_positive(caller, name, values);
  for (int axis = 0; axis < caller.rank; ++axis) check_most(caller, name, axis, values[axis]);
}

Axis validate_axis(const Caller& caller, int axis, std::int64_t length, const Neighborhood& neighborhood) {
  const Axis a{length,
               neighborhood.kernel_size[axis],
               neighborhood.stride[axis],
               neighborhood.dilation[axis],
               neighborhood.gna_stride[axis],
               neighborhood.is_causal[axis],
               neighborhood.is_circular[axis]};
  if (a.is_causal) {
    check_most(caller, "kernel_size", axis, a.kernel_size);
    check_most(caller, "dilation", axis, a.dilation);
    return a;
  }
  if (a.kernel_size > length) {
    fail(caller, text("kernel_size[", axis, "]=", a.kernel_size, " must be <= input spatial size ", length));
  }
  if (a.dilation > length / a.kernel_size) {
    std::int64_t extent = 0;
    const bool overflow = __builtin_mul_overflow(a.dilation, a.kernel_size, &extent);
    fail(caller, text("dilation[", axis, "] * kernel_size[", axis,
                      "] = ", overflow ? text(a.dilation, " * ", a.kernel_size) : text(extent), " exceeds input size ",
                      length));
  }
  if (!a.is_circular) return a;
  if (length % a.dilation != 0) {
    fail(caller, text("dilation[", axis, "]=", a.dilation, " must divide the length of a circular axis, got ", length));
  }
  if (length / a.dilation % a.gna_stride != 0) {
    fail(caller, text("gna_stride[", axis, "]=", a.gna_stride,
                      " must divide length / dilation of a circular axis, got ", length / a.dilation));
  }
  return a;
}

void validate_positions(const Caller& caller, const char* what, int axis, std::int64_t start, std::int64_t rows,
                        std::int64_t length) {
  if (start >= 0 && rows <= length && start <= length - rows) return;
  std::int64_t end = 0;
  const bool overflow = __builtin_add_overflow(start, rows, &end);
  fail(caller, text(what, " of axis ", axis, " must lie at positions 0..", length - 1, ", got ",
                    overflow ? text(rows, " from ", start, " on") : positions(start, rows)));
}

void validate_length_values(const Caller& caller, const Problem& problem, const mx::array& lengths) {
  const int leading = kAxes - caller.rank;
  if (lengths.size() == 0) return;
  if (!is_concrete(lengths)) {
    for (int axis = 0; problem.spans && axis < caller.rank; ++axis) {
      const AxisSpan span = problem.span(leading + axis);
      const Range<std::int64_t> needed = keys_to_hold(problem.axes[leading + axis], span, true);
      if (!holds(span, needed)) fail_keys(caller, axis, needed, span);
    }
    return;
  }
  mx::array values = mx::contiguous(mx::astype(lengths, mx::int64, mx::Device::cpu), false, mx::Device::cpu);
  values.eval();
  const std::int64_t* data = values.data<std::int64_t>();
  for (std::int64_t sample = 0; sample < problem.batch; ++sample) {
    for (int axis = 0; axis < caller.rank; ++axis) {
      Axis a = problem.axes[leading + axis];
      const std::int64_t length = data[sample * caller.rank + axis];
      const std::string where = caller.rank == 1 ? text(caller.lengths_name, "[", sample, "]=", length)
                                                 : text(caller.lengths_name, "[", sample, ", ", axis, "]=", length);
      check_length(caller, a, length, where, caller.rank == 1 ? "L_max" : text("max_spatial[", axis, "]"));
      if (!problem.spans) continue;
      a.length = length;
      const AxisSpan span = problem.span(leading + axis);
      const Range<std::int64_t> needed = keys_to_hold(a, span, true);
      if (!holds(span, needed)) fail_keys(caller, axis, needed, span, text(" in sample ", sample));
    }
  }
}

}  // namespace natten

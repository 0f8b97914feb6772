// The neighborhood as a dense mask.
#include <algorithm>
#include <limits>

#include "api/entry.h"
#include "mlx/ops.h"
#include "natten/attention.h"
#include "ops/canonical.h"
#include "pure/pure.h"

namespace natten {

namespace {

// Rows of the mask on an axis, by default from `start` on to the end of the axis. What does not fit is left to
// validation.
int row_count(const Caller& caller, const char* name, const std::optional<PerAxis<std::int64_t>>& rows,
              std::size_t axis, std::int64_t start, std::int64_t length) {
  constexpr std::int64_t kMost = std::numeric_limits<int>::max();
  if (!rows) return static_cast<int>(start > 0 && start < length ? length - start : length);
  if (!rows->is_scalar() && static_cast<int>(rows->size()) != caller.rank) {
    fail(caller, std::string(name) + " must have length " + std::to_string(caller.rank) + ", got " +
                     std::to_string(rows->size()));
  }
  const std::int64_t count = (*rows)[axis];
  if (count < 1 || count > kMost) {
    fail(caller, std::string(name) + " values must be positive and below 2^31, got " + std::to_string(count));
  }
  return static_cast<int>(count);
}

// A call whose neighborhood is the mask's: of one channel, with as many samples and heads as the options have.
Problem mask_problem(const Caller& caller, const mx::Shape& shape, const Neighborhood& neighborhood,
                     const MaskOptions& options, mx::Device device) {
  const auto leading = [](const std::optional<mx::array>& a) { return a && a->ndim() > 0 ? a->shape(0) : 1; };
  mx::Shape query{leading(options.lengths)}, key = query;
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    const std::int64_t key_start = neighborhood.is_circular[axis] ? 0 : options.key_start[axis];
    query.push_back(row_count(caller, "query_rows", options.query_rows, axis, options.query_start[axis], shape[axis]));
    key.push_back(row_count(caller, "key_rows", options.key_rows, axis, key_start, shape[axis]));
  }
  for (mx::Shape* array : {&query, &key}) array->insert(array->end(), {leading(options.rpb), 1});
  const std::optional<PerAxis<std::int64_t>> lengths(std::vector<std::int64_t>(shape.begin(), shape.end()));
  const Spec queries(query, mx::float32), keys(key, mx::float32);
  return validate_attention(caller, queries, keys, keys, neighborhood,
                            {{options.query_start, options.key_start, lengths}, device, options.lengths, options.rpb});
}

void check(const Caller& caller, const mx::Shape& shape, const MaskOptions& options, mx::Device device) {
  const bool is_positive = std::all_of(shape.begin(), shape.end(), [](int length) { return length > 0; });
  if (shape.empty() || shape.size() > kAxes || !is_positive) {
    fail(caller, "shape must hold 1 to 3 positive lengths, got " + to_string(shape));
  }
  if (options.dtype != mx::bool_) validate_float(caller, "dtype", options.dtype, device);
  if (options.rpb && options.dtype == mx::bool_) fail(caller, "rpb must come with a floating dtype, got bool");
}

}  // namespace

mx::array neighborhood_mask(const Caller& caller, const mx::Shape& shape, const Neighborhood& neighborhood,
                            const MaskOptions& options) {
  const mx::Stream s = mx::to_stream(options.stream);
  check(caller, shape, options, s.device);
  const Problem p = mask_problem(caller, shape, neighborhood, options, s.device);
  const std::int64_t queries = p.queries(), tokens = p.key_tokens();  // both below 2^31
  // Keys are scattered into it by MLX, which indexes with 32 bits.
  if (queries * tokens > std::numeric_limits<std::int32_t>::max() / std::max<std::int64_t>(1, p.batch)) {
    fail(caller, "the mask must have fewer than 2^31 elements, got batch " + std::to_string(p.batch) + " x " +
                     std::to_string(queries) + " queries x " + std::to_string(tokens) + " keys");
  }
  if (p.batch == 0) {
    return mx::zeros({0, static_cast<int>(p.heads), static_cast<int>(queries), static_cast<int>(tokens)}, options.dtype,
                     s);
  }
  std::optional<mx::array> rpb, lengths;
  if (options.rpb) rpb = canonical_rpb(*options.rpb, p.rank, options.rpb->dtype(), s);
  if (options.lengths) {
    validate_length_values(caller, p, *options.lengths);
    lengths = canonical_lengths(*options.lengths, p.rank, s);
  }
  mx::array mask = pure::mask(p, rpb, lengths, options.dtype, s);  // [B, heads, queries, keys]
  if (lengths) return mask;
  mask = mx::squeeze(mask, 0, s);
  return rpb ? mask : mx::squeeze(mask, 0, s);
}

mx::array neighborhood_mask(const mx::Shape& shape, const Neighborhood& neighborhood, const MaskOptions& options) {
  return neighborhood_mask({"neighborhood_mask", static_cast<int>(shape.size())}, shape, neighborhood, options);
}

}  // namespace natten

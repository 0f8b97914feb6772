#include <limits>

#include "graph/numerics.h"
#include "graph/pin.h"
#include "mlx/ops.h"
#include "pure/padding.h"
#include "pure/pure.h"
#include "pure/windows.h"

namespace natten::pure {

mx::array mask(const Problem& p, const std::optional<mx::array>& rpb, const std::optional<mx::array>& lengths,
               mx::Dtype dtype, mx::Stream s) {
  const Padding padding(p, lengths ? std::optional(pin({*lengths}, {}, s)[0]) : std::nullopt, s);
  const std::int64_t queries = p.queries(), tokens = p.key_tokens();
  const BlockWindows windows = block_windows(p, padding.lengths(), Slots::held, 0, queries, s);
  const int batch = static_cast<int>(p.batch);
  const mx::Shape shape{batch, static_cast<int>(queries), static_cast<int>(tokens)};
  const mx::array sample =
      mx::reshape(mx::multiply(mx::arange(0, batch, 1, s), mx::array(static_cast<int>(tokens)), s), {batch, 1, 1}, s);
  const mx::array keys = mx::subtract(windows.rows, sample, s);  // an empty slot has a key of another one
  mx::array attended = mx::put_along_axis(mx::zeros(shape, mx::bool_, s), keys, mx::array(true), 2, s);
  if (padding.query_mask()) {
    attended = mx::logical_and(attended, mx::reshape(*padding.query_mask(), {batch, -1, 1}, s), s);
  }
  attended = mx::expand_dims(attended, 1, s);
  if (dtype == mx::bool_) return attended;
  constexpr double kNegativeInfinity = -std::numeric_limits<double>::infinity();
  if (!rpb) return select(attended, mx::zeros(attended.shape(), dtype, s), kNegativeInfinity, s);
  const mx::array entry =
      mx::put_along_axis(mx::zeros(shape, mx::int32, s), keys, mx::broadcast_to(*windows.bias, keys.shape(), s), 2, s);
  const mx::array table = mx::flatten(pin({*rpb}, {}, s)[0], 1, kAxes, s);     // [Hq, entries]
  const mx::array bias = mx::swapaxes(mx::take(table, entry, 1, s), 0, 1, s);  // [B, Hq, queries, tokens]
  return select(attended, mx::astype(bias, dtype, s), kNegativeInfinity, s);
}

}  // namespace natten::pure

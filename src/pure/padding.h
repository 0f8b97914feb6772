// Padded samples: where their tokens end, and zeros past that, before the arithmetic and after it, so that NaN in the
// padding reaches neither results nor gradients.
#pragma once

#include <optional>

#include "definition/problem.h"
#include "mlx/array.h"
#include "mlx/stream.h"

namespace natten {

namespace mx = mlx::core;

class Padding {
 public:
  /// `lengths` int32 [B, 3]. A sample with illegal lengths counts as all padding, for when they cannot be checked.
  Padding(const Problem& problem, const std::optional<mx::array>& lengths, mx::Stream s);

  /// Legal lengths to index with, none without lengths.
  const std::optional<mx::array>& lengths() const { return lengths_; }
  /// bool [B, key rows...] and [B, O0, O1, O2]: not padding; none without lengths.
  const std::optional<mx::array>& token_mask() const { return tokens_; }
  const std::optional<mx::array>& query_mask() const { return queries_; }
  /// x [B, key rows..., ...] with zeros past the lengths.
  mx::array zero_tokens(const mx::array& x) const { return zero(x, tokens_); }
  /// x [B, O0, O1, O2, ...] with zeros where the query lies past the lengths.
  mx::array zero_queries(const mx::array& x) const { return zero(x, queries_); }

 private:
  mx::array zero(const mx::array& x, const std::optional<mx::array>& mask) const;

  mx::Stream stream_;
  std::optional<mx::array> lengths_, tokens_, queries_;
};

/// query [B, query rows..., Hq, D] with zeros in the rows that are not computed: in the padding, and those that a query
/// stride leaves out.
mx::array zero_unused_rows(const Problem& problem, const mx::array& query, const std::optional<mx::array>& lengths,
                           mx::Stream s);

}  // namespace natten

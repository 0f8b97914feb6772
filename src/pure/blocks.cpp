#include "pure/blocks.h"

#include <algorithm>

#include "mlx/ops.h"
#include "mlx/transforms.h"
#include "pure/pin.h"

namespace natten {

namespace {

// Amortises graph nodes; a forward stays near 100 MiB over its inputs and results, forward and backward near 250 MiB.
constexpr std::int64_t kBlockBytes = std::int64_t{8} << 20;

using Function = std::function<std::vector<mx::array>(const std::vector<mx::array>&)>;

// Like mx::checkpoint, but ordered by `pin`, which vmap knows.
Function recomputed_in_backward(const Function& function, mx::Stream s) {
  return mx::custom_vjp(function,
                        [function, s](const std::vector<mx::array>& primals, const std::vector<mx::array>& cotangents,
                                      const std::vector<mx::array>&) {
                          return mx::vjp(function, pin(primals, cotangents, s), cotangents).second;
                        });
}

}  // namespace

std::vector<mx::array> in_blocks(const BlockFunction& function, std::int64_t queries, std::int64_t bytes_per_query,
                                 const std::vector<mx::array>& per_query, const std::vector<mx::array>& shared,
                                 mx::Stream s) {
  const std::int64_t block =
      std::clamp<std::int64_t>(kBlockBytes / std::max<std::int64_t>(bytes_per_query, 1), 1, queries);
  std::vector<mx::array> arrays;
  if (block == queries) {
    arrays = per_query;
    arrays.insert(arrays.end(), shared.begin(), shared.end());
    return function(arrays, 0, queries);
  }
  mx::Shape cuts;
  for (std::int64_t cut = block; cut < queries; cut += block) cuts.push_back(static_cast<int>(cut));
  std::vector<std::vector<mx::array>> pieces;
  for (const mx::array& a : per_query) pieces.push_back(mx::split(a, cuts, 1, s));

  std::vector<mx::array> chained = shared;
  std::vector<std::vector<mx::array>> results;
  for (std::size_t i = 0; i <= cuts.size(); ++i) {
    const std::int64_t first = static_cast<std::int64_t>(i) * block;
    const std::int64_t last = std::min(first + block, queries);
    arrays.clear();
    for (const auto& piece : pieces) arrays.push_back(piece[i]);
    arrays.insert(arrays.end(), chained.begin(), chained.end());
    // The pieces are pinned too: a block's backward waits for all gradients of the next one, or these would keep it
    // alive.
    if (i > 0) arrays = pin(arrays, results.back(), s);
    chained.assign(arrays.begin() + pieces.size(), arrays.end());
    results.push_back(recomputed_in_backward(
        [function, first, last](const std::vector<mx::array>& a) { return function(a, first, last); }, s)(arrays));
  }
  std::vector<mx::array> joined;
  for (std::size_t r = 0; r < results[0].size(); ++r) {
    std::vector<mx::array> parts;
    for (const auto& result : results) parts.push_back(result[r]);
    joined.push_back(mx::concatenate(parts, 1, s));
  }
  return joined;
}

}  // namespace natten

#include "pure/blocks.h"

#include <algorithm>
#include <sstream>
#include <stdexcept>

#include "graph/exportable.h"
#include "graph/pin.h"
#include "mlx/memory.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"

namespace natten {

namespace {

// Amortises graph nodes. Of 64 such blocks or fewer, a forward stays near 50 MiB over its inputs and results, forward
// and backward near 150 MiB.
constexpr std::int64_t kBlockBytes = std::int64_t{8} << 20;
// Memory of a forward and backward, in blocks: 5 to 7 where these are large.
constexpr std::int64_t kBlocksAlive = 16;

using Arrays = std::vector<mx::array>;
using Function = std::function<Arrays(const Arrays&)>;

// Gradients of the floating inputs; zeros for the others (lengths).
Arrays floating_gradients(const Function& function, const Arrays& inputs, const Arrays& cotangents, mx::Stream s) {
  std::vector<std::size_t> floating;
  Arrays arguments, result;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    result.push_back(mx::zeros_like(inputs[i], s));
    if (!mx::issubdtype(inputs[i].dtype(), mx::floating)) continue;
    floating.push_back(i);
    arguments.push_back(inputs[i]);
  }
  const auto of_floating = [&](const Arrays& values) {
    Arrays all = inputs;
    for (std::size_t i = 0; i < floating.size(); ++i) all[floating[i]] = values[i];
    return function(all);
  };
  const Arrays found = mx::vjp(of_floating, arguments, cotangents).second;
  for (std::size_t i = 0; i < floating.size(); ++i) result[floating[i]] = found[i];
  return result;
}

std::int64_t memory_of_block() {
  return std::max(static_cast<std::int64_t>(mx::get_memory_limit()) / kBlocksAlive, kBlockBytes);
}

// More nodes than wanted rather than more memory than there is.
std::int64_t queries_per_block(const Cut& cut) {
  const std::int64_t bytes = std::max<std::int64_t>(cut.bytes_per_query, 1);
  const auto least = [&](std::int64_t blocks) { return (cut.queries + blocks - 1) / blocks; };
  const std::int64_t block = std::clamp(kBlockBytes / bytes, least(cut.most_blocks), cut.queries);
  return std::min(block, std::max(memory_of_block() / bytes, least(Cut::kMostBlocks)));
}

// Like mx::checkpoint, but ordered by `pin`, and with a vmap that is right where only some of the inputs are mapped.
Function recomputed_in_backward(const Function& function, mx::Stream s) {
  if (is_exporting()) return function;
  return mx::custom_function(
      function,
      [function, s](const Arrays& primals, const Arrays& cotangents, const Arrays&) {
        return floating_gradients(function, pin(primals, cotangents, s), cotangents, s);
      },
      std::nullopt,
      [function, s](const Arrays& inputs, const std::vector<int>& axes) -> std::pair<Arrays, std::vector<int>> {
        const Arrays outputs = recomputed_in_backward(mx::vmap(function), s)(mapped_first(inputs, axes, s));
        return {outputs, std::vector<int>(outputs.size(), 0)};
      });
}

}  // namespace

std::optional<std::string> block_objection(const Cut& cut) {
  const std::int64_t block = queries_per_block(cut);
  const double needed = static_cast<double>(block) * static_cast<double>(cut.bytes_per_query);
  const double limit = static_cast<double>(memory_of_block());
  if (needed <= limit) return {};
  std::ostringstream text;
  text.precision(3);
  text << "MLX operations would gather " << needed / (1 << 30) << " GiB of keys and values at once (for " << block
       << " of " << cut.queries << " queries), where MLX's memory limit allows " << limit / (1 << 30) << " GiB";
  return text.str();
}

std::vector<mx::array> in_blocks(const BlockFunction& function, const Cut& cut, const std::vector<mx::array>& per_query,
                                 const std::vector<mx::array>& shared, mx::Stream s) {
  if (const auto objection = block_objection(cut)) throw std::invalid_argument("[pure] " + *objection);
  const std::int64_t queries = cut.queries, block = queries_per_block(cut);
  std::vector<mx::array> arrays;
  if (block == queries) {
    arrays = per_query;
    arrays.insert(arrays.end(), shared.begin(), shared.end());
    return function(arrays, 0, queries);
  }
  mx::Shape cuts;
  for (std::int64_t at = block; at < queries; at += block) cuts.push_back(static_cast<int>(at));
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

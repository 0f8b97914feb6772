#include "graph/trace.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <unordered_set>

#include "mlx/primitives.h"

namespace natten {

// Whether evaluating `root` needs only data that exists: not so below a placeholder of compile or vmap. With a stack of
// its own, because graphs are deeper than the machine's.
bool is_concrete(const mx::array& root) {
  std::vector<mx::array> pending{root};
  std::unordered_set<std::uintptr_t> seen;
  while (!pending.empty()) {
    const mx::array a = std::move(pending.back());
    pending.pop_back();
    if (a.status() != mx::array::Status::unscheduled || !seen.insert(a.id()).second) continue;
    if (!a.has_primitive()) return false;
    pending.insert(pending.end(), a.inputs().begin(), a.inputs().end());
  }
  return true;
}

void check_replay(const std::vector<mx::Shape>& traced, const std::vector<mx::array>& inputs) {
  for (std::size_t i = 0; i < traced.size(); ++i) {
    const mx::Shape& now = inputs[i].shape();
    if (now == traced[i]) continue;
    // Whole shapes would be those of the tiers, which have axes that the caller's arrays lack.
    const auto [was, is] = std::mismatch(traced[i].begin(), traced[i].end(), now.begin(), now.end());
    const bool has_axes = was != traced[i].end() && is != now.end();
    const std::string got = has_axes
                                ? "an axis of " + std::to_string(*is) + " where the trace has " + std::to_string(*was)
                                : std::to_string(now.size()) + " axes";
    throw std::invalid_argument("[natten] neighborhood attention expected the shapes of its trace, got " + got +
                                ": compile it without shapeless=True");
  }
}

}  // namespace natten

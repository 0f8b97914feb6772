#include "distributed/order.h"

#include <algorithm>
#include <map>
#include <optional>
#include <unordered_set>

#include "mlx/ops.h"

namespace natten::distributed {

namespace {

using Ids = std::vector<std::uintptr_t>;

// Placeholders of traces that `arrays` depend on, sorted. None where all data exists. With a stack of its own, because
// graphs are deeper than the machine's.
Ids placeholders(const std::vector<mx::array>& arrays) {
  std::vector<mx::array> pending = arrays;
  std::unordered_set<std::uintptr_t> seen;
  Ids found;
  while (!pending.empty()) {
    const mx::array a = std::move(pending.back());
    pending.pop_back();
    if (a.status() != mx::array::Status::unscheduled || !seen.insert(a.id()).second) continue;
    if (!a.has_primitive()) found.push_back(a.id());
    pending.insert(pending.end(), a.inputs().begin(), a.inputs().end());
  }
  std::sort(found.begin(), found.end());
  return found;
}

bool share(const Ids& a, const Ids& b) {
  return std::any_of(a.begin(), a.end(), [&](auto id) { return std::binary_search(b.begin(), b.end(), id); });
}

// Of one group, in one thread.
struct Last {
  std::optional<mx::array> concrete;
  std::optional<mx::array> traced;
  Ids trace;  // what `traced` depends on, and keeps
};

std::map<const void*, Last>& lasts() {
  thread_local std::map<const void*, Last> all;
  return all;
}

Last& last_of(const mx::distributed::Group& group) {
  return lasts()[group.raw_group().get()];
}

}  // namespace

std::vector<mx::array> previous(const mx::distributed::Group& group, const std::vector<mx::array>& inputs) {
  const Ids trace = placeholders(inputs);
  const Last& last = last_of(group);
  if (trace.empty()) return last.concrete ? std::vector{*last.concrete} : std::vector<mx::array>{};
  return last.traced && share(trace, last.trace) ? std::vector{*last.traced} : std::vector<mx::array>{};
}

void set_previous(const mx::distributed::Group& group, const std::vector<mx::array>& inputs, const mx::array& done) {
  Last& last = last_of(group);
  Ids trace = placeholders(inputs);
  if (trace.empty()) {
    last.concrete = done;
    return;
  }
  last.traced = done;  // keeps the placeholders, so that no other array gets their ids
  last.trace = std::move(trace);
}

void forget_order() {
  lasts().clear();
}

}  // namespace natten::distributed

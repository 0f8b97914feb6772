#include "distributed/slabs.h"

#include <algorithm>

namespace natten::distributed {

namespace {

// Absolute positions of the keys of a query, past the ends of a circular axis. Where samples may be shorter than the
// axis, of every sample that has the query: in one that ends with it the window is the last K keys.
Range<std::int64_t> keys_of(const SlabAxis& a, std::int64_t query) {
  const Axis& axis = a.axis;
  const std::int64_t group = query % axis.dilation, place = query / axis.dilation;
  Range<std::int64_t> keys = window(axis, place, group_length(axis.length, axis.dilation, group));
  if (a.has_lengths) keys.start = std::clamp<std::int64_t>(place + 1 - axis.kernel_size, 0, keys.start);
  return {keys.start * axis.dilation + group, (keys.end - 1) * axis.dilation + group + 1};
}

// A sample's windows wrap around its own end, wherever that is: all rows are needed.
bool needs_all(const SlabAxis& a) {
  return a.axis.is_circular && a.has_lengths;
}

void measure_halo(const SlabAxis& a, Slab& slab) {
  const Axis& axis = a.axis;
  slab.first_output = output_length(slab.start, axis.stride);
  slab.outputs = output_length(slab.end(), axis.stride) - slab.first_output;
  const Range<std::int64_t> keys = needed_keys(a, slab.start, slab.end());
  const std::int64_t others = axis.length - slab.rows;  // a circular halo may go once around
  slab.left = std::clamp<std::int64_t>(slab.start - keys.start, 0, others);
  slab.right = std::clamp<std::int64_t>(keys.end - slab.end(), 0, others - slab.left);
}

// Rows from the slab's start to the first query after which none needs the left halo, and likewise from its end.
std::int64_t border(const SlabAxis& a, const Slab& slab, bool is_left) {
  std::int64_t width = 0;
  for (std::int64_t i = 0; i < slab.rows && i < width + a.axis.dilation; ++i) {
    const Range<std::int64_t> keys = keys_of(a, is_left ? slab.start + i : slab.end() - 1 - i);
    if (is_left ? keys.start < slab.start : keys.end > slab.end()) width = i + 1;
  }
  return width;
}

void find_borders(const SlabAxis& a, SlabPlan& plan) {
  if (needs_all(a)) return;
  std::int64_t left = 0, right = 0;
  for (const Slab& slab : plan.slabs) {
    if (slab.left > 0) left = std::max(left, border(a, slab, true));
    if (slab.right > 0) right = std::max(right, border(a, slab, false));
  }
  // At least one computed query in each part.
  if (left > 0) left = std::max(left, a.axis.stride);
  if (right > 0) right = std::max(right, a.axis.stride);
  for (const Slab& slab : plan.slabs) {
    if (left + right + a.axis.stride > slab.rows) return;
  }
  plan.left_border = left;
  plan.right_border = right;
}

// The rank `distance` ranks away; -1 past the ends of an axis that is not circular.
int rank_at(const SlabPlan& plan, int rank, int distance) {
  const int found = rank + distance;
  if (plan.is_circular) return (found % plan.size() + plan.size()) % plan.size();
  return found >= 0 && found < plan.size() ? found : -1;
}

std::int64_t kept(const SlabPlan& plan, int rank, int distance, bool is_left) {
  std::int64_t left = is_left ? plan.slabs[rank].left : plan.slabs[rank].right;
  for (int step = 1; step < distance; ++step) {
    const int between = rank_at(plan, rank, is_left ? -step : step);
    if (between < 0) return 0;
    left -= plan.slabs[between].rows;
  }
  const int owner = rank_at(plan, rank, is_left ? -distance : distance);
  return owner < 0 ? 0 : std::clamp<std::int64_t>(left, 0, plan.slabs[owner].rows);
}

void find_hops(SlabPlan& plan) {
  const int size = plan.size();
  for (int hop = 1; hop < size; ++hop) {
    Hop found{std::vector<std::int64_t>(size, 0), std::vector<std::int64_t>(size, 0)};
    bool is_needed = false;
    for (int rank = 0; rank < size; ++rank) {
      found.to_right[rank] = rank_at(plan, rank, 1) < 0 ? 0 : plan.kept_left(plan.right_of(rank), hop);
      found.to_left[rank] = rank_at(plan, rank, -1) < 0 ? 0 : plan.kept_right(plan.left_of(rank), hop);
      is_needed = is_needed || found.to_right[rank] > 0 || found.to_left[rank] > 0;
    }
    if (!is_needed) break;
    plan.hops.push_back(std::move(found));
  }
  // What the receiver itself does not keep may be for those behind it.
  for (int hop = static_cast<int>(plan.hops.size()) - 2; hop >= 0; --hop) {
    for (int rank = 0; rank < size; ++rank) {
      std::int64_t& right = plan.hops[hop].to_right[rank];
      std::int64_t& left = plan.hops[hop].to_left[rank];
      right = std::max(right, plan.hops[hop + 1].to_right[plan.right_of(rank)]);
      left = std::max(left, plan.hops[hop + 1].to_left[plan.left_of(rank)]);
    }
  }
}

}  // namespace

// Windows of a dilation group start and end in the order of its queries: the first queries of all groups decide where
// keys begin, the last ones where they end.
Range<std::int64_t> needed_keys(const SlabAxis& a, std::int64_t start, std::int64_t end) {
  if (needs_all(a)) return {0, a.axis.length};
  const std::int64_t stride = a.axis.stride;
  const std::int64_t first = output_length(start, stride), last = output_length(end, stride) - 1;
  if (last < first) return {start, start};
  Range<std::int64_t> needed = keys_of(a, first * stride);
  for (std::int64_t i = 0; i < std::min(last - first + 1, a.axis.dilation); ++i) {
    needed.start = std::min(needed.start, keys_of(a, (first + i) * stride).start);
    needed.end = std::max(needed.end, keys_of(a, (last - i) * stride).end);
  }
  return needed;
}

std::int64_t SlabPlan::kept_left(int rank, int distance) const {
  return kept(*this, rank, distance, true);
}

std::int64_t SlabPlan::kept_right(int rank, int distance) const {
  return kept(*this, rank, distance, false);
}

std::int64_t SlabPlan::sent(int rank) const {
  std::int64_t rows = 0;
  for (const Hop& hop : hops) rows += hop.to_right[rank] + hop.to_left[rank];
  return rows;
}

SlabPlan plan_slabs(const SlabAxis& axis, const std::vector<std::int64_t>& rows) {
  SlabPlan plan;
  plan.is_circular = axis.axis.is_circular && !needs_all(axis);
  std::int64_t start = 0;
  for (const std::int64_t count : rows) {
    Slab slab;
    slab.start = start;
    slab.rows = count;
    measure_halo(axis, slab);
    plan.slabs.push_back(slab);
    start += count;
  }
  find_hops(plan);
  find_borders(axis, plan);
  return plan;
}

std::vector<std::int64_t> equal_rows(std::int64_t length, int parts) {
  std::vector<std::int64_t> rows(parts, length / parts);
  for (std::int64_t i = 0; i < length % parts; ++i) ++rows[i];
  return rows;
}

}  // namespace natten::distributed

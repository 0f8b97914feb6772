#include "fast/cost.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "fast/plan.h"

namespace natten::fast {

namespace {

/// Sums over one axis; those of the problem are their products, because tiles, regions and windows are boxes.
struct AxisSums {
  double region = 0;    ///< positions that tiles stream, over tiles
  double met = 0;       ///< positions met, over stationary positions
  double executed = 0;  ///< pairs that simdgroups compute: they take every step together
};

Range<int> met_by(AxisConstants c, const AxisGroup& group, bool keys, int position) {
  return keys ? queries_of_key(c, group, position) : keys_of_query(c, group, position);
}

/// Calls visit(i, weight) so that the weights of all i in [first, last) add up to their number. Long ranges are
/// sampled: both ends in full and, because what lies between changes slowly, runs of neighbours from it.
template <class Visit>
void sample(int first, int last, Visit&& visit) {
  constexpr int kEnd = 128, kRuns = 32, kRun = 8;
  const std::int64_t middle = std::int64_t(last) - first - 2 * kEnd;
  if (middle <= 2 * kRuns * kRun) {
    for (int i = first; i < last; ++i) visit(i, 1.0);
    return;
  }
  for (int i = first; i < first + kEnd; ++i) visit(i, 1.0);
  for (int run = 0; run < kRuns; ++run) {
    const std::int64_t from = middle * run / kRuns, to = middle * (run + 1) / kRuns;
    const int start = first + kEnd + static_cast<int>((from + to - kRun) / 2);
    for (int i = start; i < start + kRun; ++i) visit(i, double(to - from) / kRun);
  }
  for (int i = last - kEnd; i < last; ++i) visit(i, 1.0);
}

/// `extent` of a tile, `simd` of what a simdgroup holds of it, `run` of what a thread holds of that; `batch` and
/// `chunk` on axis 2, along which each thread walks its own way, and 0 on the others.
AxisSums sums_of(AxisConstants c, AxisRows rows, bool keys, int extent, int simd, int run, int batch, int chunk) {
  AxisSums sums;
  constexpr int kFirst = std::numeric_limits<int>::min(), kAll = std::numeric_limits<int>::max();
  const int groups = keys ? std::min(c.axis.dilation, rows.keys) : std::min(c.classes, rows.queries);
  sample(0, groups, [&](int g, double group_weight) {
    const AxisGroup group = keys ? group_of_keys(c, rows, g) : group_of_queries(c, rows, g);
    const int positions = keys ? group.keys : group.queries;
    const auto add_tile = [&](int tile, double tile_weight) {
      const double weight = group_weight * tile_weight;
      const int origin = tile * extent, last = std::min(origin + extent, positions) - 1;
      const auto start_of = [&](int i) { return met_by(c, group, keys, std::min(origin + i, last)).start; };
      const auto end_of = [&](int i) { return met_by(c, group, keys, std::min(origin + i, last)).end; };
      // What `count` positions of the tile meet between `from` and `to`; past the end the last one is repeated.
      const auto met = [&](int first, int count, int from, int to) {
        return std::max(std::min(end_of(first + count - 1), to) - std::max(start_of(first), from), 0);
      };
      const int region = met(0, extent, kFirst, kAll), start = start_of(0);
      sums.region += weight * region;
      for (int i = origin; i <= last; ++i) sums.met += weight * met(i - origin, 1, kFirst, kAll);
      for (int first = 0; first < extent; first += simd) {
        if (batch == 0) {
          sums.executed += weight * simd * met(first, simd, kFirst, kAll);  // rows that some thread meets
          continue;
        }
        // In each chunk the simdgroup takes the steps of the thread that meets most of it. The first thread meets whole
        // the chunks from `whole` to `part`: a long window is walked no further here.
        const int whole = start + ceil_div(start_of(first) - start, chunk) * chunk;
        const int part = start + (end_of(first + run - 1) - start) / chunk * chunk;
        int steps = std::max(part - whole, 0) / chunk * ceil_div(chunk, batch);
        for (int x = start; x < start + region; x += chunk) {
          if (x == whole && whole < part) x = part;
          int most = 0;
          for (int i = first; i < first + simd; i += run) {
            most = std::max(most, ceil_div(met(i, run, x, x + chunk), batch));
          }
          steps += most;
        }
        sums.executed += weight * simd * steps * batch;
      }
    };
    // What a position meets jumps a window away from the ends.
    const int tiles = ceil_div(positions, extent);
    const int border = std::min(ceil_div(c.axis.kernel_size, (keys ? 1 : c.step) * extent), tiles / 2);
    sample(0, border, add_tile);
    sample(border, tiles - border, add_tile);
    sample(tiles - border, tiles, add_tile);
  });
  return sums;
}

double bytes_of(const ArraySpec& array) {
  double bytes = element_size(array.type);
  for (const std::int64_t length : array.shape) bytes *= double(length);
  return bytes;
}

/// Of a streamed row, as the threads that share a position hold it.
double held_bytes(const Plan& plan, const Stream& stream) {
  return double(stream.slices) * plan.lanes * plan.vector * element_size(stream.type);
}

}  // namespace

Cost cost(const Problem& p, KernelId id, Target target) {
  const KernelRow& kernel = row_of(id);
  const KernelLaunch launch = kernel_launch(p, id, target);
  const auto is_free = [&](const std::string& name) {  // few numbers, and what is there for its shape
    return name == kScaleName || name == kSpansName || (id == KernelId::av_backward_value && name == "na_value");
  };
  Cost result;
  result.kernel = id;
  for (const ArraySpec& input : launch.inputs) {
    if (!is_free(input.name)) result.compulsory += bytes_of(input);
  }
  for (const ArraySpec& output : launch.outputs) result.stored += bytes_of(output);
  result.compulsory += result.stored;
  if (!kernel.has_tiles()) {
    for (const ArraySpec& input : launch.inputs) result.loaded += bytes_of(input);
    result.pairs = result.useful_pairs = 1;  // no tile, no waste
    result.flops = kernel.products[1] * bytes_of(launch.inputs[0]) / element_size(launch.inputs[0].type);
    return result;
  }
  const Plan plan = fast::plan(p, id, target);
  const bool keys = kernel.holds_keys();
  const std::array<int, 3> simd = plan.simd_extent();
  AxisSums total{1, 1, 1};
  for (int a = 0; a < kAxes; ++a) {
    const bool walked = a == 2 && plan.engine == Engine::simt;
    const AxisSums sums = sums_of(axis_constants(p.axes[a]), rows_of(p, a), keys, plan.extent[a], simd[a],
                                  plan.run_axis == a ? plan.run : 1, walked ? plan.batch : 0, walked ? plan.chunk : 0);
    total.region *= sums.region;
    total.met *= sums.met;
    total.executed *= sums.executed;
  }
  const double extra = kernel.attends_extra(p) ? double(p.extra_tokens) : 0.0;
  const double tiles = double(plan.tile_count());
  total.region += tiles * extra;
  total.met += double(p.queries()) * extra;
  const double chunks = std::floor(extra / plan.chunk), rest = extra - chunks * plan.chunk;
  const double steps = chunks * ceil_div(plan.chunk, plan.batch) + std::ceil(rest / plan.batch);
  total.executed += tiles * plan.positions() * steps * plan.batch;
  const double pairs = double(p.batch) * double(p.heads);  // for each query and key
  result.useful_pairs = pairs * total.met;
  result.pairs = pairs * total.executed;
  if (plan.engine != Engine::simt) {  // every position of a tile with all that it meets, though warps skip some of it
    result.pairs = pairs * total.region * plan.positions();
  }
  const std::array<int, 2> products = plan.products(kernel);
  const double lengths = double(products[0] * p.head_dim + products[1] * p.value_dim);
  result.flops = 2 * lengths * result.pairs;
  if (plan.engine == Engine::simt) {  // a row is in registers for all of its products, and for a thread's positions
    result.threadgroup_reads = result.pairs / plan.run * (held_bytes(plan, plan.a) + held_bytes(plan, plan.b));
  } else if (has_matrix_units(plan.engine)) {  // read anew for each product of what a simdgroup, or a warpgroup, holds
    const double held = plan.engine == Engine::matrix ? 16 : 64;
    const auto row = [](int products, const Stream& stream) { return double(products) * stream.width; };
    result.unit_flops = 2 * (row(products[0], plan.a) + row(products[1], plan.b)) * result.pairs;
    result.threadgroup_reads =
        result.pairs / held *
        (row(products[0], plan.a) * element_size(plan.a.type) + row(products[1], plan.b) * element_size(plan.b.type));
  }
  for (const Array array : kernel.inputs) {
    if (!has_array(p, array)) continue;
    const ArraySpec input = spec_of(p, array, plan.parts);
    const double bytes = double(input.shape.size() == 6 ? input.shape[5] : 1) * element_size(input.type);
    if (is_free(input.name)) {
      continue;
    } else if (array == Array::attn || array == Array::dlogits) {
      result.loaded += pairs * total.met * element_size(input.type);
    } else if (array == Array::extra_key || array == Array::extra_value) {
      result.loaded += pairs * tiles * extra * bytes;
    } else if (side_of(array) != Side::none && side_of(array) != kernel.held) {
      // Streamed, and loaded by every tile that meets it. Grouped heads: each query head streams the keys of its group,
      // each key head the queries of all of its.
      result.loaded += pairs * (total.region - tiles * extra) * bytes;
    } else if (array == Array::query) {
      result.loaded += double(p.batch * p.queries() * p.heads) * bytes;
    } else if (array == Array::rpb) {
      result.loaded += bytes_of(input) * double(p.batch * plan.tile_count());  // at most
    } else {
      result.loaded += bytes_of(input);
    }
  }
  return result;
}

std::string describe(const Cost& c) {
  char text[300];
  const int end =
      std::snprintf(text, sizeof text, "%s: %.4g MB moved (%.2f times the arrays), %.4g GFLOP (tile waste %.2f)",
                    kernel_name(c.kernel), (c.loaded + c.stored) * 1e-6, c.traffic(), c.flops * 1e-9, c.waste());
  if (c.threadgroup_reads > 0) {
    std::snprintf(text + end, sizeof text - end, ", %.4g on matrix units, %.4g MB of threadgroup memory read",
                  c.unit_flops * 1e-9, c.threadgroup_reads * 1e-6);
  }
  return text;
}

}  // namespace natten::fast

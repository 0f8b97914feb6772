#include "fast/cost.h"

#include <algorithm>
#include <cstdio>

#include "fast/bodies/groups.h"
#include "fast/plan.h"

namespace natten::fast {

namespace {

/// Sums over one axis; those of the problem are their products, because tiles, regions and windows are boxes.
struct AxisSums {
  double region = 0;    ///< positions that tiles stream, over tiles
  double met = 0;       ///< positions met, over stationary positions
  double executed = 0;  ///< the same with everything that threads compute besides
};

Range<int> met_by(AxisConstants c, const AxisGroup& group, bool keys, int position) {
  return keys ? queries_of_key(c, group, position) : keys_of_query(c, group, position);
}

AxisSums sums_of(const Axis& a, int extent, int run, int batch, bool keys) {
  AxisConstants c;
  c.axis = {static_cast<int>(a.length),   static_cast<int>(a.kernel_size), static_cast<int>(a.stride),
            static_cast<int>(a.dilation), static_cast<int>(a.gna_stride),  a.is_causal};
  c.classes = query_classes(a);
  c.step = query_step(a);
  AxisSums sums;
  for (int g = 0; g < (keys ? c.axis.dilation : c.classes); ++g) {
    const AxisGroup group = keys ? group_of_tokens(c, g) : group_of_queries(c, g);
    const int positions = keys ? group.places : group.queries;
    for (int origin = 0; origin < positions; origin += extent) {
      const int last = std::min(origin + extent, positions) - 1;
      const int start = met_by(c, group, keys, origin).start, end = met_by(c, group, keys, last).end;
      sums.region += std::max(end - start, 0);
      for (int i = 0; i < extent; i += run) {
        const int first_held = std::min(origin + i, last), last_held = std::min(origin + i + run - 1, last);
        const Range<int> first = met_by(c, group, keys, first_held), final = met_by(c, group, keys, last_held);
        sums.executed += double(run) * ceil_div(std::max(final.end - first.start, 0), batch) * batch;
      }
      for (int i = origin; i <= last; ++i) {
        const Range<int> met = met_by(c, group, keys, i);
        sums.met += met.end - met.start;
      }
    }
  }
  return sums;
}

/// Channels of the products of one pair: twice a product's length in flops.
double product_channels(const Problem& p, KernelId kernel) {
  const double d = double(p.head_dim), dv = double(p.value_dim);
  switch (kernel) {
    case KernelId::forward:
      return d + dv;
    case KernelId::backward_query:
      return 2 * d + dv;
    case KernelId::backward_key_value:
      return 2 * d + 2 * dv;
    case KernelId::qk:
    case KernelId::qk_backward_query:
    case KernelId::qk_backward_key:
      return d;
    default:
      return dv;
  }
}

int bytes_of(ElementType type) {
  return type == ElementType::float32 || type == ElementType::int32 ? 4 : 2;
}

double bytes_of(const ArraySpec& array) {
  double bytes = bytes_of(array.type);
  for (const std::int64_t length : array.shape) bytes *= double(length);
  return bytes;
}

/// Arrays whose positions stream past, and are loaded by every tile that meets them.
bool is_streamed(KernelId kernel, const std::string& name) {
  if (!holds_keys(kernel)) return name == "na_key" || name == "na_value";
  return name == "na_query" || name == "na_dout" || name == "na_lse" || name == "na_delta";
}

bool is_shape_only(KernelId kernel, const std::string& name) {
  return kernel == KernelId::av_backward_value && name == "na_value";
}

bool is_pairs(const std::string& name) {
  return name == "na_attn" || name == "na_dlogits";
}

}  // namespace

Cost cost(const Problem& p, KernelId kernel, Platform platform) {
  const KernelSource source = kernel_source(p, kernel, platform);
  Cost result;
  result.kernel = kernel;
  for (const ArraySpec& input : source.inputs) {
    if (!is_shape_only(kernel, input.name)) result.compulsory += bytes_of(input);
  }
  for (const ArraySpec& output : source.outputs) result.stored += bytes_of(output);
  result.compulsory += result.stored;
  if (!has_tiles(kernel)) {
    for (const ArraySpec& input : source.inputs) result.loaded += bytes_of(input);
    result.flops = result.useful_flops = result.compulsory;
    return result;
  }
  const Plan plan = fast::plan(p, kernel, platform);
  const bool keys = holds_keys(kernel);
  AxisSums total{1, 1, 1};
  for (int a = 0; a < kAxes; ++a) {
    const AxisSums sums =
        sums_of(p.axes[a], plan.extent[a], plan.run_axis == a ? plan.run : 1, a == 2 ? plan.batch : 1, keys);
    total.region *= sums.region;
    total.met *= sums.met;
    total.executed *= sums.executed;
  }
  const double pairs = double(p.batch) * double(p.heads);
  result.useful_flops = 2 * product_channels(p, kernel) * pairs * total.met;
  result.flops = 2 * product_channels(p, kernel) * pairs * total.executed;
  if (plan.matrix) {  // every position of a tile with all that the tile meets, though warps skip some of it
    const int positions = plan.extent[0] * plan.extent[1] * plan.extent[2];
    result.flops = 2 * product_channels(p, kernel) * pairs * total.region * positions;
  }
  for (const ArraySpec& input : source.inputs) {
    const std::int64_t channels = input.shape.size() == 6 ? input.shape[5] : 1;
    if (is_pairs(input.name)) {
      result.loaded += pairs * total.met * bytes_of(input.type);
    } else if (is_streamed(kernel, input.name)) {
      // Grouped heads: each query head streams the keys of its group, each key head the queries of all of its.
      result.loaded += pairs * total.region * double(channels) * bytes_of(input.type);
    } else if (is_shape_only(kernel, input.name)) {
      continue;
    } else if (input.name == "na_query" && !keys) {
      result.loaded += double(p.batch * p.queries() * p.heads * channels) * bytes_of(input.type);
    } else if (input.name == "na_rpb") {
      result.loaded += bytes_of(input) * double(p.batch * plan.tile_count());  // at most
    } else {
      result.loaded += bytes_of(input);
    }
  }
  return result;
}

std::string describe(const Cost& c) {
  char text[200];
  std::snprintf(text, sizeof text, "%s: %.4g MB moved (%.2f times the arrays), %.4g GFLOP (%.2f times what is needed)",
                kernel_name(c.kernel), (c.loaded + c.stored) * 1e-6, c.traffic(), c.flops * 1e-9, c.waste());
  return text;
}

}  // namespace natten::fast

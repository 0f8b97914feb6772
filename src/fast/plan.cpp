#include "fast/plan.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <sstream>
#include <stdexcept>

#include "fast/planner.h"

namespace natten::fast {

namespace {

/// Of the partial sums of a gradient of rpb, all together. Enough of them to keep a GPU busy, and no table is larger
/// than twice this (objection() sees to it).
constexpr std::int64_t kMostPartialBytes = std::int64_t(128) << 20;

void finish_stream(Stream& stream, const Plan& plan) {
  if (stream.channels == 0) return;
  const int vectors = ceil_div(stream.channels, plan.vector);
  stream.slices = ceil_div(vectors, plan.lanes);
  // Threads whose accesses fill all banks once hold `rows` neighbouring positions, and `lanes` of each: rows are so far
  // apart that no two of these accesses share a bank. (With eight rows or more, an odd number of vectors.)
  const int accesses = 128 / std::min(16, plan.vector * element_size(stream.type));
  const int rows = std::min(32 / plan.lanes, accesses), lanes = accesses / rows;
  int row_vectors = stream.slices * plan.lanes;
  while (row_vectors % (2 * lanes) != lanes) ++row_vectors;
  stream.pitch = row_vectors * plan.vector;
  if (plan.engine == Engine::matrix && element_size(stream.type) == 4) {
    // Fragments of float32 are read by 4 channels of 8 rows, and by 8 channels of 4 pairs of rows: each in all banks.
    stream.pitch = ceil_div(stream.width, 32) * 32 + 4;
  }
}

/// What of a plan depends on the problem itself, not on its family.
void count_tiles(const Problem& p, const KernelRow& kernel, Plan& plan) {
  for (int a = 0; a < kAxes; ++a) plan.tiles[a] = tiles_on(p, a, plan.extent[a], kernel.holds_keys());
  plan.parts = plan.tile_count() * p.batch;
  if (plan.repeat > 1) {  // as long as that leaves threadgroups for the largest GPUs
    constexpr std::int64_t kGroups = 1024;
    const std::int64_t tiles_each = std::clamp<std::int64_t>(plan.parts * p.heads / kGroups, 1, plan.repeat);
    plan.parts = (plan.parts + tiles_each - 1) / tiles_each;
  }
  if (plan.stage_columns == 0) return;
  const std::int64_t table_bytes = 4 * p.heads * bias_entries(p);
  const int wanted = override_of("parts");
  const std::int64_t most = wanted > 0 ? wanted : std::max<std::int64_t>(kMostPartialBytes / table_bytes, 1);
  plan.parts = std::min(plan.parts, most);
}

/// In order of preference.
constexpr struct {
  Engine engine;
  std::optional<Plan> (*plan)(const Problem&, const KernelRow&, Target, Plan);
} kPlanners[] = {{Engine::decode, plan_decode},
                 {Engine::warpgroup, plan_warpgroup},
                 {Engine::matrix, plan_matrix},
                 {Engine::simt, plan_simt}};

Plan plan_of_family(const Problem& p, const KernelRow& kernel, Target target) {
  const auto stream = [&](Array array) {
    Stream s{static_cast<int>(channels_of(p, array)), type_of(p, array)};
    const int step = target.platform == Platform::metal || element_size(s.type) == 4 ? 8 : 16;
    s.width = ceil_div(s.channels, step) * step;
    return s;
  };
  Plan start;
  start.a = stream(kernel.streams()[0]);
  start.b = stream(kernel.streams()[1]);
  start.run_axis = (kernel.holds_keys() ? p.span(1).key_rows : p.queries(1)) > 1 ? 1 : 2;
  for (const auto& [engine, planner] : kPlanners) {
    if (!kernel.bodies[static_cast<int>(engine)] || override_of(engine_name(engine)) == 0) continue;
    start.engine = engine;
    const std::optional<Plan> found = planner(p, kernel, target, start);
    if (!found) continue;
    const Plan& plan = *found;
    // What an override may have broken. Where there is none, objection() asks whether the kernel fits.
    if (kernel.has_tiles() &&
        (plan.extent[0] * plan.extent[1] * plan.extent[2] !=
             (plan.threads - plan.producers) / plan.lanes / plan.slots * plan.run ||
         plan.extent[plan.run_axis] % plan.run != 0 ||
         (std::getenv("NATTEN_FAST_TILE") && plan.shared_bytes() > most_shared_bytes(target.platform)))) {
      refuse(plan);
    }
    return plan;
  }
  throw std::invalid_argument("NATTEN_FAST_TILE leaves no engine");
}

}  // namespace

std::int64_t reach(const Problem& p, int a, int extent, bool keys) {
  const Axis& axis = p.axes[a];
  const int step = axis_constants(axis).step;
  const std::int64_t places = keys ? extent : std::int64_t(extent - 1) * step + 1;
  const std::int64_t met = places - 1 + axis.gna_stride - 1 + axis.kernel_size;
  if (axis.is_circular) {      // perhaps more than there are: then some are met again
    constexpr int kSeams = 3;  // of turns, where queries may lie closer
    return keys ? ceil_div64(met + 1, step) + 1 + kSeams : met;
  }
  if (!keys) return std::min(met, (p.span(a).key_rows + axis.dilation - 1) / axis.dilation);
  // A key at a border is met by up to half a window more, and by queries `step` places apart. (A tile that lies at both
  // borders, of a short axis or sample, meets another half window more.)
  const std::int64_t queries = places - 1 + axis.kernel_size + axis.kernel_size / 2 + axis.gna_stride;
  return std::min(ceil_div64(queries, step) + std::int64_t(1), p.queries(a));
}

std::int64_t tiles_on(const Problem& p, int a, int extent, bool keys) {
  const int rows = static_cast<int>(keys ? p.span(a).key_rows : p.queries(a));
  const int classes = keys ? static_cast<int>(p.axes[a].dilation) : axis_constants(p.axes[a]).classes;
  return tiles_on_axis(rows, classes, p.spans ? std::min(classes, rows) : classes, extent);
}

bool has_even_queries(const Problem& p) {
  return std::none_of(p.axes.begin(), p.axes.end(),
                      [&](const Axis& axis) { return axis.is_circular && (axis.stride > 1 || p.spans); });
}

void reserve_bias_sums(const Problem& p, Plan& plan) {
  plan.stage_columns = ceil_div64(bias_entries(p), 16) + plan.block + 8;
}

void finish_streams(const KernelRow& kernel, Plan& plan) {
  finish_stream(plan.a, plan);
  finish_stream(plan.b, plan);
  plan.position_bytes = plan.a.row_bytes() + plan.b.row_bytes() + 4 * kernel.streamed_scalars();
}

void choose_extent(const Problem& p, const KernelRow& kernel,
                   const std::function<double(const Problem&, const KernelRow&, Plan&)>& cost_of, Plan& plan) {
  const int positions = plan.threads / plan.lanes * plan.run;
  double best = std::numeric_limits<double>::max();
  Plan chosen = plan;
  for (int e0 = 1; e0 <= positions; e0 *= 2) {
    for (int e1 = plan.run_axis == 1 ? plan.run : 1; e0 * e1 <= positions; e1 *= 2) {
      plan.extent = {e0, e1, positions / (e0 * e1)};
      if (plan.extent[plan.run_axis] % plan.run != 0) continue;
      const double cost = cost_of(p, kernel, plan);
      if (cost >= best) continue;
      best = cost;
      chosen = plan;
    }
  }
  plan = chosen;
}

void override_from_environment(Plan& plan) {
  static constexpr struct {
    const char* name;
    int Plan::*field;
    int least, most;
  } kNumbers[] = {{"threads", &Plan::threads, 32, 1024},
                  {"groups", &Plan::groups, 1, 32},
                  {"run", &Plan::run, 1, 32},
                  {"lanes", &Plan::lanes, 1, 32},
                  {"batch", &Plan::batch, 1, 32},
                  {"vector", &Plan::vector, 4, 8},
                  {"chunk", &Plan::chunk, 1, 1 << 20},
                  {"block", &Plan::block, 16, 256},
                  {"warpgroups", &Plan::warpgroups, 1, 4},
                  {"hold", &Plan::hold_shared, 0, 1},
                  {"producers", &Plan::producers, 32, 128},
                  {"stages", &Plan::stages, 2, 16},
                  {"repeat", &Plan::repeat, 1, 64},
                  {"split", &Plan::split_axis, 0, 2},
                  {"pingpong", &Plan::ping_pong, 0, 1},
                  // override_of() has these.
                  {"parts", nullptr, 1, std::numeric_limits<int>::max()},
                  {"matrix", nullptr, 0, 0},
                  {"decode", nullptr, 0, 0},
                  {"warpgroup", nullptr, 0, 1}};
  const char* text = std::getenv("NATTEN_FAST_TILE");
  std::istringstream items(text ? text : "");
  for (std::string item; std::getline(items, item, ',');) {
    const std::string name = item.substr(0, item.find('='));
    const char* value = item.c_str() + std::min(name.size() + 1, item.size());
    const int number = std::atoi(value);
    bool is_used =
        name == "extent" && std::sscanf(value, "%dx%dx%d", &plan.extent[0], &plan.extent[1], &plan.extent[2]) == 3;
    for (const auto& [field_name, field, least, most] : kNumbers) {
      if (name != field_name || number < least || number > most) continue;
      if (field) plan.*field = number;
      is_used = true;
    }
    const bool is_whole = plan.threads % 32 == 0 && std::has_single_bit(unsigned(plan.lanes)) && plan.vector % 4 == 0 &&
                          plan.producers % 32 == 0;
    if (!is_used || !is_whole) throw std::invalid_argument("NATTEN_FAST_TILE: cannot use '" + item + "'");
  }
}

int override_of(const std::string& name) {
  const char* text = std::getenv("NATTEN_FAST_TILE");
  const char* found = text ? std::strstr(text, (name + "=").c_str()) : nullptr;
  return found ? std::atoi(found + name.size() + 1) : -1;
}

void refuse(const Plan& plan) {
  throw std::invalid_argument("NATTEN_FAST_TILE: no kernel has " + plan.describe());
}

int most_shared_bytes(Platform platform) {
  return (platform == Platform::metal ? 32 : 48) * kKilobyte;  // what can be declared without asking
}

Problem family_of(Problem p) {
  p.rank = kAxes;
  p.device = DeviceType::gpu;
  p.batch = 1;
  p.heads /= p.kv_heads;
  p.kv_heads = 1;
  p.scale = 1.0;
  p.extra_tokens = std::min<std::int64_t>(p.extra_tokens, 1);
  // Up to three leading bits: so there are few families, and most lengths of use are such.
  const auto rounded = [](std::int64_t length) {
    const int dropped = std::max(int(std::bit_width(std::uint64_t(length))) - 3, 0);
    return ((length - 1) >> dropped << dropped) + (std::int64_t(1) << dropped);
  };
  for (int a = 0; a < kAxes; ++a) {
    Axis& axis = p.axes[a];
    if (p.spans) {  // where they lie, and on how long an axis, is not in the text
      const std::int64_t keys = rounded(p.span(a).key_rows);
      (*p.spans)[a] = {0, rounded(p.queries(a)) * axis.stride, 0, keys};
      axis.length = keys;
    } else {
      axis.length = rounded(axis.length);
    }
  }
  return p;
}

std::string family_key(const Problem& p, KernelId kernel, Target target) {
  std::string key;
  const auto add = [&](auto... values) { (key.append(reinterpret_cast<const char*>(&values), sizeof values), ...); };
  // All fields by name: a new one does not compile until it is decided whether the text depends on it.
  const auto& [op, rank, device, batch, heads, kv_heads, head_dim, value_dim, axes, scale, query_type, key_type,
               value_type, has_rpb, has_lengths, spans, pieces, extra_tokens] = p;  // pieces: kernels have none
  add(kernel, target.platform, target.capability, target.tf32, op, heads, kv_heads, head_dim, value_dim);
  for (const auto& [length, kernel_size, stride, dilation, gna_stride, is_causal, is_circular] : axes) {
    add(length, kernel_size, stride, dilation, gna_stride, is_causal, is_circular);
  }
  add(query_type, key_type, value_type, has_rpb, has_lengths, spans.has_value(), extra_tokens);
  for (int a = 0; spans && a < kAxes; ++a) add((*spans)[a].query_rows);
  const char* tile = std::getenv("NATTEN_FAST_TILE");
  return tile ? key + tile : key;
}

/// Plans are small; these are some thousands of families.
LruCache<Plan>& plan_cache() {
  static auto& cache = *new LruCache<Plan>(2 << 20);  // never destroyed: threads may still ask at exit
  return cache;
}

AxisConstants axis_constants(const Axis& a) {
  const std::int64_t gcd = std::gcd(a.stride, a.dilation);
  return {{static_cast<int>(a.length), static_cast<int>(a.kernel_size), static_cast<int>(a.stride),
           static_cast<int>(a.dilation), static_cast<int>(a.gna_stride), a.is_causal, a.is_circular},
          static_cast<int>(a.dilation / gcd),
          static_cast<int>(a.stride / gcd)};
}

std::array<int, 2> Plan::products(const KernelRow& kernel) const {
  const int again = wide && kernel.holds_keys() ? 1 : 0;  // logits, for each of the sums
  return {kernel.products[0] + again, kernel.products[1]};
}

int Plan::bias_bytes() const {
  return 4 * (stage_columns * positions() + staged_bias);
}

int Plan::shared_bytes() const {
  return engine == Engine::warpgroup ? 0 : chunk * position_bytes + bias_bytes();
}

int Plan::dynamic_bytes() const {
  if (engine != Engine::warpgroup) return 0;
  const bool penalties = mask == MaskKind::units;
  int table = 0;
  for (int axis = 0; axis < kAxes && penalties; ++axis) {
    table += (axis == split_axis ? warpgroups : 1) * reach[axis] * (mask_channels[axis] / 2) * 4;
  }
  const int rows = block * 2 * (a.width + b.width);
  const int stage = rows + block * numbers + (penalties ? warpgroups * block * 32 : 0) + 4 * 8;
  const int held = hold_shared == 0 ? 0 : 64 * 2 * (a.width + (hold_shared > 1 ? b.width : 0));
  return stages * stage + warpgroups * held + (table + 7) / 8 * 8 + bias_bytes() + kKilobyte;  // for alignment
}

std::array<int, 3> Plan::simd_extent() const {
  std::array<int, 3> held{1, 1, 1};
  int threads = 32 / lanes;
  for (int a = kAxes - 1; a >= 0; --a) {
    const int run_here = a == run_axis ? run : 1;
    const int taken = std::min(extent[a] / run_here, threads);
    held[a] = taken * run_here;
    threads = std::max(threads / taken, 1);
  }
  return held;
}

std::string Plan::describe() const {
  const auto text = [](auto number) { return std::to_string(number); };
  const auto count = [&](int number, const char* what) { return text(number) + ' ' + what + (number == 1 ? "" : "s"); };
  const std::string box = text(extent[0]) + 'x' + text(extent[1]) + 'x' + text(extent[2]) + " positions, ";
  if (engine == Engine::warpgroup) {
    return "warpgroups, " + box + count(warpgroups, "warpgroup") + ", " + count(producers, "producer") + ", " +
           count(stages, "stage") + " of " + text(block) + ", " + count(repeat, "tile") + " in turn" +
           (ping_pong ? ", ping-pong" : "");
  }
  if (engine == Engine::decode) {
    return "one position, its keys divided among " + count(threads, "thread") + ", " + count(lanes, "lane") +
           " per key, batches of " + text(batch);
  }
  return (engine == Engine::matrix ? "matrix units, " : "") + box + count(threads, "thread") + ", " +
         count(run, "position") + " per thread, " + count(lanes, "lane") + " per position, batches of " + text(batch) +
         ", chunks of " + text(chunk);
}

Plan plan(const Problem& problem, KernelId kernel, Target target) {
  const Problem family = family_of(problem);
  const std::string key = family_key(family, kernel, target);
  std::optional<Plan> found = plan_cache().find(key);
  if (!found) {
    found = plan_of_family(family, row_of(kernel), target);
    plan_cache().insert(key, *found, sizeof(Plan));
  }
  if (row_of(kernel).has_tiles()) count_tiles(problem, row_of(kernel), *found);
  return *found;
}

}  // namespace natten::fast

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

#include "fast/bodies/groups.h"

namespace natten::fast {

namespace {

/// What the plans of a platform aim at.
struct Limits {
  int threads;            ///< of a threadgroup
  int groups;             ///< on a CUDA multiprocessor at once: bounds registers to 65536 / (threads * groups)
  int channels_per_lane;  ///< of each array that a thread holds: they live in registers
  int run;                ///< positions per thread: each load from threadgroup memory serves so many
  int batch;              ///< logits per position at once
  int chunk_bytes;        ///< of threadgroup memory that streams use
  int shared_bytes;       ///< all of it
};

constexpr int kKilobyte = 1024;

/// Of the partial sums of a gradient of rpb, all together. Enough of them to keep a GPU busy, and no table is larger
/// than twice this (objection() sees to it).
constexpr std::int64_t kMostPartialBytes = std::int64_t(128) << 20;

Limits limits(const Problem& p, KernelId kernel, Platform platform) {
  const bool gradients = kernel == KernelId::backward_query || kernel == KernelId::backward_key_value;
  if (platform == Platform::metal) {
    // Not tuned on hardware. 128 threads, because a pipeline that uses many registers allows few more; half of the
    // 32 KB that Metal has, so that two groups share a core and one computes while the other loads.
    return {128, 1, gradients ? 8 : 16, 2, gradients ? 16 : 8, 16 * kKilobyte, most_shared_bytes(platform)};
  }
  // Measured on an H200 in float32 (docs/fast-tier.md). A run of 2 halves what is loaded from threadgroup memory, a run
  // of 4 wastes more at window borders than it saves. 8 channels per lane exchange too much, 32 spill.
  switch (kernel) {
    case KernelId::forward:
      // Windows of long rows have the longer halo, which larger tiles share.
      if (p.axes[2].kernel_size > 8) return {256, 2, 16, 2, 13, 32 * kKilobyte, most_shared_bytes(platform)};
      return {128, 4, 16, 2, 13, 32 * kKilobyte, most_shared_bytes(platform)};
    case KernelId::backward_query:
      return {128, 3, 16, 2, 16, 24 * kKilobyte, most_shared_bytes(platform)};
    case KernelId::backward_key_value:
      // It holds four arrays: a run of 2 needs 218 registers, which leaves room for few threads.
      return {128, 4, 16, 1, 16, 32 * kKilobyte, most_shared_bytes(platform)};
    default:
      return {256, 2, 16, 2, 13, 32 * kKilobyte, most_shared_bytes(platform)};
  }
}

bool needs_bias_gradient(const Problem& p, KernelId kernel) {
  return p.has_rpb && (kernel == KernelId::backward_query || kernel == KernelId::qk_backward_query);
}

/// Cost of bringing a position into threadgroup memory, in units of one query-key pair's arithmetic.
constexpr double kLoadCost = 4;

int ceil_div64(std::int64_t a, std::int64_t b) {
  return static_cast<int>((a + b - 1) / b);
}

Stream stream(std::int64_t channels, FloatType type) {
  Stream s;
  s.channels = static_cast<int>(channels);
  s.type = type;
  return s;
}

void choose_streams(const Problem& p, KernelId kernel, Plan& plan) {
  switch (kernel) {
    case KernelId::forward:
    case KernelId::backward_query:
      plan.a = stream(p.head_dim, p.key_type);
      plan.b = stream(p.value_dim, p.value_type);
      break;
    case KernelId::backward_key_value:
      plan.a = stream(p.head_dim, p.query_type);
      plan.b = stream(p.value_dim, p.query_type);  // dout has the type of out
      break;
    case KernelId::qk:
    case KernelId::qk_backward_query:
      plan.a = stream(p.head_dim, p.key_type);
      break;
    case KernelId::qk_backward_key:
      plan.a = stream(p.head_dim, p.query_type);
      break;
    case KernelId::av:
    case KernelId::av_backward_attn:
      plan.a = stream(p.value_dim, p.value_type);
      break;
    case KernelId::av_backward_value:
    case KernelId::delta:
      plan.a = stream(p.value_dim, p.query_type);
      break;
    case KernelId::rpb_sum:
      plan.a = stream(1, FloatType::float32);
      break;
  }
}

/// Lanes such that each holds about `wanted` channels, and few of them are padding.
void choose_lanes(Plan& plan, Platform platform, int wanted) {
  const bool halves = element_size(plan.a.type) == 2 && (plan.b.channels == 0 || element_size(plan.b.type) == 2);
  plan.vector = platform == Platform::cuda && halves ? 8 : 4;  // 16 bytes on CUDA, Metal's longest vector
  const int channels = std::max(plan.a.channels, plan.b.channels);
  const int vectors = ceil_div(channels, plan.vector);
  double best = std::numeric_limits<double>::max();
  for (int lanes = 1; lanes <= 32; lanes *= 2) {
    const int slices = ceil_div(vectors, lanes);
    const int held = slices * plan.vector;
    if (lanes > 1 && lanes / 2 >= vectors) break;
    const double padding = double(slices) * lanes / vectors;
    const double distance = held > wanted ? double(held) / wanted : 1 + 0.1 * (double(wanted) / held - 1);
    const double cost = padding * (held > wanted * 3 / 2 ? 4 * distance : distance);
    if (cost < best) {
      best = cost;
      plan.lanes = lanes;
    }
  }
}

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
  // Fragments of float32 are read by 4 channels of 8 rows, and by 8 channels of 4 pairs of rows: each in all banks.
  if (plan.matrix && element_size(stream.type) == 4) stream.pitch = ceil_div(stream.width, 32) * 32 + 4;
}

/// Positions that a tile of `extent` on this axis meets, at most.
std::int64_t reach(const Axis& axis, int extent, bool keys) {
  const std::int64_t places = keys ? extent : std::int64_t(extent - 1) * query_step(axis) + 1;
  const std::int64_t met =
      std::min(places - 1 + axis.gna_stride - 1 + axis.kernel_size, (axis.length + axis.dilation - 1) / axis.dilation);
  if (!keys) return met;
  // A key at the border is met by up to half a window more, and by queries `step` places apart.
  const std::int64_t queries = places - 1 + axis.kernel_size + axis.kernel_size / 2 + axis.gna_stride;
  return std::min(ceil_div64(queries, query_step(axis)) + std::int64_t(1), output_length(axis.length, axis.stride));
}

std::int64_t tiles_on(const Axis& axis, int extent, bool keys) {
  const int length = static_cast<int>(axis.length);
  return keys ? tiles_on_axis(length, static_cast<int>(axis.dilation), extent)
              : tiles_on_axis(output_length(length, static_cast<int>(axis.stride)), query_classes(axis), extent);
}

/// The box of `positions` whose tiles cost least in all: overhang and halo against each other.
void choose_extent(const Problem& p, KernelId kernel, Plan& plan) {
  const bool keys = holds_keys(kernel);
  const int positions = plan.threads / plan.lanes * plan.run;
  const int simd_positions = 32 / plan.lanes * (plan.run_axis == 2 ? plan.run : 1);
  double best = std::numeric_limits<double>::max();
  std::array<int, 3> chosen = plan.extent;
  for (int e0 = 1; e0 <= positions; e0 *= 2) {
    for (int e1 = plan.run_axis == 1 ? plan.run : 1; e0 * e1 <= positions; e1 *= 2) {
      const int e2 = positions / (e0 * e1);
      if (e2 < (plan.run_axis == 2 ? plan.run : 1)) continue;
      const std::array<int, 3> extent{e0, e1, e2};
      double tiles = 1, met = 1;
      for (int a = 0; a < kAxes; ++a) {
        tiles *= double(tiles_on(p.axes[a], extent[a], keys));
        met *= double(reach(p.axes[a], extent[a], keys));
      }
      // Threads of a simdgroup in different rows wait for each other.
      const double spread = e2 < simd_positions ? 1.0 + 0.25 * double(simd_positions) / e2 : 1.0;
      const double cost = tiles * (spread * positions * double(p.kernel_volume()) + kLoadCost * met);
      if (cost < best) {
        best = cost;
        chosen = extent;
      }
    }
  }
  plan.extent = chosen;
}

int bytes_per_position(const Plan& plan, KernelId kernel) {
  return plan.a.row_bytes() + plan.b.row_bytes() + (kernel == KernelId::backward_key_value ? 8 : 0) +
         (plan.matrix ? 4 : 0);
}

/// Whether the kernel runs on matrix units (bodies/matrix.h). All others are bodies of multiply-adds.
bool suits_matrix_units(const Problem& p, KernelId kernel, Target target) {
  const auto fits = [](std::int64_t channels) { return channels >= 8 && channels <= 128; };
  const bool has_type = target.platform == Platform::metal || target.tf32 || element_size(p.query_type) == 2;
  return is_fused(kernel) && has_type && p.key_type == p.query_type && p.value_type == p.query_type &&
         fits(p.head_dim) && fits(p.value_dim) && !(p.has_rpb && kernel == KernelId::backward_query);
}

/// The box whose warps multiply least, with what loading costs. A warp skips what lies before and after its own span
/// of the region, which is a flat list of rows.
void choose_matrix_extent(const Problem& p, KernelId kernel, Plan& plan) {
  constexpr double kLoad = 0.5;     // bringing a position in, for all warps of a tile, in those that a warp multiplies
  constexpr double kTileCost = 64;  // queries, results, indices; the same unit
  const bool keys = holds_keys(kernel);
  const int positions = plan.threads / plan.lanes * plan.run;
  double best = std::numeric_limits<double>::max();
  std::array<int, 3> chosen = plan.extent;
  for (int e0 = 1; e0 <= positions; e0 *= 2) {
    for (int e1 = plan.run_axis == 1 ? plan.run : 1; e0 * e1 <= positions; e1 *= 2) {
      plan.extent = {e0, e1, positions / (e0 * e1)};
      if (plan.extent[2] < (plan.run_axis == 2 ? plan.run : 1)) continue;
      const std::array<int, 3> warp = plan.simd_extent();
      double tiles = 1, region[kAxes], span[kAxes];
      for (int a = 0; a < kAxes; ++a) {
        tiles *= double(tiles_on(p.axes[a], plan.extent[a], keys));
        region[a] = double(reach(p.axes[a], plan.extent[a], keys));
        span[a] = double(reach(p.axes[a], warp[a], keys));
      }
      const double met = region[0] * region[1] * region[2];
      const double of_warp =
          std::min(met, ((span[0] - 1) * region[1] + span[1] - 1) * region[2] + span[2] + plan.block / 2);
      const double cost = tiles * (of_warp + kLoad * met + kTileCost);
      if (cost < best) {
        best = cost;
        chosen = plan.extent;
      }
    }
  }
  plan.extent = chosen;
}

/// Chunks of equal size, and the bits of packed coordinates. False if the region is too large for them.
bool finish_matrix(const Problem& p, KernelId kernel, int most_bytes, Plan& plan) {
  std::int64_t region = 1;
  int bits = 0;
  for (int a = 0; a < kAxes; ++a) {
    const std::int64_t met = reach(p.axes[a], plan.extent[a], holds_keys(kernel));
    plan.bits[a] = std::bit_width(std::uint64_t(met)) + 1;
    bits += plan.bits[a] + 1;
    region *= met;
  }
  constexpr int kWordBits = 32, kMostRegion = 1 << 19;
  constexpr int kMostRows = 128;
  if (bits > kWordBits || region > kMostRegion) return false;
  const int fitting = most_bytes / bytes_per_position(plan, kernel) / plan.block * plan.block;
  const int rows = std::clamp(fitting, plan.block, kMostRows);
  const int chunks = ceil_div64(region, rows);
  plan.chunk = ceil_div64(ceil_div64(region, chunks), plan.block) * plan.block;
  return true;
}

/// Divides what a thread meets on axis 2 into equal batches with the least padding.
int choose_batch(std::int64_t columns, int most) {
  int best = 1;
  double best_cost = std::numeric_limits<double>::max();
  for (int batch = 1; batch <= most; ++batch) {
    const int batches = ceil_div64(columns, batch);
    const double cost = double(batches) * (batch + 1.5);  // 1.5: what every batch costs besides
    if (cost < best_cost) {
      best_cost = cost;
      best = batch;
    }
  }
  return best;
}

void choose_chunk(const Problem& p, KernelId kernel, const Limits& limits, Plan& plan) {
  std::int64_t width = reach(p.axes[2], plan.extent[2], holds_keys(kernel));
  std::int64_t region = width * reach(p.axes[0], plan.extent[0], holds_keys(kernel)) *
                        reach(p.axes[1], plan.extent[1], holds_keys(kernel));
  const int positions = plan.extent[0] * plan.extent[1] * plan.extent[2];
  const int per_position = bytes_per_position(plan, kernel);
  std::int64_t chunk = std::max(1, limits.chunk_bytes / per_position);
  if (needs_bias_gradient(p, kernel)) {
    const std::int64_t columns = std::min<std::int64_t>(width, limits.shared_bytes / 2 / (positions * 4));
    chunk = std::min(chunk, (limits.shared_bytes - columns * positions * 4) / per_position);
    if (columns < width) chunk = std::min(chunk, columns);
    plan.stage_columns = static_cast<int>(std::min(columns, chunk));
  }
  if (chunk > width) chunk -= chunk % width;  // whole rows
  plan.chunk = static_cast<int>(std::min(chunk, region));
}

void override_from_environment(Plan& plan) {
  const char* text = std::getenv("NATTEN_FAST_TILE");
  if (!text || !*text) return;
  std::istringstream items(text);
  for (std::string item; std::getline(items, item, ',');) {
    const auto equals = item.find('=');
    const std::string name = item.substr(0, equals);
    const std::string value = equals == std::string::npos ? "" : item.substr(equals + 1);
    const int number = std::atoi(value.c_str());
    if (name == "threads" && number >= 32 && number % 32 == 0) {
      plan.threads = number;
    } else if (name == "run" && number >= 1) {
      plan.run = number;
    } else if (name == "lanes" && number >= 1 && number <= 32 && (number & (number - 1)) == 0) {
      plan.lanes = number;
    } else if (name == "batch" && number >= 1 && number <= 32) {
      plan.batch = number;
    } else if (name == "vector" && (number == 4 || number == 8)) {
      plan.vector = number;
    } else if ((name == "matrix" && number == 0) || (name == "parts" && number >= 1)) {
      continue;  // see override_of()
    } else if (name == "groups" && number >= 1) {
      plan.groups = number;
    } else if (name == "chunk" && number >= 1) {
      plan.chunk = number;
    } else if (name == "extent") {
      std::sscanf(value.c_str(), "%dx%dx%d", &plan.extent[0], &plan.extent[1], &plan.extent[2]);
    } else {
      throw std::invalid_argument("NATTEN_FAST_TILE: cannot use '" + item + "'");
    }
  }
}

[[noreturn]] void refuse(const Plan& plan) {
  throw std::invalid_argument("NATTEN_FAST_TILE: no kernel has " + plan.describe());
}

/// What an override may have broken. Where there is none, objection() asks whether the kernel fits.
void check(const Plan& plan, KernelId kernel, int shared_bytes) {
  if (plan.extent[0] * plan.extent[1] * plan.extent[2] != plan.threads / plan.lanes * plan.run ||
      plan.extent[plan.run_axis] % plan.run != 0 ||
      (std::getenv("NATTEN_FAST_TILE") && plan.shared_bytes(kernel) > shared_bytes)) {
    refuse(plan);
  }
}

/// A number of NATTEN_FAST_TILE that concerns more than one plan; -1 where it is not there.
int override_of(const std::string& name) {
  const char* text = std::getenv("NATTEN_FAST_TILE");
  const char* found = text ? std::strstr(text, (name + "=").c_str()) : nullptr;
  return found ? std::atoi(found + name.size() + 1) : -1;
}

/// What of a plan depends on the problem itself, not on its family.
void count_tiles(const Problem& p, KernelId kernel, Plan& plan) {
  for (int a = 0; a < kAxes; ++a) plan.tiles[a] = tiles_on(p.axes[a], plan.extent[a], holds_keys(kernel));
  plan.parts = plan.tile_count() * p.batch;
  if (plan.stage_columns == 0) return;
  std::int64_t table_bytes = p.heads * 4;
  for (const Axis& axis : p.axes) table_bytes *= 2 * axis.kernel_size - 1;
  const int wanted = override_of("parts");
  const std::int64_t most = wanted > 0 ? wanted : std::max<std::int64_t>(kMostPartialBytes / table_bytes, 1);
  plan.parts = std::min(plan.parts, most);
}

/// The plan of a kernel on matrix units; false if there is none.
bool plan_matrix(const Problem& p, KernelId kernel, Platform platform, Plan& plan) {
  const std::int64_t channels = std::max(p.head_dim, p.value_dim);
  const int width = channels <= 32 ? 0 : channels <= 64 ? 1 : 2;
  const int role = kernel == KernelId::forward ? 0 : kernel == KernelId::backward_query ? 1 : 2;
  const bool metal = platform == Platform::metal;
  plan.matrix = true;
  plan.run = 2;
  plan.lanes = 4;
  plan.vector = 8;
  plan.run_axis = p.axes[1].length > 1 ? 1 : 2;
  int most_bytes;  // of the streams, so that several threadgroups share a multiprocessor, or two a core
  if (metal) {
    // Not tuned on hardware: as MLX's own attention, four simdgroups, and half of the 32 KB.
    plan.threads = 128;
    plan.block = width == 2 || role == 2 ? 16 : 32;
    most_bytes = 16 * kKilobyte;
  } else {
    // Measured on an H200. More threadgroups hide more latency until registers spill; long rows of channels have few
    // anyway, and there larger tiles load less.
    constexpr int kGroups[3][3] = {{5, 5, 4}, {5, 4, 3}, {2, 1, 1}};  // up to 32, 64, 128 channels
    // float32 takes twice the registers for what is held, and twice the threadgroup memory.
    constexpr int kFloatGroups[3][3] = {{4, 4, 3}, {3, 3, 2}, {1, 1, 1}};
    plan.threads = width == 2 ? 256 : 128;
    plan.groups = (element_size(p.query_type) == 2 ? kGroups : kFloatGroups)[width][role];
    plan.block = width == 2 && role == 2 ? 16 : 32;
    most_bytes = 36 * kKilobyte;
  }
  for (Stream* s : {&plan.a, &plan.b}) {
    const int step = metal || element_size(s->type) == 4 ? 8 : 16;
    s->width = ceil_div(s->channels, step) * step;
  }
  override_from_environment(plan);
  finish_stream(plan.a, plan);
  finish_stream(plan.b, plan);
  choose_matrix_extent(p, kernel, plan);
  override_from_environment(plan);  // the extent, from which the rest follows
  if (!finish_matrix(p, kernel, most_bytes, plan)) return false;
  override_from_environment(plan);
  check(plan, kernel, most_shared_bytes(platform));
  if (plan.run != 2 || plan.lanes != 4 || plan.vector != 8 || plan.chunk % plan.block != 0) refuse(plan);
  return true;
}

Plan plan_of_family(const Problem& p, KernelId kernel, Target target) {
  const Limits limit = limits(p, kernel, target.platform);
  Plan plan;
  choose_streams(p, kernel, plan);
  if (suits_matrix_units(p, kernel, target) && override_of("matrix") != 0) {
    Plan matrix = plan;
    if (plan_matrix(p, kernel, target.platform, matrix)) return matrix;
  }
  plan.threads = limit.threads;
  plan.run = limit.run;
  plan.groups = limit.groups;
  plan.run_axis = p.axes[1].length > 1 ? 1 : 2;
  choose_lanes(plan, target.platform, limit.channels_per_lane);
  override_from_environment(plan);
  if (!has_tiles(kernel)) return plan;
  finish_stream(plan.a, plan);
  finish_stream(plan.b, plan);
  choose_extent(p, kernel, plan);
  plan.batch = choose_batch(p.axes[2].kernel_size + (plan.run_axis == 2 ? plan.run - 1 : 0), limit.batch);
  choose_chunk(p, kernel, limit, plan);
  override_from_environment(plan);
  check(plan, kernel, limit.shared_bytes);
  return plan;
}

/// Plans are small; these are some thousands of families.
LruCache<Plan>& plans() {
  static auto& cache = *new LruCache<Plan>(2 << 20);  // never destroyed: threads may still ask at exit
  return cache;
}

}  // namespace

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
  for (Axis& axis : p.axes) {  // up to three leading bits: so there are few families, and most lengths of use are such
    const int dropped = std::max(int(std::bit_width(std::uint64_t(axis.length))) - 3, 0);
    axis.length = ((axis.length - 1) >> dropped << dropped) + (std::int64_t(1) << dropped);
  }
  return p;
}

std::string family_key(const Problem& p, KernelId kernel, Target target) {
  std::string key;
  const auto add = [&](auto value) { key.append(reinterpret_cast<const char*>(&value), sizeof value); };
  add(kernel), add(target.platform), add(target.capability), add(target.tf32), add(p.op);
  add(p.heads), add(p.kv_heads), add(p.head_dim), add(p.value_dim);
  for (const Axis& axis : p.axes) {
    add(axis.length), add(axis.kernel_size), add(axis.stride), add(axis.dilation), add(axis.gna_stride);
    add(axis.is_causal);
  }
  add(p.query_type), add(p.key_type), add(p.value_type), add(p.has_rpb), add(p.has_lengths);
  const char* tile = std::getenv("NATTEN_FAST_TILE");
  return tile ? key + tile : key;
}

CacheUsage plan_cache_usage() {
  return plans().usage();
}
void clear_plan_cache() {
  plans().clear();
}

int element_size(FloatType type) {
  return type == FloatType::float32 ? 4 : type == FloatType::float64 ? 8 : 2;
}

int Stream::row_bytes() const {
  return pitch * element_size(type);
}

bool holds_keys(KernelId kernel) {
  return kernel == KernelId::backward_key_value || kernel == KernelId::qk_backward_key ||
         kernel == KernelId::av_backward_value;
}

bool is_fused(KernelId kernel) {
  return kernel == KernelId::forward || kernel == KernelId::backward_query || kernel == KernelId::backward_key_value;
}

bool has_tiles(KernelId kernel) {
  return kernel != KernelId::delta && kernel != KernelId::rpb_sum;
}

int query_classes(const Axis& axis) {
  return static_cast<int>(axis.dilation / std::gcd(axis.stride, axis.dilation));
}

int query_step(const Axis& axis) {
  return static_cast<int>(axis.stride / std::gcd(axis.stride, axis.dilation));
}

int Plan::shared_bytes(KernelId kernel) const {
  const int staged = stage_columns * extent[0] * extent[1] * extent[2] * 4;
  return chunk * bytes_per_position(*this, kernel) + staged;
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
  return (matrix ? "matrix units, " : "") + text(extent[0]) + 'x' + text(extent[1]) + 'x' + text(extent[2]) +
         " positions, " + text(threads) + " threads, " + text(run) + " positions per thread, " + text(lanes) +
         " lanes per position, batches of " + text(batch) + ", chunks of " + text(chunk);
}

Plan plan(const Problem& problem, KernelId kernel, Target target) {
  const Problem family = family_of(problem);
  const std::string key = family_key(family, kernel, target);
  std::optional<Plan> found = plans().find(key);
  if (!found) {
    found = plan_of_family(family, kernel, target);
    plans().insert(key, *found, sizeof(Plan));
  }
  if (has_tiles(kernel)) count_tiles(problem, kernel, *found);
  return *found;
}

}  // namespace natten::fast

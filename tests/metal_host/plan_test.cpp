// What plans choose, without running anything: which kernels run on which matrix instructions, what their text depends
// on, and that every launch fits its device.
#include "fast/plan.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <random>
#include <regex>
#include <set>
#include <string>

namespace natten::fast {
namespace {

constexpr FloatType f16 = FloatType::float16, bf16 = FloatType::bfloat16, f32 = FloatType::float32;
constexpr KernelId kFused[] = {KernelId::forward, KernelId::backward_query, KernelId::backward_key_value};

Problem attention(FloatType type, std::int64_t head_dim, std::int64_t value_dim) {
  Problem p;
  p.rank = 2;
  p.device = DeviceType::gpu;
  p.batch = 1;
  p.heads = p.kv_heads = 4;
  p.head_dim = head_dim;
  p.value_dim = value_dim;
  p.query_type = p.key_type = p.value_type = type;
  p.axes = {Axis{1, 1, 1, 1, 1, false}, Axis{56, 7, 1, 1, 1, false}, Axis{48, 7, 1, 1, 1, false}};
  return p;
}

/// How many of the three fused kernels run on matrix units.
int on_matrix_units(const Problem& p, Target target = Platform::cuda) {
  int count = 0;
  for (const KernelId kernel : kFused) count += plan(p, kernel, target).engine == Engine::matrix;
  return count;
}

TEST(MatrixUnits, TakeHeadDimsFrom8) {
  for (const Platform platform : {Platform::metal, Platform::cuda}) {
    const std::int64_t most = platform == Platform::metal ? 128 : 256;
    for (const FloatType type : {f16, bf16}) {
      for (const std::int64_t dim : {8, 12, 24, 33, 40, 48, 64, 72, 80, 96, 127, 128}) {
        EXPECT_EQ(on_matrix_units(attention(type, dim, dim), platform), 3) << dim;
        EXPECT_EQ(on_matrix_units(attention(type, dim, 136 - dim), platform), 3) << dim;
      }
      for (const std::int64_t dim : {1, 7, 129, 160, 192, 256, 257}) {
        const int expected = dim >= 8 && dim <= most ? 3 : 0;
        EXPECT_EQ(on_matrix_units(attention(type, dim, 64), platform), expected) << dim;
        EXPECT_EQ(on_matrix_units(attention(type, 64, dim), platform), expected) << dim;
        EXPECT_EQ(on_matrix_units(attention(type, dim, dim), platform), expected) << dim;
      }
    }
  }
}

TEST(MatrixUnits, OfAppleTakeFloat32) {
  EXPECT_EQ(on_matrix_units(attention(f32, 64, 64), Platform::metal), 3);
  EXPECT_EQ(on_matrix_units(attention(f32, 128, 128), Platform::metal), 3);
  EXPECT_EQ(on_matrix_units(attention(f32, 64, 64), Platform::cuda), 0);
}

TEST(MatrixUnits, OfNvidiaTakeFloat32WhereMlxRoundsItToo) {
  for (const std::int64_t dim : {8, 12, 64, 128, 192, 256}) {
    EXPECT_EQ(on_matrix_units(attention(f32, dim, dim), {Platform::cuda, 90, true}), dim <= 128 ? 3 : 0) << dim;
    EXPECT_EQ(on_matrix_units(attention(f32, dim, dim), {Platform::cuda, 90, false}), 0) << dim;
  }
}

TEST(MatrixUnits, TakeNoMixtureOfTypes) {
  for (const auto& [query, key, value] :
       {std::array{f16, f16, f32}, {f16, f32, f16}, {f32, f16, f16}, {f16, bf16, f16}, {bf16, bf16, f16}}) {
    Problem p = attention(f16, 64, 64);
    p.query_type = query, p.key_type = key, p.value_type = value;
    for (const Platform platform : {Platform::metal, Platform::cuda}) EXPECT_EQ(on_matrix_units(p, platform), 0);
  }
}

TEST(MatrixUnits, TakeTheGradientOfABias) {
  for (const FloatType type : {f16, bf16, f32}) {
    for (const std::int64_t dim : {8, 32, 64, 80, 128}) {
      Problem p = attention(type, dim, dim);
      p.has_rpb = true;
      for (const Target target : {Target(Platform::metal), Target{Platform::cuda, 80, true}}) {
        EXPECT_EQ(on_matrix_units(p, target), 3) << dim;
        EXPECT_LE(plan(p, KernelId::backward_query, target).shared_bytes(), most_shared_bytes(target.platform)) << dim;
      }
    }
  }
}

TEST(MatrixUnits, TakeEveryWindow) {
  for (const bool is_causal : {false, true}) {
    Problem p = attention(bf16, 32, 32);
    p.kv_heads = 2;
    p.has_lengths = true;
    p.axes = {Axis{20, 4, 2, 3, 1, is_causal}, Axis{56, 7, 1, 1, 3, is_causal}, Axis{48, 48, 1, 1, 1, is_causal}};
    EXPECT_EQ(on_matrix_units(p), 3);
  }
}

/// Coordinates of a position in a region are found exactly up to a size.
TEST(MatrixUnits, LeaveRegionsThatAreTooLargeToMultiplyAdds) {
  Problem p = attention(f16, 64, 64);
  for (Axis& axis : p.axes) axis = {1024, 1024, 1, 1, 1, false};
  EXPECT_EQ(on_matrix_units(p), 0);
}

/// Where queries do not lie at even distances around a circular axis, a bias has no matrix units for the side of keys.
TEST(MatrixUnits, TakeSpansAndCircularAxes) {
  for (const bool has_rpb : {false, true}) {
    for (const std::int64_t stride : {1, 2}) {
      Problem p = attention(f16, 64, 64);
      p.has_rpb = has_rpb;
      p.axes[1].is_circular = true;
      p.axes[1].stride = stride;
      const Engine expected = has_rpb && stride > 1 ? Engine::simt : Engine::matrix;
      EXPECT_EQ(plan(p, KernelId::forward, Platform::cuda).engine, Engine::matrix);
      EXPECT_EQ(plan(p, KernelId::backward_key_value, Platform::cuda).engine, expected);
    }
  }
}

TEST(MatrixUnits, HaveNoKernelsOfTheSplitForm) {
  Problem qk = attention(f16, 64, 0), av = attention(f16, 0, 64);
  qk.op = Op::qk;
  av.op = Op::av;
  for (const KernelId kernel : {KernelId::qk, KernelId::qk_backward_query, KernelId::qk_backward_key}) {
    EXPECT_EQ(plan(qk, kernel, Platform::cuda).engine, Engine::simt);
  }
  for (const KernelId kernel : {KernelId::av, KernelId::av_backward_attn, KernelId::av_backward_value}) {
    EXPECT_EQ(plan(av, kernel, Platform::cuda).engine, Engine::simt);
  }
}

TEST(MatrixUnits, CanBeSwitchedOff) {
  setenv("NATTEN_FAST_TILE", "matrix=0", 1);
  EXPECT_EQ(on_matrix_units(attention(f16, 64, 64)), 0);
  unsetenv("NATTEN_FAST_TILE");
  EXPECT_EQ(on_matrix_units(attention(f16, 64, 64)), 3);
}

/// A thread has a bit for each sum of a block, and the gradient of a bias a lane for each key of one.
TEST(MatrixUnits, RefuseBlocksTooLargeForThem) {
  Problem p = attention(f16, 32, 32);
  p.axes[1] = p.axes[2] = {56, 7, 1, 1, 1, false};
  const auto is_refused = [&](const char* tile, KernelId kernel) {
    setenv("NATTEN_FAST_TILE", tile, 1);
    bool refused = false;
    try {
      plan(p, kernel, Platform::cuda);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    unsetenv("NATTEN_FAST_TILE");
    return refused;
  };
  EXPECT_FALSE(is_refused("block=64", KernelId::forward));
  EXPECT_TRUE(is_refused("block=128", KernelId::forward));
  p.has_rpb = true;
  EXPECT_FALSE(is_refused("block=32", KernelId::backward_query));
  EXPECT_TRUE(is_refused("block=64", KernelId::backward_query));
  p.axes[1] = p.axes[2] = {56, 25, 1, 1, 1, false};  // a block of 32 does not fit beside such tables
  EXPECT_FALSE(is_refused("threads=128", KernelId::backward_query));
  EXPECT_TRUE(is_refused("block=32", KernelId::backward_query));
}

/// The windows that docs/laboratory/fast-tier.md names: tables of the simdgroups and the rest fit in threadgroup
/// memory.
TEST(MatrixUnits, SumTheGradientOfABiasAsFarAsTablesFit) {
  const auto engine_of = [](FloatType type, std::int64_t dim, std::int64_t kernel_size, Target target) {
    Problem p = attention(type, dim, dim);
    p.has_rpb = true;
    p.axes[1] = p.axes[2] = {56, kernel_size, 1, 1, 1, false};
    return plan(p, KernelId::backward_query, target).engine;
  };
  const struct {
    Platform platform;
    FloatType type;
    std::int64_t dim, kernel_size;
  } limits[] = {{Platform::cuda, f16, 8, 25},  {Platform::cuda, f16, 32, 25},  {Platform::cuda, f16, 256, 20},
                {Platform::metal, f16, 8, 19}, {Platform::metal, f16, 32, 19}, {Platform::metal, f32, 128, 12}};
  for (const auto& [platform, type, dim, kernel_size] : limits) {
    EXPECT_EQ(engine_of(type, dim, kernel_size, platform), Engine::matrix) << dim << ' ' << kernel_size;
    EXPECT_EQ(engine_of(type, dim, kernel_size + 1, platform), Engine::simt) << dim << ' ' << kernel_size;
  }
}

/// Tables far larger than what a tile meets.
TEST(MatrixUnits, LeaveTheGradientOfABiasOfFarTooLongCausalWindows) {
  Problem p = attention(f16, 32, 32);
  p.has_rpb = true;
  p.axes[2] = {16, 1000, 1, 1, 1, true};
  EXPECT_EQ(plan(p, KernelId::backward_query, Platform::cuda).engine, Engine::simt);
  EXPECT_EQ(plan(p, KernelId::backward_key_value, Platform::cuda).engine, Engine::matrix);
}

// --- Hopper's warpgroup instructions ---

const Target kHopper{Platform::cuda, 90};

Plan forward_on_hopper(const Problem& p) {
  return plan(p, KernelId::forward, kHopper);
}

/// With windows for which they pay.
Problem long_attention(FloatType type, std::int64_t head_dim, std::int64_t value_dim, std::int64_t kernel_size = 9) {
  Problem p = attention(type, head_dim, value_dim);
  for (const int a : {1, 2}) p.axes[a].kernel_size = kernel_size;
  return p;
}

TEST(Warpgroups, AreThoseOfComputeCapability9) {
  const Problem p = long_attention(f16, 64, 64);
  EXPECT_GT(forward_on_hopper(p).warpgroups, 0);
  EXPECT_EQ(forward_on_hopper(p).engine, Engine::warpgroup);
  for (const int capability : {80, 89, 100, 120}) {
    EXPECT_EQ(plan(p, KernelId::forward, {Platform::cuda, capability}).warpgroups, 0) << capability;
  }
  EXPECT_EQ(plan(p, KernelId::forward, Platform::metal).warpgroups, 0);
}

/// How many of the three fused kernels run on warpgroup instructions.
int on_warpgroups(const Problem& p) {
  int count = 0;
  for (const KernelId kernel : kFused) count += plan(p, kernel, kHopper).engine == Engine::warpgroup;
  return count;
}

TEST(Warpgroups, TakeHalfTypes) {
  for (const FloatType type : {f16, bf16}) {
    for (const std::int64_t dim : {40, 48, 64, 72, 80, 96, 120, 128}) {
      EXPECT_EQ(on_warpgroups(long_attention(type, dim, dim)), 3) << dim;
      EXPECT_EQ(on_warpgroups(long_attention(type, dim, 144 - dim)), 3) << dim;
    }
    for (const std::int64_t dim : {136, 144, 192, 256}) {
      EXPECT_EQ(on_warpgroups(long_attention(type, dim, dim)), 3) << dim;
      EXPECT_EQ(on_warpgroups(long_attention(type, 64, dim)), 3) << dim;
      EXPECT_EQ(on_warpgroups(long_attention(type, dim, 64)), 3) << dim;
    }
    for (const std::int64_t dim : {12, 36, 100, 264}) {
      EXPECT_EQ(on_warpgroups(long_attention(type, dim, 64)), 0) << dim;
      EXPECT_EQ(on_warpgroups(long_attention(type, 64, dim)), 0) << dim;
    }
  }
  EXPECT_EQ(on_warpgroups(long_attention(f32, 64, 64)), 0);
}

TEST(Warpgroups, TakeABiasWhereItPays) {
  const auto biased = [](Problem p) {
    p.has_rpb = true;
    return p;
  };
  EXPECT_EQ(on_warpgroups(biased(long_attention(f16, 64, 64))), 3);
  EXPECT_EQ(on_warpgroups(biased(long_attention(bf16, 96, 96))), 2);  // gradients alone
  EXPECT_EQ(on_warpgroups(biased(long_attention(f16, 32, 32))), 1);   // that of key and value
  EXPECT_EQ(on_warpgroups(biased(attention(f16, 64, 64))), 1);
  EXPECT_EQ(on_warpgroups(biased(long_attention(f16, 256, 256))), 3);
  // Tables of warps: of one warpgroup where there is no room for those of two, and of none.
  const auto query_gradient = [&](std::int64_t kernel_size) {
    return plan(biased(long_attention(f16, 64, 64, kernel_size)), KernelId::backward_query, kHopper);
  };
  EXPECT_EQ(query_gradient(21).warpgroups, 2);
  EXPECT_EQ(query_gradient(35).warpgroups, 1);
  EXPECT_LE(query_gradient(35).dynamic_bytes(), 227 * 1024);
  EXPECT_EQ(query_gradient(55).warpgroups, 0);
  // Streamed queries that do not lie at even distances.
  Problem circular = biased(long_attention(f16, 64, 64));
  circular.axes[1].is_circular = true;
  EXPECT_EQ(on_warpgroups(circular), 3);
  circular.axes[1].stride = 2;
  EXPECT_EQ(on_warpgroups(circular), 2);
}

TEST(Warpgroups, RefuseBlocksThatBodiesDoNotTake) {
  Problem p = long_attention(f16, 64, 64);
  const auto is_refused = [&](const char* tile, KernelId kernel) {
    setenv("NATTEN_FAST_TILE", tile, 1);
    bool refused = false;
    try {
      fast::plan(p, kernel, kHopper);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    unsetenv("NATTEN_FAST_TILE");
    return refused;
  };
  EXPECT_TRUE(is_refused("warpgroup=1,block=24", KernelId::forward));
  EXPECT_FALSE(is_refused("warpgroup=1,block=48", KernelId::backward_query));
  p.has_rpb = true;
  EXPECT_FALSE(is_refused("warpgroup=1,block=48", KernelId::backward_key_value));
  EXPECT_TRUE(is_refused("warpgroup=1,block=48", KernelId::backward_query));
}

/// Sums of both gradients, or of one after the other, with what is held in shared memory.
TEST(Warpgroups, SumGradientsOfManyChannels) {
  for (const std::int64_t dim : {64, 128, 160, 192, 256}) {
    const Plan queries = plan(long_attention(f16, dim, dim), KernelId::backward_query, kHopper);
    const Plan keys = plan(long_attention(f16, dim, dim), KernelId::backward_key_value, kHopper);
    EXPECT_EQ(queries.hold_shared, dim > 128 ? 2 : 0) << dim;
    EXPECT_EQ(queries.wide, 0) << dim;
    EXPECT_EQ(keys.wide, dim > 160) << dim;
    EXPECT_LE(std::max(queries.dynamic_bytes(), keys.dynamic_bytes()), 227 * 1024) << dim;
  }
}

/// Held keys and values leave registers to the sums of their gradients where they are long.
TEST(Warpgroups, HoldLongKeysInSharedMemory) {
  for (const std::int64_t dim : {48, 64, 80, 128}) {
    const Problem p = long_attention(f16, dim, dim);
    EXPECT_EQ(plan(p, KernelId::backward_query, kHopper).hold_shared, 0) << dim;
    const Plan keys = plan(p, KernelId::backward_key_value, kHopper);
    EXPECT_EQ(keys.hold_shared, dim > 64 ? 2 : 0) << dim;
    EXPECT_EQ(keys.block, 64) << dim;
  }
  for (const std::int64_t dim : {64, 128, 144, 256}) {  // and so do queries of the forward
    EXPECT_EQ(plan(long_attention(f16, dim, dim), KernelId::forward, kHopper).hold_shared, dim > 128) << dim;
  }
}

TEST(Warpgroups, LeaveWhatIsSlowerToTheOtherEngine) {
  Problem p = attention(f16, 64, 64);
  p.axes[1] = {1, 1, 1, 1, 1, false};
  p.axes[2] = {1000, 31, 1, 1, 1, false};
  EXPECT_EQ(on_warpgroups(p), 2);  // gradients alone
  p.axes[2].kernel_size = 63;
  EXPECT_EQ(on_warpgroups(p), 3);
  p.axes[2].kernel_size = 7;
  EXPECT_EQ(on_warpgroups(p), 0);
  for (const std::int64_t dim : {64, 128}) {
    EXPECT_EQ(on_warpgroups(attention(f16, dim, dim)), 2) << dim;  // gradients alone
    EXPECT_EQ(on_warpgroups(long_attention(f16, dim, dim)), 3) << dim;
  }
  EXPECT_EQ(on_warpgroups(attention(f16, 256, 256)), 3);
  EXPECT_EQ(on_warpgroups(long_attention(f16, 32, 32, 21)), 0);
  EXPECT_EQ(on_warpgroups(long_attention(f16, 32, 32, 33)), 3);
  p = attention(f16, 32, 32);
  EXPECT_EQ(forward_on_hopper(p).warpgroups, 0);
  EXPECT_EQ(forward_on_hopper(p).engine, Engine::matrix);
  setenv("NATTEN_FAST_TILE", "warpgroup=1", 1);
  EXPECT_GT(forward_on_hopper(p).warpgroups, 0);
  setenv("NATTEN_FAST_TILE", "warpgroup=0", 1);
  EXPECT_EQ(forward_on_hopper(long_attention(f16, 64, 64)).warpgroups, 0);
  unsetenv("NATTEN_FAST_TILE");
}

/// Boxes of 64 positions whose coordinates on all axes have a channel of the mask each.
TEST(Warpgroups, HoldBoxesThatTheMaskCanTell) {
  for (const auto& lengths : {std::array<std::int64_t, 3>{1, 1, 500},
                              {1, 500, 1},
                              {500, 1, 1},
                              {1, 40, 50},
                              {40, 1, 50},
                              {40, 50, 1},
                              {20, 30, 40},
                              {2, 40, 50},
                              {40, 2, 50},
                              {40, 50, 2},
                              {2, 2, 500}}) {
    Problem p = attention(f16, 64, 64);
    int axes = 0;
    for (int a = 0; a < kAxes; ++a) {
      p.axes[a] = {lengths[a], std::min<std::int64_t>(lengths[a], 10), 1, 1, 1, false};
      axes += lengths[a] > 1;
    }
    for (const KernelId kernel : kFused) {
      setenv("NATTEN_FAST_TILE", "warpgroup=1", 1);
      const Plan plan = fast::plan(p, kernel, kHopper);
      unsetenv("NATTEN_FAST_TILE");
      const std::string what = plan.describe();
      if (plan.warpgroups == 0) {  // no such box has two channels for each of three axes
        EXPECT_EQ(axes, 3) << what;
        continue;
      }
      int positions = 1, channels = 0;
      for (int a = 0; a < kAxes; ++a) {
        positions *= plan.warpgroup_extent[a];
        channels += plan.mask_channels[a];
        if (lengths[a] == 1) EXPECT_EQ(plan.extent[a], 1) << what;
        if (a == plan.split_axis) EXPECT_GT(lengths[a], 1) << what;
        EXPECT_EQ(plan.extent[a], plan.warpgroup_extent[a] * (a == plan.split_axis ? plan.warpgroups : 1)) << what;
      }
      EXPECT_EQ(positions, 64) << what;
      EXPECT_EQ(plan.mask, axes == 1 ? MaskKind::row : MaskKind::units) << what;
      if (axes > 1) EXPECT_LE(channels, 16) << what;
    }
  }
}

TEST(Warpgroups, TakeSpansAndCircularAxes) {
  const Problem p = long_attention(f16, 64, 64);
  Problem circular = p, span = p;
  circular.axes[1].is_circular = true;
  span.spans = {whole(p.axes[0]), {10, 20, 7, 26}, whole(p.axes[2])};
  EXPECT_EQ(on_warpgroups(circular), 3);
  EXPECT_EQ(on_warpgroups(nearest(span)), 3);
  circular.has_rpb = span.has_rpb = true;
  EXPECT_EQ(on_warpgroups(circular), 3);
  EXPECT_EQ(on_warpgroups(nearest(span)), 3);
}

/// The table of penalties has a place for each position that a tile meets.
TEST(Warpgroups, HavePenaltiesForAllThatATileMeets) {
  std::mt19937 engine(2);
  const auto draw = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine); };
  setenv("NATTEN_FAST_TILE", "warpgroup=1", 1);
  int tiles = 0;
  for (int i = 0; i < 2000; ++i) {
    Problem p = attention(f16, 32, 32);
    p.spans.emplace();
    for (int a = 0; a < kAxes; ++a) {
      Axis axis{1, draw(1, 9), 1, draw(1, 3), 1, false};
      const int places = static_cast<int>(axis.kernel_size) + draw(0, 30);
      axis.length = axis.dilation * places;
      const int kind = draw(0, 2);
      axis.is_causal = kind == 1;
      axis.is_circular = kind == 2;
      axis.stride = draw(0, 1) == 1 ? draw(1, static_cast<int>(axis.kernel_size)) : 1;
      axis.gna_stride = draw(0, 1) == 1 ? draw(1, static_cast<int>(axis.kernel_size)) : 1;
      if (axis.is_circular) axis.gna_stride = std::gcd<std::int64_t>(axis.gna_stride, places);
      if (!axis.is_circular) axis.length += draw(0, static_cast<int>(axis.dilation) - 1);
      AxisSpan span{draw(0, static_cast<int>(axis.length) - 1), 1, 0, axis.length};
      span.query_rows = draw(1, static_cast<int>(axis.length - span.query_start));
      const Range<std::int64_t> needed = needed_keys(axis, span);
      if (draw(0, 1) == 1) {
        if (axis.is_circular && needed.end - needed.start >= axis.length) {
          span.key_start = draw(0, static_cast<int>(axis.length) - 1);
        } else {
          span.key_start = needed.start;
          span.key_rows = std::max<std::int64_t>(needed.end - needed.start, 1);
        }
      }
      if (draw(0, 1) == 1) span = whole(axis);
      p.axes[a] = axis;
      (*p.spans)[a] = span;
    }
    if (p.queries() == 0) continue;
    p = nearest(p);
    for (const KernelId kernel : kFused) {
      const Plan plan = fast::plan(p, kernel, kHopper);
      if (plan.engine != Engine::warpgroup) continue;
      const bool keys = row_of(kernel).holds_keys();
      EXPECT_NE(plan.mask, MaskKind::none);
      for (int a = 0; a < kAxes; ++a) {
        const AxisConstants c = axis_constants(p.axes[a]);
        const AxisRows rows = rows_of(p, a);
        for (int g = 0; g < (keys ? c.axis.dilation : c.classes); ++g) {
          if (g >= (keys ? rows.keys : rows.queries)) continue;
          const AxisGroup group = keys ? group_of_keys(c, rows, g) : group_of_queries(c, rows, g);
          const int positions = keys ? group.keys : group.queries;
          const auto met_by = [&](int m) { return keys ? queries_of_key(c, group, m) : keys_of_query(c, group, m); };
          for (int first = 0; first < positions; first += plan.extent[a]) {
            const int last = std::min(first + plan.extent[a], positions) - 1;
            ++tiles;
            const Range<int> region{met_by(first).start, met_by(last).end};
            EXPECT_LE(region.end - region.start, plan.reach[a]) << plan.describe();
            if (!c.axis.is_circular || region.end <= region.start) continue;
            // As many turns as wrapped() and without_turns() take away (bodies/tensor.h).
            const int period = keys ? group.queries : group.places;
            EXPECT_GE(region.start, -3 * period) << plan.describe();
            EXPECT_LE(region.end, 4 * period) << plan.describe();
            const int start = (region.start % period + period) % period;
            EXPECT_LE(start + region.end - region.start, 4 * period) << plan.describe();
          }
        }
      }
    }
  }
  unsetenv("NATTEN_FAST_TILE");
  EXPECT_GT(tiles, 10000);
}

TEST(Warpgroups, MaskNothingWhereWindowsCoincide) {
  Problem p = attention(f16, 128, 128);
  p.axes[1] = p.axes[2] = {256, 64, 1, 1, 16, false};
  EXPECT_EQ(forward_on_hopper(p).mask, MaskKind::none);
  p.axes[2].gna_stride = 12;  // no multiple of a tile
  EXPECT_EQ(forward_on_hopper(p).mask, MaskKind::units);
  p.axes[2].gna_stride = 16;
  p.axes[2].is_causal = true;
  EXPECT_EQ(forward_on_hopper(p).mask, MaskKind::units);
  p.axes[2] = {256, 63, 1, 1, 16, false};  // blocks of keys do not divide it
  EXPECT_EQ(forward_on_hopper(p).mask, MaskKind::units);
  p.axes[1].is_circular = true;
  p.axes[2] = {256, 64, 1, 1, 16, false, true};
  EXPECT_EQ(forward_on_hopper(p).mask, MaskKind::none);
  p.axes[1].is_circular = p.axes[2].is_circular = false;
  p.spans = {whole(p.axes[0]), {8, 64, 0, 128}, whole(p.axes[2])};  // tiles begin between those that share a window
  EXPECT_EQ(forward_on_hopper(p).mask, MaskKind::units);
}

// --- What is in the text, and what is not ---

TEST(Descriptions, HaveNoPluralOfOne) {
  const std::regex plural_of_one(R"(\b1 \w+s\b)");
  std::string all;
  for (const std::int64_t dim : {1, 8, 64}) {
    Problem p = attention(f16, dim, dim), row = p, step = p;
    row.axes[1] = {1, 1, 1, 1, 1, false};
    row.axes[2] = {4096, 127, 1, 1, 1, false};
    step.axes = row.axes;
    step.spans = {whole(step.axes[0]), whole(step.axes[1]), {4095, 1, 0, 4096}};
    for (const Problem& problem : {p, row, nearest(step)}) {
      for (const KernelId kernel : kFused) all += plan(problem, kernel, kHopper).describe() + '\n';
    }
  }
  for (const char* told : {"1 lane per", "1 position per", "1 warpgroup,", "one position,"}) {
    EXPECT_NE(all.find(told), std::string::npos) << told << " is nowhere in\n" << all;
  }
  EXPECT_FALSE(std::regex_search(all, plural_of_one)) << all;
}

TEST(Text, HasNeitherScaleNorBatchNorNumberOfHeads) {
  for (const Platform platform : {Platform::metal, Platform::cuda}) {
    for (const KernelId kernel : kFused) {
      for (const FloatType type : {f16, f32}) {
        Problem p = attention(type, 64, 64);
        p.has_rpb = true;
        const KernelText text = kernel_text(p, kernel, platform);
        Problem other = p;
        other.scale = 0.37;
        other.batch = 3;
        other.heads *= 5;
        other.kv_heads *= 5;
        EXPECT_EQ(kernel_text(other, kernel, platform).name, text.name);
        EXPECT_EQ(kernel_text(other, kernel, platform).header, text.header);
        other.kv_heads /= 2;
        EXPECT_NE(kernel_text(other, kernel, platform).name, text.name);
      }
    }
  }
}

/// MLX keeps every kernel that it compiled, so many lengths must have few of them.
TEST(Text, OfManyLengthsIsAlike) {
  for (const Platform platform : {Platform::metal, Platform::cuda}) {
    for (const FloatType type : {f16, f32}) {
      std::set<std::string> names_1d, names_2d;
      for (std::int64_t length = 63; length < 10063; length += 4) {
        Problem p = attention(type, 64, 64);
        p.axes[1] = {1, 1, 1, 1, 1, false};
        p.axes[2] = {length, 63, 1, 1, 1, false};
        names_1d.insert(kernel_text(p, KernelId::forward, platform).name);
        p = attention(type, 64, 64);
        p.axes[1].length = 7 + length % 97;
        p.axes[2].length = 7 + length % 103;
        names_2d.insert(kernel_text(p, KernelId::forward, platform).name);
      }
      EXPECT_LE(names_1d.size(), 16u);
      EXPECT_LE(names_2d.size(), 64u);
    }
  }
}

TEST(Text, IsNamedAfterTheGpuThatItIsCompiledFor) {
  const Problem p = attention(f16, 64, 64);
  EXPECT_NE(kernel_text(p, KernelId::forward, {Platform::cuda, 80}).name,
            kernel_text(p, KernelId::forward, {Platform::cuda, 90}).name);
}

TEST(Objections, NameAGpuThatIsTooOld) {
  const Problem p = attention(f32, 64, 64);
  for (const int capability : {61, 70, 75}) {
    const auto reason = objection(p, {Platform::cuda, capability});
    ASSERT_TRUE(reason.has_value()) << capability;
    EXPECT_NE(reason->find(std::to_string(capability / 10) + "." + std::to_string(capability % 10)), std::string::npos);
    EXPECT_EQ(objection(Target{Platform::cuda, capability}), reason);
  }
  for (const int capability : {80, 86, 89, 90, 100}) {
    EXPECT_EQ(objection(p, {Platform::cuda, capability}), std::nullopt);
  }
}

// --- Every plan fits its device, or is refused with a reason ---

/// What launches of a kernel need of any GPU of the platform.
void expect_fits(const Problem& p, KernelId kernel, Target target) {
  constexpr std::int64_t kMost = std::numeric_limits<int>::max();
  const Plan plan = fast::plan(p, kernel, target);
  const KernelLaunch launch = kernel_launch(p, kernel, target);
  const std::string what = std::string(kernel_name(kernel)) + " on platform " +
                           std::to_string(static_cast<int>(target.platform)) + ": " + plan.describe();
  EXPECT_LE(launch.shared_bytes, target.platform == Platform::metal ? 32 << 10 : 48 << 10) << what;
  EXPECT_LE(launch.dynamic_bytes, plan.engine == Engine::warpgroup ? (227 << 10) / plan.groups : 0) << what;
  EXPECT_LE(launch.threadgroup[0], target.platform == Platform::metal ? 512 : 1024) << what;
  EXPECT_EQ(launch.threadgroup[0] % 32, 0) << what;
  EXPECT_GT(launch.grid[0], 0) << what;
  EXPECT_EQ(launch.grid[0] % launch.threadgroup[0], 0) << what;
  EXPECT_GT(launch.grid[1], 0) << what;
  EXPECT_LE(launch.grid[1], 65535) << what;
  if (row_of(kernel).has_tiles()) {
    EXPECT_GE(plan.chunk, 1) << what;
    EXPECT_GE(plan.batch, 1) << what;
    EXPECT_EQ(plan.positions() * plan.slots * plan.lanes, (plan.threads - plan.producers) * plan.run) << what;
    EXPECT_EQ(plan.extent[plan.run_axis] % plan.run, 0) << what;
    EXPECT_EQ(launch.grid[0] / plan.threads, plan.parts) << what;
    if (plan.repeat > 1 && plan.stage_columns == 0)
      EXPECT_GE(plan.parts * plan.repeat, plan.tile_count() * p.batch) << what;
  }
  for (const ArraySpec& output : launch.outputs) {
    if (output.name != "na_partials") continue;
    std::int64_t bytes = 4;
    for (const std::int64_t length : output.shape) {
      EXPECT_LE(length, kMost) << what;
      bytes *= length;
    }
    EXPECT_LE(bytes, std::int64_t(256) << 20) << what;
  }
}

/// A part of an axis, which may be one row, with the keys that its windows need or some more.
template <class Draw>
AxisSpan random_span(const Axis& axis, Draw draw) {
  AxisSpan span = whole(axis);
  span.query_start = axis.length * draw({0, 0, 1, 3, 7}) / 8;
  span.query_rows = std::min(axis.length - span.query_start, draw({1, 1, 4, 60, 100000}));
  const Range<std::int64_t> needed = needed_keys(axis, span);
  const std::int64_t rows = needed.end - needed.start;
  if (draw({0, 1}) == 0 || rows < 1 || rows > axis.length) return span;
  span.key_start = needed.start;
  span.key_rows = rows;
  return span;
}

TEST(Plans, FitOrAreRefused) {
  int served = 0, refused = 0;
  const auto visit = [&](const Problem& attention) {
    for (const Op op : {Op::attention, Op::qk, Op::av}) {
      Problem p = attention;
      p.op = op;
      if (op == Op::qk) p.value_dim = 0;
      if (op == Op::av) p.head_dim = 0, p.has_rpb = false;
      if (op != Op::attention) p.extra_tokens = 0;
      for (const Target& target :
           {Target(Platform::metal), Target(Platform::cuda), kHopper, Target{Platform::cuda, 90, true}}) {
        if (const auto reason = objection(p, target)) {
          EXPECT_FALSE(reason->empty());
          ++refused;
          continue;
        }
        ++served;
        for (const KernelId kernel : kernels_of(p, Role::forward)) expect_fits(p, kernel, target);
        for (const KernelId kernel : kernels_of(p, Role::backward)) expect_fits(p, kernel, target);
      }
    }
  };
  for (int rank = 1; rank <= 3; ++rank) {
    for (const std::int64_t kernel_size : {1, 2, 3, 5, 7, 8, 13, 16, 31, 63, 64, 127, 255, 511, 1024, 2048}) {
      for (const std::int64_t dim :
           {1, 3, 4, 7, 8, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 511, 512}) {
        for (int option = 0; option < 6; ++option) {
          Problem p = attention(option % 3 == 0 ? f32 : option % 3 == 1 ? f16 : bf16, dim, option == 4 ? 512 : dim);
          p.rank = rank;
          p.axes.fill({1, 1, 1, 1, 1, false});
          for (int a = kAxes - rank; a < kAxes; ++a) {
            const std::int64_t size = option == 5 && a != 2 ? 1 + kernel_size / 3 : kernel_size;
            const std::int64_t dilation = option == 2 ? 3 : 1;
            p.axes[a] = {size * dilation + (option == 1 ? 4099 : option == 3 ? 0 : 37), size, 1, dilation, 1, false};
          }
          p.axes[2].is_causal = option == 1;
          p.axes[2].stride = option == 2 ? (kernel_size + 1) / 2 : 1;
          p.axes[2].gna_stride = option == 4 ? kernel_size : 1;
          p.has_rpb = option != 3;
          p.has_lengths = option == 5;
          p.kv_heads = option == 0 ? 1 : 4;
          p.batch = option == 4 ? 64 : 1;
          if (option == 2) p.query_type = f32;
          visit(p);
        }
      }
    }
  }
  // Any combination of anything.
  std::mt19937 engine(1);
  const auto draw = [&](std::initializer_list<std::int64_t> values) {
    return values.begin()[std::uniform_int_distribution<std::size_t>(0, values.size() - 1)(engine)];
  };
  const FloatType types[] = {f32, f16, bf16};
  for (int i = 0; i < 3000; ++i) {
    Problem p = attention(types[draw({0, 1, 2})], draw({1, 7, 8, 12, 33, 64, 80, 128, 255, 512}),
                          draw({1, 8, 16, 40, 64, 96, 128, 200, 512}));
    if (draw({0, 0, 1}) == 1) p.key_type = types[draw({0, 1, 2})];
    p.rank = static_cast<int>(draw({1, 2, 3}));
    p.axes.fill({1, 1, 1, 1, 1, false});
    for (int a = kAxes - p.rank; a < kAxes; ++a) {
      const std::int64_t size = draw({1, 2, 3, 4, 7, 11, 24, 31, 80, 333, 2048}), dilation = draw({1, 1, 2, 5});
      p.axes[a] = {size * dilation + draw({0, 1, 5, 100, 5000}), size, 1, dilation, 1, draw({0, 1}) == 1};
      (draw({0, 1}) == 1 ? p.axes[a].stride : p.axes[a].gna_stride) = std::min(size, draw({1, 1, 2, 16, 300}));
    }
    p.has_rpb = draw({0, 1}) == 1;
    p.has_lengths = draw({0, 1}) == 1;
    p.heads = draw({1, 4, 24, 60000});
    p.kv_heads = draw({0, 1}) == 1 ? p.heads : 1;
    p.batch = draw({1, 3, 64});
    visit(p);
    // The same with circular axes, parts of axes, and tokens that all queries attend.
    if (draw({0, 1}) == 1) p.spans.emplace();
    for (int a = 0; a < kAxes; ++a) {
      Axis& axis = p.axes[a];
      axis.is_circular = a >= kAxes - p.rank && !axis.is_causal && draw({0, 1}) == 1;
      if (axis.is_circular) {
        const std::int64_t places = axis.length / axis.dilation;
        axis.length = axis.dilation * places;
        axis.gna_stride = std::gcd(axis.gna_stride, places);
      }
      if (p.spans) (*p.spans)[a] = a >= kAxes - p.rank ? random_span(axis, draw) : whole(axis);
    }
    p.extra_tokens = draw({0, 0, 1, 64, 5000});
    if (p.queries() > 0) visit(nearest(p));
  }
  EXPECT_GT(served, 100000);
  EXPECT_GT(refused, 0);
}

/// Calls whose gradient of query once overfilled threadgroup memory, and one whose partial sums took 32.8 GB.
TEST(Plans, ServeTheGradientsOfABias) {
  Problem p = attention(f32, 128, 0);
  p.op = Op::qk;
  p.has_rpb = true;
  const auto axes = [](std::int64_t kernel_size, int rank, std::int64_t length) {
    std::array<Axis, kAxes> all;
    all.fill({1, 1, 1, 1, 1, false});
    for (int a = kAxes - rank; a < kAxes; ++a) all[a] = {length, kernel_size, 1, 1, 1, false};
    return all;
  };
  p.axes = axes(7, 1, 4096);
  EXPECT_EQ(objection(p, Platform::cuda), std::nullopt);
  p.axes = axes(63, 2, 256);
  EXPECT_EQ(objection(p, Platform::cuda), std::nullopt);
  p.axes = axes(31, 1, 4096);
  p.query_type = p.key_type = p.value_type = f16;
  EXPECT_EQ(objection(p, Platform::cuda), std::nullopt);

  p = attention(f32, 64, 64);
  p.has_rpb = true;
  p.batch = 8;
  p.heads = p.kv_heads = 16;
  p.axes = axes(63, 2, 512);
  EXPECT_EQ(objection(p, Platform::cuda), std::nullopt);
  const Plan plan = fast::plan(p, KernelId::backward_query, Platform::cuda);
  EXPECT_LT(plan.parts, plan.tile_count() * p.batch);
}

}  // namespace
}  // namespace natten::fast

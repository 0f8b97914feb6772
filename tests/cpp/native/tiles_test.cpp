// The tiled backward and split kernels where their tiles, pieces and parts end: lengths around multiples of a vector,
// kernels around the slots that fit the registers, every head dimension class, rows longer than one part.
#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "every_target.h"
#include "native/cpu/axis_plan.h"
#include "native/cpu/scratch.h"
#include "native/cpu/tile_tasks.h"

namespace natten::cpu::testing {
namespace {

template <class T, std::size_t N>
T one_of(Random& random, const T (&values)[N]) {
  return values[pick(random, 0, N - 1)];
}

/// A problem of one rank, its last axis as long as a tile or two and one token more or less.
Problem boundary_problem(Random& random, int rank) {
  static constexpr std::int64_t kLengths[] = {7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49};
  static constexpr std::int64_t kKernels[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15};
  static constexpr std::int64_t kDims[] = {1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 48, 64, 65};
  Problem p;
  p.rank = rank;
  p.batch = 1;
  p.kv_heads = pick(random, 1, 2);
  p.heads = p.kv_heads * pick(random, 1, 2);
  p.head_dim = one_of(random, kDims);
  p.value_dim = chance(random, 0.7) ? p.head_dim : one_of(random, kDims);
  p.scale = 1 / std::sqrt(static_cast<double>(p.head_dim));
  p.axes.fill(Axis{1, 1, 1, 1, 1, false});
  for (int a = kAxes - rank; a < kAxes; ++a) {
    Axis& axis = p.axes[a];
    axis.length = a == 2 ? one_of(random, kLengths) : pick(random, 1, rank == 3 ? 5 : 12);
    axis.kernel_size = std::min(a == 2 ? one_of(random, kKernels) : pick(random, 1, rank == 3 ? 3 : 9), axis.length);
    if (chance(random, 0.2)) axis.dilation = pick(random, 1, axis.length / axis.kernel_size);
    if (chance(random, 0.15)) axis.stride = pick(random, 1, axis.kernel_size);
    if (axis.stride == 1 && chance(random, 0.15)) axis.gna_stride = pick(random, 1, axis.kernel_size);
    axis.is_causal = chance(random, 0.2);
  }
  p.has_rpb = chance(random, 0.3);
  p.has_lengths = chance(random, 0.15);
  return p;
}

Problem one_axis(std::int64_t length, std::int64_t kernel_size, std::int64_t dim, std::int64_t dilation = 1,
                 bool is_causal = false) {
  Problem p = plain_problem(1, 1, dim);
  p.axes[2] = {length, kernel_size, 1, dilation, 1, is_causal};
  p.has_rpb = true;
  return p;
}

class Tiles : public EveryTarget {
 protected:
  static void run_case(std::uint64_t seed, const Problem& problem) {
    run(seed, problem, {&KernelCase::run_attention, &KernelCase::run_split});
  }
};

TEST_P(Tiles, Boundaries) {
  const std::uint64_t count = cases(90);
  for (std::uint64_t seed = 0; seed < count && !HasFailure(); ++seed) {
    Random random(seed);
    run_case(seed, boundary_problem(random, 1 + static_cast<int>(seed % 3)));
  }
}

TEST_P(Tiles, LongKernels) {
  for (const std::int64_t kernel_size : {26, 31, 63, 64, 65, 127}) {
    run_case(kernel_size, one_axis(150, kernel_size, 9));
    run_case(kernel_size, one_axis(150, kernel_size, 9, 1, true));
    if (HasFailure()) return;
  }
}

// Windows longer than the keys that stay in the cache, rows of several parts, heads that share keys, rows of windows.
TEST_P(Tiles, DenseBlocks) {
  run_case(1, one_axis(700, 300, 3));
  run_case(2, one_axis(1100, 30, 3, 1, true));
  Problem p = one_axis(60, 26, 20, 2);
  p.rank = 2;
  p.heads = 2;
  p.axes[1] = {5, 1, 1, 2, 1, false};
  run_case(3, p);
  p.axes[2] = {60, 26, 5, 1, 1, false};
  run_case(4, p);
}

/// One array of a head of 8 channels, and what a NaN in it does to others.
class Poisoned {
 public:
  explicit Poisoned(const Problem& p) : p_(p), tokens_(p.axes[2].length) {}

  static constexpr std::int64_t kDim = 8, kPlace = 60;

  Tensor tensor(std::vector<float>& values, std::int64_t dim = kDim) const {
    return {values.data(), {tokens_ * dim, tokens_ * dim, tokens_ * dim, dim, dim}, FloatType::float32};
  }
  std::vector<float> array(std::int64_t dim = kDim) const { return std::vector<float>(tokens_ * dim, 0.5f); }
  static void poison(std::vector<float>& values) { values[kPlace * kDim] = std::numeric_limits<float>::quiet_NaN(); }

  /// A key spoils the gradients of the queries that attend it, a query or its gradient those of its keys.
  void expect(const char* what, const std::vector<float>& got, bool by_key) const {
    for (std::int64_t i = 0; i < tokens_; ++i) {
      const Span keys = window(p_.axes[2], by_key ? i : kPlace, tokens_);
      EXPECT_EQ(std::isnan(got[i * kDim]), contains(keys, by_key ? kPlace : i)) << what << " " << i;
    }
  }

 private:
  const Problem& p_;
  const std::int64_t tokens_;
};

// A zero weight times a NaN is one. It must not leave the windows by blocks of keys and queries, nor by the empty slots
// of a causal window that shares its leader, which are keys of others.
TEST_P(Tiles, NotANumberStaysInItsWindows) {
  for (const Axis& axis : {Axis{120, 31, 1, 1, 1, false}, Axis{120, 30, 1, 1, 5, true}, Axis{120, 7, 1, 1, 3, true},
                           Axis{120, 7, 1, 1, 7, true}, Axis{120, 100, 1, 1, 6, true}, Axis{700, 300, 1, 1, 5, true},
                           Axis{90, 1100, 1, 1, 4, true}}) {
    Problem p = one_axis(axis.length, axis.kernel_size, Poisoned::kDim);
    p.axes[2] = axis;
    p.has_rpb = false;
    const Poisoned all(p);
    for (const int poisoned : {0, 1, 2}) {
      std::vector<std::vector<float>> values(8, all.array());
      std::vector<float> lse(axis.length);
      auto &query = values[0], &key = values[1], &dout = values[2], &value = values[3], &out = values[4];
      const AttentionInputs inputs{p, all.tensor(query), all.tensor(key), all.tensor(value), nullptr, nullptr};
      attention_forward(inputs, all.tensor(out), lse.data());
      Poisoned::poison(values[poisoned]);
      auto &dq = values[5], &dk = values[6], &dv = values[7];
      attention_backward(inputs, {all.tensor(out), lse.data(), all.tensor(dout), nullptr},
                         {all.tensor(dq), nullptr, all.tensor(dk), all.tensor(dv)});
      SCOPED_TRACE("K " + std::to_string(axis.kernel_size) + " array " + std::to_string(poisoned));
      poisoned == 1 ? all.expect("dq", dq, true) : all.expect("dk", dk, false);
      if (poisoned != 1) all.expect("dv", dv, false);
    }
    std::vector<float> slots = all.array(axis.kernel_size), rows = all.array(), sums = all.array();
    Poisoned::poison(rows);
    const AttentionInputs inputs{p, all.tensor(rows), all.tensor(rows), all.tensor(rows), nullptr, nullptr};
    const Tensor weights = all.tensor(slots, axis.kernel_size);
    qk_backward_query(inputs, weights, all.tensor(sums), nullptr);
    all.expect("dq of logits", sums, true);
    qk_backward_key(inputs, weights, all.tensor(sums));
    all.expect("dk of logits", sums, false);
    av(inputs, weights, all.tensor(sums));
    all.expect("av", sums, true);
    av_backward_value(inputs, weights, all.tensor(rows), all.tensor(sums));
    all.expect("dv of av", sums, false);
  }
}

// More slots than are packed: each row of keys reads or writes its own.
TEST_P(Tiles, ManySlots) {
  Problem p = plain_problem(2, 2, 5);
  p.kv_heads = 1;
  p.has_rpb = true;
  p.axes[1] = {34, 33, 1, 1, 1, false};
  p.axes[2] = {41, 32, 2, 1, 1, false};
  run(1, p, {&KernelCase::run_split});
  p.has_lengths = true;
  p.batch = 2;
  p.query_type = p.key_type = FloatType::bfloat16;
  p.axes[1] = {14, 50, 1, 1, 1, true};
  p.axes[2] = {37, 70, 1, 2, 3, true};
  run(2, p, {&KernelCase::run_split});
  p = plain_problem(3, 1, 3);
  p.axes[0] = {5, 3, 1, 1, 1, true};
  p.axes[1] = {12, 6, 1, 2, 1, false};
  p.axes[2] = {100, 67, 1, 1, 4, false};
  run(3, p, {&KernelCase::run_split});
  p = plain_problem(2, 2, 5);
  p.axes[1] = {33, 33, 1, 1, 1, false, true};
  p.axes[2] = {33, 32, 1, 1, 1, false, true};
  run(4, p, {&KernelCase::run_split});
  p.axes[1] = {6, 5, 1, 1, 1, false, true};
  p.axes[2] = {60, 300, 1, 1, 2, true};
  run(5, p, {&KernelCase::run_split});
}

// Empty slots far before the axis are not packed.
TEST_P(Tiles, CausalWindowsFarLongerThanTheAxis) {
  Problem p = one_axis(16, 1'000'000, 8);
  p.has_rpb = false;
  p.axes[2].is_causal = true;
  std::vector<float> rows(16 * 8, 0.5f), sums(16 * 8), slots(16 * 1'000'000);
  const auto tensor = [&](std::vector<float>& values, std::int64_t dim) {
    return Tensor{values.data(), {16 * dim, 16 * dim, 16 * dim, dim, dim}, FloatType::float32};
  };
  const AttentionInputs inputs{p, tensor(rows, 8), tensor(rows, 8), tensor(rows, 8), nullptr, nullptr};
  take_largest_scratch();
  qk(inputs, tensor(slots, 1'000'000));
  EXPECT_EQ(slots[5 * 1'000'000 + 999'999 - 6], -std::numeric_limits<float>::infinity());
  EXPECT_NEAR(slots[5 * 1'000'000 + 999'999 - 5], 0.25 * 8 * p.scale, 1e-6);
  for (float& slot : slots) slot = std::isinf(slot) ? 0.0f : 1.0f;
  qk_backward_query(inputs, tensor(slots, 1'000'000), tensor(sums, 8), nullptr);
  EXPECT_NEAR(sums[5 * 8], 6 * 0.5 * p.scale, 1e-5);
  qk_backward_key(inputs, tensor(slots, 1'000'000), tensor(sums, 8));
  EXPECT_NEAR(sums[5 * 8], 11 * 0.5 * p.scale, 1e-5);
  EXPECT_LT(take_largest_scratch(), 1u << 18);
}

// Rows too wide for the cache at once; the windows of a strip may reach over the next one.
TEST_P(Tiles, Strips) {
  Problem p = plain_problem(2, 1, 256);
  p.axes[1] = {12, 5, 1, 1, 1, false};
  for (const Axis& axis : {Axis{70, 7, 1, 1, 1, false}, Axis{70, 8, 1, 1, 1, true}, Axis{100, 35, 1, 1, 1, false},
                           Axis{200, 7, 3, 1, 1, false}, Axis{80, 6, 1, 1, 5, false}}) {
    p.axes[2] = axis;
    p.query_type = axis.is_causal ? FloatType::float16 : FloatType::float32;
    p.key_type = axis.is_causal ? FloatType::bfloat16 : FloatType::float32;
    run_case(axis.length, p);
    if (HasFailure()) return;
  }
}

TEST_P(Tiles, HeadDimensions) {
  for (const std::int64_t dim : {1, 2, 3, 4, 7, 31, 63, 65, 96, 127, 128, 129, 255, 256, 257}) {
    run_case(dim, one_axis(19, 5, dim));
    if (HasFailure()) return;
  }
}

TEST_P(Tiles, PartsOfALongRow) {
  run_case(1, one_axis(1300, 5, 3));
  run_case(2, one_axis(1300, 6, 3, 2, true));
}

// Large enough to be shared by threads, in slabs of rows; the bits must not show it.
TEST_P(Tiles, Threads) {
  Problem p = one_axis(40, 7, 32);
  p.rank = 2;
  p.heads = 2;
  p.axes[1] = {30, 5, 1, 1, 1, false};
  p.has_lengths = true;
  run_case(1, p);
}

NATTEN_ON_EVERY_TARGET(Tiles);

TEST(TilePlan, PartsCoverEveryPlaceOnce) {
  for (const std::int64_t length : {1, 7, 40, 700, 5000}) {
    Problem p = one_axis(length, std::min<std::int64_t>(length, 5), 4);
    const auto parts = sweep_partition(p).parts;
    std::int64_t next = 0;
    for (std::int64_t part = 0; part < parts[2]; ++part) {
      const Span span = part_of(length, parts[2], part);
      EXPECT_EQ(span.start, next);
      EXPECT_LT(span.start, span.end);
      next = span.end;
    }
    EXPECT_EQ(next, length);
  }
}

/// The window of the query at `token`, as rows of key, from the definition.
std::vector<std::int64_t> rows_of_window(const Axis& axis, const AxisSpan& span, std::int64_t token) {
  const std::int64_t group = token % axis.dilation, length = group_length(axis.length, axis.dilation, group);
  const Span keys = window(axis, token / axis.dilation, length);
  std::vector<std::int64_t> rows;
  for (std::int64_t place = keys.start; place < keys.end; ++place) {
    std::int64_t row = place * axis.dilation + group - span.key_start;
    if (axis.is_circular) row = (row % axis.length + axis.length) % axis.length;
    rows.push_back(row);
  }
  return rows;
}

/// A span of a random axis, or all of it; keys with no more or some more than are needed.
AxisSpan random_span(Random& random, const Axis& axis) {
  if (pick(random, 0, 3) == 0) return whole(axis);
  AxisSpan span;
  span.query_start = pick(random, 0, axis.length - 1);
  span.query_rows = pick(random, 1, axis.length - span.query_start);
  const Range<std::int64_t> needed = needed_keys(axis, span);
  span.key_start = needed.start;
  span.key_rows = needed.end - needed.start;
  if (axis.is_circular && span.key_rows > axis.length) {
    span.key_start = pick(random, -axis.length / 2, axis.length / 2 - 1);
    span.key_rows = axis.length;
  } else if (axis.is_circular) {
    span.key_rows += pick(random, 0, axis.length - span.key_rows);
  } else {
    const std::int64_t before = pick(random, 0, span.key_start);
    span.key_start -= before;
    span.key_rows += before;
    span.key_rows += pick(random, 0, axis.length - span.key_start - span.key_rows);
  }
  return span;
}

TEST(TilePlan, GroupsOfSpansAndCircularAxes) {
  for (std::int64_t seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    Axis axis = random_axis(random, 40);
    if (pick(random, 0, 1) == 1) {
      const std::int64_t least = (axis.kernel_size + axis.gna_stride - 1) / axis.gna_stride;
      const std::int64_t places = axis.gna_stride * pick(random, least, least + 4);
      axis.length = places * axis.dilation;
      axis.is_causal = false;
      axis.is_circular = true;
    }
    const AxisSpan span = random_span(random, axis);
    std::vector<int> owned_keys(span.key_rows), owned_queries(query_count(axis, span));
    for (std::int64_t g = 0; g < axis.dilation; ++g) {
      const AxisGroup group(axis, span, g, true);
      for (std::int64_t k = group.owned_keys.start; k < group.owned_keys.end; ++k) {
        ASSERT_GE(group.key_rows.row(k), 0);
        ASSERT_LT(group.key_rows.row(k), span.key_rows);
        ++owned_keys[group.key_rows.row(k)];
      }
      std::set<std::pair<std::int64_t, std::int64_t>> pairs;  // row of key, query
      for (std::int64_t k = group.owned_keys.start; k < group.owned_keys.end; ++k) {
        for (std::int64_t q = group.attending[k].start; q < group.attending[k].end; ++q) {
          EXPECT_TRUE(contains(group.queries[q].keys, k));
          EXPECT_TRUE(pairs.insert({group.key_rows.row(k), group.queries[q].output}).second);
        }
      }
      std::size_t held = 0;
      for (std::size_t i = 0; i < group.queries.size(); ++i) {
        const AxisGroup::Query& query = group.queries[i];
        EXPECT_EQ(group.outputs.row(i), query.output);
        ASSERT_GE(query.keys.start, 0);
        ASSERT_LE(query.keys.end, group.places);
        if (!contains(group.owned_queries, query.place)) continue;
        ++owned_queries[query.output];
        const std::int64_t token = (query_index(axis, span.query_start) + query.output) * axis.stride;
        EXPECT_EQ(token - span.query_start, group.first_query_row + query.output * group.query_step);
        std::vector<std::int64_t> rows;
        for (std::int64_t k = query.keys.start; k < query.keys.end; ++k) rows.push_back(group.key_rows.row(k));
        EXPECT_EQ(rows, rows_of_window(axis, span, token));
        for (const std::int64_t row : rows) EXPECT_TRUE(pairs.count({row, query.output}));
        held += rows.size();
      }
      EXPECT_EQ(held, pairs.size());
    }
    EXPECT_EQ(owned_keys, std::vector<int>(span.key_rows, 1));
    EXPECT_EQ(owned_queries, std::vector<int>(owned_queries.size(), 1));
  }
}

TEST(TilePlan, TilesHoldEveryQueryAndKey) {
  for (std::int64_t seed = 0; seed < 300; ++seed) {
    Random random(seed);
    const Axis axis = random_axis(random, 70);
    for (std::int64_t g = 0; g < axis.dilation; ++g) {
      const AxisGroup group(axis, whole(axis), g, true);
      const Span all{0, static_cast<std::int64_t>(group.queries.size())};
      std::int64_t next = 0;
      for (const Tile& tile : make_tiles(axis, group, all, 16)) {
        EXPECT_EQ(tile.query, next);
        next += tile.count;
        for (int lane = 0; lane < tile.count; ++lane) {
          const auto& query = group.queries[tile.query + lane];
          EXPECT_LT(tile.offset[lane], 16);
          EXPECT_EQ(tile.slot0 + tile.offset[lane] + tile.empty_slots[lane], query.keys.start);
        }
      }
      EXPECT_EQ(next, all.end);
    }
  }
}

}  // namespace
}  // namespace natten::cpu::testing

// Spans and circular axes in the arithmetic of kernels (bodies/groups.h, fast/spans.h), against the definition.
#include "fast/spans.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <vector>

#include "fast/planner.h"
#include "reference.h"

namespace natten::fast {
namespace {

using Pairs = std::set<std::pair<std::int64_t, std::int64_t>>;  // row of results, row of key

Problem problem_of(const Axis& axis, const AxisSpan& span) {
  Problem p;
  p.batch = p.heads = p.kv_heads = 1;
  p.head_dim = p.value_dim = 8;
  p.axes.fill({1, 1, 1, 1, 1, false});
  p.axes[2] = axis;
  p.spans = {whole(p.axes[0]), whole(p.axes[1]), span};
  return p;
}

Pairs expected_pairs(const Axis& axis, const AxisSpan& span, std::int64_t length) {
  Pairs pairs;
  const std::int64_t first = query_index(axis, span.query_start);
  for (std::int64_t row = 0; row < query_count(axis, span); ++row) {
    const std::int64_t token = (first + row) * axis.stride;
    if (token >= length) break;
    for (const oracle::Slot& slot : oracle::keys_of(axis, length, token)) {
      std::int64_t key = slot.key - span.key_start;
      if (axis.is_circular && key < 0) key += length;
      if (axis.is_circular && key >= length) key -= length;
      pairs.insert({row, key});
    }
  }
  return pairs;
}

int turned(int position, int period) {
  return (position % period + period) % period;
}

/// Both directions agree with `expected`, every row belongs to one group, and no tile meets more than plans count on.
void expect_pairs(const Problem& p, std::int64_t length, const Pairs& expected) {
  AxisConstants c = axis_constants(p.axes[2]);
  c.axis.length = static_cast<int>(length);
  const AxisRows all = rows_of(p, 2), rows = rows_within(all, c.axis, static_cast<int>(p.axes[2].length));
  const bool turns = p.axes[2].is_circular;
  const Problem family = family_of(p);
  for (const bool holds_keys : {false, true}) {
    Pairs pairs;
    std::multiset<int> held;
    for (int g = 0; g < (holds_keys ? std::min(c.axis.dilation, all.keys) : std::min(c.classes, all.queries)); ++g) {
      const AxisGroup group = holds_keys ? group_of_keys(c, rows, g) : group_of_queries(c, rows, g);
      const int positions = holds_keys ? group.keys : group.queries,
                others =
                    turns ? (holds_keys ? group.queries : group.places) : (holds_keys ? group.queries : group.keys);
      const auto met_by = [&](int m) { return holds_keys ? queries_of_key(c, group, m) : keys_of_query(c, group, m); };
      for (int m = 0; m < positions; ++m) {
        held.insert(holds_keys ? group.first_key + m * c.axis.dilation : group.first_query + m * c.classes);
        const Range<int> met = met_by(m);
        ASSERT_LE(met.end - met.start, std::max(others, 0));
        for (int other = met.start; other < met.end; ++other) {
          const int at = turns ? turned(other, others) : other;
          ASSERT_TRUE(at >= 0 && at < others) << at;
          const int query = holds_keys ? at : m, key = holds_keys ? m : at;
          EXPECT_TRUE(
              pairs.insert({group.first_query + query * c.classes, group.first_key + key * c.axis.dilation}).second);
        }
      }
      for (const int extent : {1, 4, 16}) {
        for (int first = 0; first < positions; first += extent) {
          const int met = met_by(std::min(first + extent, positions) - 1).end - met_by(first).start;
          // Of a tile at both borders half a window more, which those who need a bound add.
          const std::int64_t more = holds_keys && !turns ? c.axis.kernel_size / 2 : 0;
          EXPECT_LE(met, reach(family, 2, extent, holds_keys) + more) << extent;
        }
      }
    }
    EXPECT_EQ(pairs, expected);
    const auto count = static_cast<std::size_t>(holds_keys ? rows.keys : rows.queries);
    EXPECT_EQ(held.size(), count);
    for (std::size_t i = 0; i < count; ++i) EXPECT_EQ(held.count(static_cast<int>(i)), 1u);
  }
}

void check(const Axis& axis, const AxisSpan& span) {
  const Problem p = problem_of(axis, span), near = nearest(p);
  SCOPED_TRACE(testing::Message() << "L " << axis.length << " K " << axis.kernel_size << " s " << axis.stride << " d "
                                  << axis.dilation << " u " << axis.gna_stride << " causal " << axis.is_causal
                                  << " circular " << axis.is_circular << ", queries " << span.query_start << " + "
                                  << span.query_rows << ", keys " << span.key_start << " + " << span.key_rows);
  const Pairs expected = expected_pairs(axis, span, axis.length);
  expect_pairs(p, axis.length, expected);
  expect_pairs(near, near.axes[2].length, expected);
}

template <class Visit>
void for_each_axis(std::int64_t longest, Visit visit) {
  for (std::int64_t length = 1; length <= longest; ++length) {
    for (std::int64_t k = 1; k <= length + 2; ++k) {
      for (std::int64_t d = 1; d <= 3; ++d) {
        for (std::int64_t share = 1; share <= k; ++share) {
          for (const bool is_stride : {true, false}) {
            if (is_stride && share == 1) continue;
            for (int kind = 0; kind < 3; ++kind) {
              const Axis axis{length, k, is_stride ? share : 1, d, is_stride ? 1 : share, kind == 1, kind == 2};
              if (kind != 1 && k * d > length) continue;
              if (kind == 2 && (length % d != 0 || length / d % axis.gna_stride != 0)) continue;
              visit(axis);
            }
          }
        }
      }
    }
  }
}

TEST(Spans, OfSmallAxesMeetWhatTheDefinitionSays) {
  for_each_axis(8, [](const Axis& axis) {
    check(axis, whole(axis));
    for (std::int64_t start = 0; start < axis.length; ++start) {
      for (std::int64_t rows = 1; rows <= axis.length - start; ++rows) {
        AxisSpan span{start, rows, 0, 0};
        const Range<std::int64_t> needed = needed_keys(axis, span);
        span.key_start = needed.start;
        span.key_rows = std::max<std::int64_t>(needed.end - needed.start, 1);
        if (!axis.is_circular) {
          check(axis, span);
          span.key_rows = axis.length - span.key_start;
          check(axis, span);
          continue;
        }
        if (span.key_rows <= axis.length) check(axis, span);
        span.key_rows = axis.length;
        for (const std::int64_t turned : {-axis.length / 2, std::int64_t(-1), (axis.length - 1) / 2}) {
          span.key_start = turned;
          check(axis, span);
        }
        if (needed.end - needed.start > axis.length) continue;
        span.key_start = needed.end - axis.length;  // as validation turns it, or to the left of it
        check(axis, span);
      }
    }
  });
}

TEST(Spans, OfShorterSamplesHaveTheirRows) {
  for_each_axis(7, [](const Axis& axis) {
    for (std::int64_t length = least_length(axis); length <= axis.length; ++length) {
      if (axis.is_circular && (length % axis.dilation != 0 || length / axis.dilation % axis.gna_stride != 0)) continue;
      for (std::int64_t start = 0; start < axis.length; ++start) {
        const AxisSpan span{start, axis.length - start, 0, axis.length};
        Problem p = problem_of(axis, span);
        p.has_lengths = true;
        EXPECT_EQ(nearest(p), p);
        expect_pairs(p, length, expected_pairs(axis, span, length));
      }
    }
  });
}

TEST(Spans, OfLongAxesComeNear) {
  std::mt19937 engine(1);
  const auto pick = [&](std::int64_t least, std::int64_t most) {
    return std::uniform_int_distribution<std::int64_t>(least, most)(engine);
  };
  for (int i = 0; i < 3000; ++i) {
    const std::int64_t k = pick(1, 12), d = pick(1, 7), share = pick(1, k), kind = pick(0, 2);
    const bool is_stride = pick(0, 1) == 1;
    Axis axis{0, k, is_stride ? share : 1, d, is_stride ? 1 : share, kind == 1, kind == 2};
    axis.length = (std::int64_t(1) << pick(10, 57)) / (d * axis.gna_stride) * d * axis.gna_stride;
    AxisSpan span{pick(0, axis.length - 1), 0, 0, 0};
    if (pick(0, 3) == 0) span.query_start = pick(0, 60);
    if (pick(0, 3) == 0) span.query_start = axis.length - 1 - pick(0, 60);
    span.query_rows = std::min<std::int64_t>(pick(1, 50), axis.length - span.query_start);
    const Range<std::int64_t> needed = needed_keys(axis, span);
    if (needed.end == needed.start) continue;
    span.key_start = axis.is_circular ? needed.start : std::max<std::int64_t>(needed.start - pick(0, 9), 0);
    span.key_rows = needed.end - span.key_start;
    const Problem near = nearest(problem_of(axis, span));
    SCOPED_TRACE(testing::Message() << i);
    EXPECT_LE(largest_position(near), 2000);
    EXPECT_FALSE(near.axes[2].is_circular);
    expect_pairs(near, near.axes[2].length, expected_pairs(axis, span, axis.length));
  }
}

/// Kernels count in 32 bits: on the longest axes that the tier takes, what they find is what 64 bits do.
TEST(Spans, OfTheLongestAxesDoNotOverflow) {
  constexpr std::int64_t kLongest = std::int64_t(1) << 30;
  std::mt19937 engine(2);
  const auto pick = [&](std::int64_t least, std::int64_t most) {
    return std::uniform_int_distribution<std::int64_t>(least, most)(engine);
  };
  const auto any = [&](std::int64_t most) {  // small, large, or the largest
    const std::int64_t kind = pick(0, 3);
    return kind == 0 ? most : kind == 1 ? pick(1, most) : pick(1, std::min<std::int64_t>(most, 9));
  };
  int refused = 0;
  for (int i = 0; i < 20000; ++i) {
    Axis axis{kLongest - pick(0, 3) * pick(0, 3), 1, 1, 1, 1, pick(0, 1) == 1, false};
    axis.kernel_size = any(axis.length);
    axis.dilation = axis.is_causal ? any(axis.length) : any(axis.length / axis.kernel_size);
    (pick(0, 1) == 1 ? axis.stride : axis.gna_stride) = any(axis.kernel_size);
    if (!axis.is_causal && pick(0, 3) == 0) {
      axis.is_circular = true;
      axis.gna_stride = std::min<std::int64_t>(axis.gna_stride, 9);
      axis.dilation = std::min<std::int64_t>(axis.dilation, 9);
      const std::int64_t of = axis.dilation * axis.gna_stride;
      axis.length = kLongest / 4 / of * of;
      axis.kernel_size = std::min(axis.kernel_size, axis.length / axis.dilation);
      if (axis.gna_stride > axis.kernel_size) continue;
      axis.stride = std::min(axis.stride, axis.kernel_size);
    }
    const Problem p = problem_of(axis, whole(axis));
    if (largest_position(p) > kLongest) {
      ++refused;
      continue;
    }
    SCOPED_TRACE(testing::Message() << "L " << axis.length << " K " << axis.kernel_size << " s " << axis.stride << " d "
                                    << axis.dilation << " u " << axis.gna_stride << " causal " << axis.is_causal
                                    << " circular " << axis.is_circular);
    const AxisConstants c = axis_constants(axis);
    const AxisRows rows = rows_of(p, 2);
    const AxisGroup g = group_of_queries(c, rows, static_cast<int>(pick(0, std::min(c.classes, rows.queries) - 1)));
    const std::int64_t first = std::int64_t(g.first_query) * axis.stride, group = first % axis.dilation;
    const std::int64_t places = group_length(axis.length, axis.dilation, group);
    ASSERT_EQ(g.places, places);
    ASSERT_EQ(g.first_place, first / axis.dilation);
    ASSERT_EQ(g.queries, (rows.queries - g.first_query + c.classes - 1) / c.classes);
    ASSERT_EQ(g.first_key, group);
    ASSERT_EQ(g.keys, places);
    for (const int m : {0, static_cast<int>(pick(0, g.queries - 1)), g.queries - 1}) {
      const Range<std::int64_t> keys = window(axis, g.first_place + std::int64_t(m) * c.step, places);
      const Range<int> found = keys_of_query(c, g, m);
      ASSERT_EQ(found.start, keys.start);
      ASSERT_EQ(found.end, keys.end);
    }
    for (const int m : {0, static_cast<int>(pick(0, g.keys - 1)), g.keys - 1}) {
      const Range<std::int64_t> met = attending_queries(axis, std::int64_t(m), places);
      const auto before = [&](std::int64_t place) {
        const std::int64_t turns = axis.is_circular ? (place + 4 * places) / places - 4 : 0;
        const std::int64_t within = std::max<std::int64_t>(place - turns * places - g.first_place, 0);
        return turns * g.queries + std::min<std::int64_t>((within + c.step - 1) / c.step, g.queries);
      };
      const Range<int> found = queries_of_key(c, g, m);
      ASSERT_EQ(found.start, before(met.start)) << m;
      ASSERT_EQ(found.end, before(met.end)) << m;
    }
  }
  EXPECT_LT(refused, 5000);
}

/// The steps of decoding are one call, as soon as windows are full.
TEST(Spans, OfStepsAreTheSame) {
  const Axis axis{std::int64_t(1) << 40, 64, 1, 2, 1, true};
  std::set<std::array<std::int32_t, kAxes * kSpanNumbers>> numbers;
  for (std::int64_t token = 1000000; token < 1000100; ++token) {
    Axis so_far = axis;
    so_far.length = token + 1;
    numbers.insert(span_numbers(nearest(problem_of(so_far, {token, 1, token - 127, 128}))));
  }
  EXPECT_EQ(numbers.size(), 2u);  // of even and of odd tokens
}

}  // namespace
}  // namespace natten::fast

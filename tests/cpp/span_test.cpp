// Spans and circular axes of the C++ API: rows of the plain call on the whole arrays, and windows that wrap.
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "mlx/mlx.h"
#include "natten/natten.h"

namespace natten {
namespace {

mx::array normal(mx::Shape shape, int seed) {
  return mx::random::normal(shape, mx::float32, mx::random::key(seed));
}

bool close(const mx::array& a, const mx::array& b) {
  return mx::allclose(a, b, 1e-5, 1e-5).item<bool>();
}

/// Rows [start, start + rows) of axis 1.
mx::array rows_of(const mx::array& x, int start, int rows) {
  return mx::take(x, mx::arange(start, start + rows, mx::int32), 1);
}

const Neighborhood kNeighborhood{.kernel_size = {5, 3}, .dilation = {2, 1}, .is_causal = {false, true}};

class ApiSpans : public ::testing::TestWithParam<const char*> {
 protected:
  const BackendScope tier_{GetParam()};
  const mx::array q_ = normal({2, 16, 6, 4, 8}, 1), k_ = normal({2, 16, 6, 2, 8}, 2), v_ = normal({2, 16, 6, 2, 5}, 3);
};

TEST_P(ApiSpans, AreRowsOfTheWhole) {
  const KeySpan keys = key_span(kNeighborhood, {7, 0}, {4, 6}, {16, 6});
  EXPECT_EQ(keys.key_start, (std::vector<std::int64_t>{3, 0}));
  EXPECT_EQ(keys.rows, (std::vector<std::int64_t>{12, 6}));
  const mx::array q = rows_of(q_, 7, 4), k = rows_of(k_, 3, 12), v = rows_of(v_, 3, 12);
  const auto whole = attention(q_, k_, v_, kNeighborhood);
  const auto part = attention(q, k, v, kNeighborhood, {.query_start = {7, 0}, .key_start = {3, 0}, .shape = {{16, 6}}});
  EXPECT_TRUE(close(part.out, rows_of(whole.out, 7, 4)));
  EXPECT_TRUE(close(part.lse, rows_of(whole.lse, 7, 4)));
  const mx::array logits = qk(q, k, kNeighborhood, {.query_start = {7, 0}, .key_start = {3, 0}, .shape = {{16, 6}}});
  EXPECT_TRUE(close(mx::logsumexp(logits, -1), part.lse));
  const mx::array out =
      av(mx::softmax(logits, -1), v, kNeighborhood, {.query_start = {7, 0}, .key_start = {3, 0}, .shape = {{16, 6}}});
  EXPECT_TRUE(close(out, part.out));
}

// The gradients of the rows, through slices of the whole arrays.
TEST_P(ApiSpans, HaveTheGradientsOfTheirRows) {
  const auto gradients = [&](bool as_span) {
    return mx::grad(
        [&](const std::vector<mx::array>& a) {
          const mx::array out =
              as_span ? attention(rows_of(a[0], 7, 4), rows_of(a[1], 3, 12), rows_of(a[2], 3, 12), kNeighborhood,
                                  {.query_start = {7, 0}, .key_start = {3, 0}, .shape = {{16, 6}}})
                            .out
                      : rows_of(attention(a[0], a[1], a[2], kNeighborhood).out, 7, 4);
          return mx::sum(mx::square(out));
        },
        {0, 1, 2})({q_, k_, v_});
  };
  const auto of_span = gradients(true), of_whole = gradients(false);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(close(of_span[i], of_whole[i])) << "input " << i;
}

TEST_P(ApiSpans, StartFarOut) {
  const std::int64_t far = (std::int64_t{1} << 40) - 4;
  const mx::array q = rows_of(q_, 8, 2), k = rows_of(k_, 0, 16), v = rows_of(v_, 0, 16);
  const auto at = [&](std::int64_t start, std::int64_t length) {
    return attention(q, k, v, kNeighborhood,
                     {.query_start = {start + 8, 0}, .key_start = {start, 0}, .shape = {{length, 6}}})
        .out;
  };
  EXPECT_TRUE(mx::array_equal(at(far, std::int64_t{1} << 41), at(20, 60)).item<bool>());
}

// Windows that wrap are windows of an axis that repeats itself.
TEST_P(ApiSpans, CircularAxesRepeat) {
  const auto repeated = [](const mx::array& x) { return mx::concatenate({x, x, x}, 1); };
  const Neighborhood circular{.kernel_size = {5, 3}, .is_circular = {true, false}}, plain{.kernel_size = {5, 3}};
  const auto part = attention(q_, k_, v_, circular);
  const auto whole = attention(repeated(q_), repeated(k_), repeated(v_), plain);
  EXPECT_TRUE(close(part.out, rows_of(whole.out, 16, 16)));
  EXPECT_TRUE(close(part.lse, rows_of(whole.lse, 16, 16)));
  // The same from rows with a halo, as a rank of a ring of machines holds them.
  const KeySpan keys = key_span(circular, {0, 0}, {3, 6}, {16, 6});
  ASSERT_EQ(keys.key_start[0], -2);
  ASSERT_EQ(keys.rows[0], 7);
  const auto halo = [&](const mx::array& x) { return rows_of(repeated(x), 14, 7); };
  const auto few =
      attention(rows_of(q_, 0, 3), halo(k_), halo(v_), circular, {.key_start = {-2, 0}, .shape = {{16, 6}}});
  EXPECT_TRUE(close(few.out, rows_of(part.out, 0, 3)));
}

TEST_P(ApiSpans, WrongOnesAreErrorsBeforeAnyWork) {
  const auto message = [&](const Neighborhood& n, const AttentionOptions& options) -> std::string {
    try {
      attention(rows_of(q_, 7, 4), rows_of(k_, 3, 12), rows_of(v_, 3, 12), n, options);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "no error";
  };
  const std::int64_t most = std::numeric_limits<std::int64_t>::max();
  const std::vector<std::pair<std::string, std::string>> cases{
      {message(kNeighborhood, {.query_start = {7, 0}, .key_start = {4, 0}, .shape = {{16, 6}}}),
       "[na2d] keys of axis 0 must hold positions 3..14 of the window's queries, got 4..15"},
      {message(kNeighborhood, {.query_start = {13, 0}, .key_start = {3, 0}, .shape = {{16, 6}}}),
       "[na2d] queries of axis 0 must lie at positions 0..15, got 13..16"},
      {message(kNeighborhood, {.query_start = {most, 0}, .key_start = {3, 0}, .shape = {{16, 6}}}),
       "queries of axis 0 must lie at positions 0..15"},
      {message(kNeighborhood, {.query_start = {7, 0}, .key_start = {-most, 0}, .shape = {{16, 6}}}),
       "keys of axis 0 must lie at positions 0..15"},
      {message(kNeighborhood, {.query_start = {7, 0}, .key_start = {3, 0}, .shape = {{most, 6}}}), "at most 2^60"},
      {message({.kernel_size = 3, .is_causal = true, .is_circular = true}, {.shape = {{16, 6}}}),
       "must not both be true"},
      {message({.kernel_size = 3, .dilation = {3, 1}, .is_circular = {true, false}}, {.shape = {{16, 6}}}),
       "dilation[0]=3 must divide the length of a circular axis, got 16"}};
  for (const auto& [got, want] : cases) EXPECT_NE(got.find(want), std::string::npos) << got;
}

INSTANTIATE_TEST_SUITE_P(Tiers, ApiSpans, ::testing::Values("pure", "nanobind"));

}  // namespace
}  // namespace natten

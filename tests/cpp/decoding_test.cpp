// A step of decoding as one node, and the slices that its composition is made of: what sanitizers should see.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "api/entry.h"
#include "graph/slices.h"
#include "mlx/mlx.h"

namespace natten {
namespace {

using Arrays = std::vector<mx::array>;

struct Case {
  int batch = 1, kernel = 4, dilation = 1, heads = 2, kv_heads = 2;
  std::vector<int> grid, rows;
  mx::Dtype type = mx::float32;
  int dim = 6;
};

const Case kCases[] = {
    {1, 4, 1, 2, 2, {}, {1, 1, 1, 1, 1, 1}},
    {2, 3, 2, 4, 2, {}, {5, 1, 1, 3, 1, 20, 2}},
    {3, 1, 3, 2, 1, {}, {1, 2, 1, 7}},
    {2, 5, 1, 2, 2, {}, {2, 1, 40, 1, 3}, mx::bfloat16},
    {1, 33, 1, 8, 2, {}, {1, 30, 1, 1, 4, 1, 64}},
    {2, 2, 2, 2, 2, {5}, {1, 1, 3, 1}},
    {1, 3, 1, 2, 1, {3, 4}, {2, 1, 1}},
    {1, 7, 2, 4, 4, {6}, {1, 9, 1, 1}, mx::float16},
    {2, 70, 1, 4, 2, {}, {3, 50, 40, 5, 1, 7, 2}, mx::float32, 32},
    {1, 20, 3, 2, 2, {}, {50, 8, 30, 1, 5, 2, 11}, mx::bfloat16, 16},
    {2, 3, 11, 2, 2, {}, {5, 20, 1, 11, 30, 9, 8}},
    {1, 4, 5, 4, 2, {3}, {2, 4, 13, 1, 7}},
    {2, 2, 3, 2, 1, {3, 2}, {4, 1, 7, 2}},
};

// [B, rows, grid..., heads, dim], in memory with the heads before the rows and the channels apart where `is_strided`.
mx::array random(const Case& c, int rows, int heads, bool is_strided, int seed) {
  mx::Shape shape{c.batch, rows};
  shape.insert(shape.end(), c.grid.begin(), c.grid.end());
  shape.insert(shape.end(), {heads, c.dim});
  if (!is_strided) return mx::astype(mx::random::normal(shape, mx::float32, mx::random::key(seed)), c.type);
  std::reverse(shape.begin(), shape.end());
  return mx::transpose(mx::astype(mx::random::normal(shape, mx::float32, mx::random::key(seed)), c.type));
}

mx::array rows_of(const mx::array& x, int first, int count) {
  mx::Shape start(x.ndim(), 0), stop = x.shape();
  start[1] = first;
  stop[1] = first + count;
  return mx::slice(x, start, stop);
}

double distance(const mx::array& a, const mx::array& b) {
  return mx::max(mx::abs(mx::subtract(mx::astype(a, mx::float32), mx::astype(b, mx::float32)))).item<float>();
}

void check(const Case& c, bool is_strided, bool is_held) {
  const int rank = 1 + static_cast<int>(c.grid.size());
  int total = 0;
  for (const int rows : c.rows) total += rows;
  const mx::array q = random(c, total, c.heads, is_strided, 1), k = random(c, total, c.kv_heads, is_strided, 2),
                  v = random(c, total, c.kv_heads, is_strided, 3);
  std::vector<std::int64_t> kernel(rank, 2), dilation(rank, 1);
  std::vector<bool> causal(rank, false);
  kernel[0] = c.kernel, dilation[0] = c.dilation, causal[0] = true;
  Neighborhood neighborhood{kernel};
  neighborhood.dilation = dilation, neighborhood.is_causal = causal;

  mx::Shape ring{c.batch, c.dilation, c.kernel};
  ring.insert(ring.end(), k.shape().begin() + 2, k.shape().end());
  const mx::array unwritten(std::numeric_limits<float>::quiet_NaN(), c.type);  // which no step may read
  mx::array keys = mx::full(ring, unwritten), values = mx::full(ring, unwritten),
            position = mx::array(std::int64_t{0}, mx::int64);
  Arrays outs, held;
  int first = 0;
  for (const int rows : c.rows) {
    mx::eval(keys, values, position);
    if (is_held) held.insert(held.end(), {keys, values});  // so that it is not changed in place
    Arrays inputs{rows_of(q, first, rows), rows_of(k, first, rows), rows_of(v, first, rows),
                  std::move(keys),         std::move(values),       std::move(position)};
    const std::optional<Arrays> step = decoding_step({"step", rank}, std::move(inputs), neighborhood, {}, {});
    ASSERT_TRUE(step);
    outs.push_back((*step)[0]);
    keys = (*step)[1], values = (*step)[2], position = (*step)[3];
    mx::eval(outs.back());
    first += rows;
  }
  EXPECT_EQ(position.item<std::int64_t>(), total);
  const double tolerance = c.type == mx::float32 ? 1e-5 : 4e-2;
  EXPECT_LT(distance(mx::concatenate(outs, 1), attention(q, k, v, neighborhood).out), tolerance);
  if (is_held) EXPECT_TRUE(mx::all(mx::isnan(held[0])).item<bool>());
}

TEST(Decoding, StepsAreTheWhole) {
  mx::set_default_device(mx::Device::cpu);
  for (const Case& c : kCases) {
    for (const bool is_strided : {false, true}) {
      for (const bool is_held : {false, true}) check(c, is_strided, is_held);
    }
  }
}

// MLX calls an array dense whatever the strides of its axes of length 1.
TEST(Decoding, RingsOfOneRowMayHaveAnyStride) {
  mx::set_default_device(mx::Device::cpu);
  const mx::array x = mx::random::normal({1, 1, 2, 4});
  for (const bool is_expanded : {false, true}) {
    const auto ring = [&] {
      mx::array a = is_expanded ? mx::zeros({1, 3, 2, 4}) : mx::zeros({1, 1, 3, 2, 4});
      mx::eval(a);
      a = is_expanded ? mx::expand_dims(a, 2) : mx::moveaxis(a, 0, 2);
      mx::eval(a);
      return a;
    };
    Neighborhood neighborhood{1};
    neighborhood.dilation = 3, neighborhood.is_causal = true;
    std::optional<Arrays> step = decoding_step(
        {"step", 1}, {x, x, x, ring(), ring(), mx::array(std::int64_t{1}, mx::int64)}, neighborhood, {}, {});
    ASSERT_TRUE(step);
    mx::eval(*step);
    EXPECT_EQ(distance((*step)[0], x), 0);
    EXPECT_EQ(distance(mx::take(mx::squeeze((*step)[1], 2), 1, 1), mx::squeeze(x, 1)), 0);
  }
}

TEST(Decoding, APositionThatNoStepMadeStaysInTheRing) {
  mx::set_default_device(mx::Device::cpu);
  for (const std::int64_t position : {std::int64_t{-1}, std::int64_t{-7}, std::numeric_limits<std::int64_t>::min(),
                                      std::numeric_limits<std::int64_t>::max()}) {
    for (const int rows : {1, 3, 40}) {
      const mx::array x = mx::ones({1, rows, 2, 4}), ring = mx::ones({1, 2, 3, 2, 4});
      Neighborhood neighborhood{3};
      neighborhood.dilation = 2, neighborhood.is_causal = true;
      std::optional<Arrays> step =
          decoding_step({"step", 1}, {x, x, x, ring, ring, mx::array(position, mx::int64)}, neighborhood, {}, {});
      ASSERT_TRUE(step);
      mx::eval(*step);
      EXPECT_LT(distance((*step)[0], x), 1e-6);
    }
  }
}

// Mapped x, update and start in every combination, of the gradient too.
TEST(Decoding, SlicesMap) {
  const auto squares = [](const Arrays& a) {
    const mx::array updated = slice_updated(a[0], a[1], mx::array({1, 0}), {1, 2}, mx::default_stream(mx::Device::cpu));
    return Arrays{mx::sum(mx::square(updated))};
  };
  const auto gradient = [&](const Arrays& a) { return mx::vjp(squares, a, {mx::array(1.0f)}).second; };
  const mx::array xs = mx::random::normal({3, 2, 3, 4, 5}), updates = mx::random::normal({3, 2, 1, 2, 5});
  for (const auto& [x_axis, update_axis] : {std::pair(0, -1), std::pair(-1, 0), std::pair(0, 0)}) {
    const auto example = [](const mx::array& x, int axis, int i) {
      return axis < 0 ? mx::take(x, 0, 0) : mx::take(x, i, 0);
    };
    const mx::array x = x_axis < 0 ? example(xs, -1, 0) : xs,
                    update = update_axis < 0 ? example(updates, -1, 0) : updates;
    const Arrays mapped = mx::vmap(gradient, {x_axis, update_axis}, {0, 0})({x, update});
    for (int i = 0; i < 3; ++i) {
      const Arrays own = gradient({example(xs, x_axis, i), example(updates, update_axis, i)});
      for (int j = 0; j < 2; ++j) EXPECT_EQ(distance(mx::take(mapped[j], i, 0), own[j]), 0);
    }
  }
  const auto sliced = [](const Arrays& a) {
    return Arrays{slice_from(a[0], a[1], {1}, {2}, mx::default_stream(mx::Device::cpu))};
  };
  const mx::array starts({1, 0, 1}, {3, 1});
  const mx::array found = mx::vmap(sliced, {0, 0}, {0})({xs, starts})[0];
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(distance(mx::take(found, i, 0), sliced({mx::take(xs, i, 0), mx::take(starts, i, 0)})[0]), 0);
  }
}

}  // namespace
}  // namespace natten

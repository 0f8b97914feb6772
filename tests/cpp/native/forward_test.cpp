// The forward kernels where their designs change and their tiles, pairs of tiles and parts end.
#include "every_target.h"
#include "native/cpu/forward_plan.h"

namespace natten::cpu::testing {
namespace {

class Forward : public EveryTarget {
 protected:
  static void run(std::uint64_t seed, const Problem& problem) {
    EveryTarget::run(seed, problem, {&KernelCase::run_forward});
  }
};

// Windows that are not transposed: every option, every number of channels at a time, the kernel sizes where it ends.
TEST_P(Forward, ShortWindowsAlongOneAxis) {
  std::uint64_t seed = 500;
  for (const std::int64_t kernel_size : {1, 2, 3, 7, 8, 16, 34, 35, 36}) {
    for (const std::int64_t dim : {32, 33, 48, 64, 65, 100, 128, 200, 257}) {
      Problem p = plain_problem(1, 1 + seed % 2, dim);
      if (seed % 3 == 0) p.heads *= 2;
      p.value_dim = seed % 4 == 0 ? dim + 5 : dim;
      p.axes[2] = {2 * kernel_size + 5 * static_cast<std::int64_t>(seed % 9), kernel_size, 1, 1, 1, seed % 4 == 1};
      if (seed % 5 == 1) p.axes[2].gna_stride = std::max<std::int64_t>(kernel_size / 2, 1);
      if (seed % 5 == 2) p.axes[2].stride = kernel_size;
      if (seed % 5 == 3) p.axes[2].dilation = 2;
      if (seed % 6 == 0) p.query_type = p.key_type = FloatType::float16;
      if (seed % 6 == 1) p.key_type = p.value_type = FloatType::bfloat16;
      p.has_rpb = seed % 3 == 1;
      p.has_lengths = seed % 7 == 1;
      run(seed++, p);
      if (HasFailure()) return;
    }
  }
}

// Large enough to be fetched ahead of time, in several parts, beside other axes.
TEST_P(Forward, ShortWindowsOfLargeTensors) {
  Problem p = plain_problem(2, 4, 64);
  p.axes[1] = {3, 1, 1, 1, 1, false};
  p.axes[2] = {420, 5, 1, 1, 1, false};
  run(600, p);
}

// A few queries of long windows, as steps of decoding have: every option, several blocks and segments of keys, and the
// most queries. A query stride makes them few.
TEST_P(Forward, FewQueries) {
  std::uint64_t seed = 700;
  for (const std::int64_t kernel_size : {16, 17, 63, 64, 65, 200, 777}) {
    for (const std::int64_t queries : {1, 2, 3, 8}) {
      static constexpr std::int64_t kDims[] = {16, 33, 64, 128, 7, 80};
      Problem p = plain_problem(1, 1 + seed % 3, kDims[seed % 6]);
      if (seed % 2 == 0) p.heads *= 1 + seed % 5;
      p.value_dim = seed % 4 == 0 ? p.head_dim + 5 : p.head_dim;
      const std::int64_t stride = std::max<std::int64_t>(kernel_size / (1 + seed % 7), 1);
      p.axes[2] = {std::max(kernel_size, (queries - 1) * stride + 1), kernel_size, stride, 1, 1, seed % 3 == 1};
      if (seed % 5 == 3) p.axes[2].length = 2 * std::max(kernel_size, p.axes[2].length), p.axes[2].dilation = 2;
      if (p.queries(2) > 8) p.axes[2].stride = kernel_size;
      if (seed % 6 == 0) p.query_type = p.key_type = FloatType::float16;
      if (seed % 6 == 1) p.key_type = p.value_type = FloatType::bfloat16;
      p.has_rpb = seed % 3 == 2;
      p.has_lengths = seed % 7 == 1;
      if (p.queries(2) <= 8) EXPECT_TRUE(forward::describe(p).kernel.starts_with("few queries"));
      run(seed++, p);
      if (HasFailure()) return;
    }
  }
}

// bfloat16 is read two vectors at a time, even channels before odd ones, where a row holds whole ones: of keys, of
// values, of both, with query heads that share them.
TEST_P(Forward, FewQueriesOfBFloat) {
  std::uint64_t seed = 850;
  for (const std::int64_t dim : {16, 32, 48, 64, 128}) {
    for (const std::int64_t value_dim : {8, 32, 64, 96}) {
      Problem p = plain_problem(1, 2, dim);
      p.value_dim = value_dim;
      p.heads = p.kv_heads * (1 + static_cast<std::int64_t>(seed % 9));
      const std::int64_t queries = 1 + static_cast<std::int64_t>(seed % 3);
      p.axes[2] = {131 + (queries - 1) * 60, 130, 60, 1, 1, seed % 2 == 1};
      if (p.queries(2) > 8) p.axes[2].stride = 130;
      if (seed % 2 == 0) p.query_type = FloatType::bfloat16;
      p.key_type = seed % 5 == 4 ? FloatType::float16 : FloatType::bfloat16;
      p.value_type = seed % 7 == 6 ? FloatType::float32 : FloatType::bfloat16;
      ASSERT_TRUE(forward::describe(p).kernel.starts_with("few queries"));
      run(seed++, p);
      if (HasFailure()) return;
    }
  }
}

// Segments of keys, beside other axes, in a batch; infinite and hidden logits.
TEST_P(Forward, FewQueriesInSegments) {
  Problem p = plain_problem(2, 4, 128);
  p.kv_heads = 2;
  p.axes[1] = {3, 1, 1, 1, 1, false};
  p.axes[2] = {1100, 1000, 1000, 1, 1, true};
  p.batch = 1;
  EXPECT_GT(forward::few_segments(p), 1);
  run(800, p);
  p.has_rpb = true;
  EveryTarget::run(801, p, {&KernelCase::run_attention_with_hidden_pairs});
  p.axes[2] = {2001, 900, 400, 2, 1, true};  // dilation groups of fewer queries than the call has
  EXPECT_GT(forward::few_segments(p), 1);
  run(802, p);
}

// Windows from the first that the broadcast kernel takes to those of which two tiles share every key.
TEST_P(Forward, LongWindowsAlongOneAxis) {
  std::uint64_t seed = 1;
  for (const std::int64_t kernel_size : {23, 24, 25, 31, 64, 95, 96, 127}) {
    for (const std::int64_t length : {kernel_size, kernel_size + 1, kernel_size + 15, 2 * kernel_size + 33}) {
      for (const bool is_causal : {false, true}) {
        Problem p = plain_problem(1, 1 + seed % 2, seed % 3 == 0 ? 33 : 16);
        p.value_dim = seed % 5 == 0 ? 65 : 32;
        p.axes[2] = {length, kernel_size, 1, 1, 1, is_causal};
        if (seed % 4 == 1) p.axes[2].gna_stride = kernel_size / 3;
        if (seed % 4 == 2) p.axes[2].stride = 3;
        p.has_rpb = seed % 3 == 1;
        p.has_lengths = seed % 7 == 1;
        run(seed++, p);
      }
    }
  }
}

TEST_P(Forward, LongWindowsWithDilationAndHalfTypes) {
  std::uint64_t seed = 100;
  for (const FloatType type : {FloatType::float32, FloatType::float16, FloatType::bfloat16}) {
    Problem p = plain_problem(1, 2, 24);
    p.axes[2] = {211, 29, 1, 3, 1, false};
    p.query_type = p.key_type = p.value_type = type;
    run(seed++, p);
    p.axes[2] = {300, 100, 1, 2, 1, true};
    run(seed++, p);
  }
}

// So long that their keys and values are packed some at a time.
TEST_P(Forward, LongWindowsInChunks) {
  std::uint64_t seed = 150;
  for (const Axis& axis : {Axis{560, 516, 2, 1, 1, false}, Axis{530, 517, 33, 1, 1, true},
                           Axis{1100, 515, 20, 2, 1, false}, Axis{700, 600, 30, 1, 1, false}}) {
    Problem p = plain_problem(1, 1, 16);
    p.value_dim = 500;
    p.axes[2] = axis;
    p.has_rpb = seed % 2 == 0;
    if (seed % 3 == 0) {
      p.heads = 2;
      p.query_type = p.key_type = p.value_type = FloatType::float16;
    }
    run(seed++, p);
  }
}

// One query attends several rows of one token each: the long axis is not the last.
TEST_P(Forward, LongWindowsAlongOuterAxes) {
  Problem p = plain_problem(2, 2, 16);
  p.axes[1] = {70, 31, 1, 1, 1, false};
  p.axes[2] = {3, 1, 1, 1, 1, false};
  run(200, p);
  p.axes[1] = {5, 1, 1, 1, 1, false};
  p.axes[2] = {70, 31, 1, 1, 1, false};
  run(201, p);
}

// Several parts on every axis, and tiles that end inside a part.
TEST_P(Forward, PartsAndTiles) {
  std::uint64_t seed = 300;
  for (const std::int64_t width : {15, 16, 17, 63, 64, 65, 131}) {
    for (const std::int64_t kernel_size : {3, 4, 7, 13}) {
      Problem p = plain_problem(2, 1, seed % 2 ? 16 : 48);
      p.axes[1] = {17 + static_cast<std::int64_t>(seed % 3), std::min<std::int64_t>(kernel_size, 5), 1, 1, 1, false};
      p.axes[2] = {width, kernel_size, 1, 1, 1, seed % 5 == 0};
      run(seed++, p);
    }
  }
  Problem p = plain_problem(3, 1, 32);
  p.axes[0] = {18, 3, 1, 1, 1, false};
  p.axes[1] = {17, 2, 1, 1, 1, true};
  p.axes[2] = {20, 3, 1, 1, 1, false};
  run(seed, p);
}

// Windows whose scores and keys come in segments, which end inside windows, planes and steps of rows.
TEST_P(Forward, Segments) {
  std::uint64_t seed = 400;
  const auto run_case = [&](std::initializer_list<Axis> axes, std::int64_t dim) {
    Problem p = plain_problem(static_cast<int>(axes.size()), 1 + seed % 2, dim);
    if (seed % 3 == 0) p.heads *= 2;
    std::copy(axes.begin(), axes.end(), p.axes.end() - axes.size());
    p.value_dim = seed % 2 ? dim : dim + 3;
    p.has_rpb = seed % 3 == 1;
    p.has_lengths = seed % 4 == 1;
    if (seed % 5 == 0) p.key_type = p.value_type = FloatType::bfloat16;
    EXPECT_TRUE(forward::is_segmented(p));
    run(seed++, p);
  };
  run_case({{40, 40, 2, 1, 1, false}, {41, 41, 3, 1, 1, false}}, 4);
  run_case({{45, 37, 2, 1, 1, false}, {60, 43, 4, 1, 1, true}}, 3);
  run_case({{50, 41, 1, 1, 7, true}, {44, 44, 9, 1, 1, false}}, 8);
  run_case({{3, 3, 1, 1, 1, false}, {900, 600, 30, 1, 1, false}}, 5);
  run_case({{100, 50, 3, 2, 1, false}, {33, 32, 4, 1, 1, false}}, 17);
  run_case({{13, 12, 1, 1, 1, false}, {14, 13, 1, 1, 2, false}, {15, 12, 5, 1, 1, false}}, 4);
  run_case({{7, 6, 1, 1, 1, true}, {12, 12, 3, 1, 1, false}, {40, 33, 7, 1, 1, true}}, 2);
  run_case({{14, 14, 1, 1, 1, false}, {12, 11, 11, 1, 1, false}, {25, 25, 1, 1, 1, false}}, 2);
}

TEST_P(Forward, EveryHeadDimension) {
  for (std::int64_t dim = 1; dim <= 257; dim += dim < 36 ? 1 : 13) {
    Problem p = plain_problem(2, 1, dim);
    p.axes[1] = {4, 3, 1, 1, 1, false};
    p.axes[2] = {18, 5, 1, 1, 1, false};
    run(dim, p);
  }
}

NATTEN_ON_EVERY_TARGET(Forward);

TEST(Design, IsDescribed) {
  Problem p = plain_problem(1, 1, 32);
  p.axes[2] = {4096, 7, 1, 1, 1, false};
  EXPECT_EQ(forward::describe(p).kernel, "direct");
  p.axes[2] = {4096, 31, 1, 1, 1, false};
  EXPECT_EQ(forward::describe(p).kernel, "query lanes");
  p.spans = std::array{whole(p.axes[0]), whole(p.axes[1]), AxisSpan{4000, 1, 3985, 31}};
  EXPECT_EQ(forward::describe(p).kernel, "few queries");
  p.spans.reset();
  p.head_dim = p.value_dim = 16;
  p.axes[2].kernel_size = 7;
  EXPECT_EQ(forward::describe(p).kernel, "shift");
}

}  // namespace
}  // namespace natten::cpu::testing

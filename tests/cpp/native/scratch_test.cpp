#include "native/cpu/scratch.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <new>

#include "every_target.h"

namespace natten::cpu {
namespace {

TEST(Scratch, TooMuchIsBadAlloc) {
  EXPECT_THROW(Scratch{std::numeric_limits<std::size_t>::max()}, std::bad_alloc);
  Scratch next(100);
  std::memset(next.take<char>(100), 1, 100);
}

TEST(Scratch, ArraysAreAlignedAndApart) {
  const std::size_t bytes = Scratch::bytes<float>(3) + Scratch::bytes<char>(65) + Scratch::bytes<double>(8);
  Scratch scratch(bytes);
  char* begin = reinterpret_cast<char*>(scratch.take<float>(3));
  char* middle = scratch.take<char>(65);
  char* end = reinterpret_cast<char*>(scratch.take<double>(8));
  for (const char* p : {begin, middle, end}) EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % Scratch::kAlignment, 0);
  EXPECT_GE(middle - begin, 12);
  EXPECT_GE(end - middle, 65);
  EXPECT_LE(static_cast<std::size_t>(end + 64 - begin), bytes);
}

TEST(Scratch, NestedBlocksAreApart) {
  Scratch outer(1 << 16);
  char* first = outer.take<char>(1 << 16);
  std::memset(first, 1, 1 << 16);
  {
    Scratch inner(1 << 16);
    std::memset(inner.take<char>(1 << 16), 2, 1 << 16);
  }
  Scratch again(1 << 16);
  std::memset(again.take<char>(1 << 16), 3, 1 << 16);
  for (int i = 0; i < 1 << 16; ++i) ASSERT_EQ(first[i], 1);
}

/// Most bytes that a thread needs at a time in a forward or a backward pass.
std::size_t scratch_of(const Problem& p, bool is_forward) {
  const std::int64_t tokens = p.tokens(), dim = p.head_dim;
  std::vector<std::vector<float>> arrays(8, std::vector<float>(tokens * p.heads * dim, 0.1f));
  const auto tensor = [&](int i) {
    const std::int64_t token = p.heads * dim, row = p.axes[2].length * token;
    return Tensor{arrays[i].data(), {tokens * token, row * p.axes[1].length, row, token, dim}, FloatType::float32};
  };
  std::vector<float> lse(tokens * p.heads);
  const AttentionInputs inputs{p, tensor(0), tensor(1), tensor(2), nullptr, nullptr};
  take_largest_scratch();
  if (is_forward) {
    attention_forward(inputs, tensor(3), lse.data());
  } else {
    attention_backward(inputs, {tensor(3), lse.data(), tensor(4), nullptr}, {tensor(5), nullptr, tensor(6), tensor(7)});
  }
  return take_largest_scratch();
}

TEST(ScratchOfKernels, IsBoundedForLargeWindows) {
  Problem p = testing::plain_problem(3, 1, 16);
  p.axes.fill(Axis{64, 64, 64, 1, 1, false});  // one query, which sees everything
  EXPECT_LT(scratch_of(p, true), 4u << 20);
  p.axes.fill(Axis{80, 18, 18, 1, 1, false});
  EXPECT_LT(scratch_of(p, true), 4u << 20);
  p = testing::plain_problem(2, 1, 64);
  p.axes[1] = p.axes[2] = Axis{256, 256, 64, 1, 1, false};
  EXPECT_LT(scratch_of(p, true), 4u << 20);
}

TEST(ScratchOfKernels, IsBoundedForLongWindowsForward) {
  Problem p = testing::plain_problem(1, 1, 64);
  p.axes[2] = {40000, 16384, 128, 1, 1, false};
  EXPECT_LT(scratch_of(p, true), 4u << 20);
}

TEST(ScratchOfKernels, IsBoundedForLongWindowsBackward) {
  Problem p = testing::plain_problem(1, 1, 64);
  p.axes[2] = {4100, 4096, 1, 1, 1, false};
  EXPECT_LT(scratch_of(p, false), 4u << 20);
}

/// What the first tasks of a pass would take, without a pass.
std::size_t planned_scratch(const Problem& p, bool is_forward) {
  float none = 0;
  const auto tensor = [&](std::int64_t heads) {
    const std::int64_t token = heads * p.head_dim, row = p.axes[2].length * token;
    return Tensor{&none, {p.tokens() * token, row * p.axes[1].length, row, token, p.head_dim}, p.query_type};
  };
  const Tensor query = tensor(p.heads), key = tensor(p.kv_heads);
  const AttentionInputs inputs{p, query, key, key, nullptr, nullptr};
  take_largest_scratch();
  set_scratch_limit(0);
  EXPECT_THROW(is_forward ? attention_forward(inputs, query, &none)
                          : attention_backward(inputs, {query, &none, query, nullptr}, {query, nullptr, key, key}),
               std::bad_alloc);
  set_scratch_limit(std::numeric_limits<std::size_t>::max());
  return take_largest_scratch();
}

TEST(ScratchOfKernels, IsBoundedForLargeProblems) {
  struct Case {
    int rank;
    std::int64_t length[kAxes], kernel_size[kAxes];
  };
  for (const Case& c : {Case{1, {1, 1, 65536}, {1, 1, 16384}}, Case{2, {1, 512, 512}, {1, 63, 63}},
                        Case{2, {1, 512, 512}, {1, 255, 255}}, Case{2, {1, 2048, 2048}, {1, 13, 13}},
                        Case{3, {30, 48, 80}, {18, 24, 24}}, Case{3, {64, 64, 64}, {18, 24, 24}},
                        Case{3, {16, 512, 512}, {5, 5, 5}}, Case{3, {64, 64, 64}, {5, 5, 5}}}) {
    for (const std::int64_t dim : {64, 128, 256}) {
      for (const int variant : {0, 1, 2, 3}) {  // plain, causal, circular, heads that share their keys
        for (const FloatType type : {FloatType::float32, FloatType::bfloat16}) {
          Problem p = testing::plain_problem(c.rank, variant == 3 ? 8 : 2, dim);
          if (variant == 3) p.kv_heads = 1;
          p.query_type = p.key_type = p.value_type = type;
          std::int64_t waiting = 2 * dim * (p.heads / p.kv_heads);  // lower halves of the sums of dq
          for (int a = 0; a < kAxes; ++a) {
            const bool is_axis = c.length[a] > 1;
            p.axes[a] = {c.length[a], c.kernel_size[a], 1, 1, 1, variant == 1 && is_axis, variant == 2 && is_axis};
            waiting *= c.length[a];
          }
          SCOPED_TRACE(testing::describe(p));
          EXPECT_LE(planned_scratch(p, true), 20u << 20);
          EXPECT_LE(planned_scratch(p, false), (33u << 20) + (type == FloatType::float32 ? 0 : waiting * 3 / 2));
        }
      }
    }
  }
}

}  // namespace
}  // namespace natten::cpu

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
    attention_backward(inputs, {tensor(3), lse.data(), tensor(4), nullptr}, tensor(5), nullptr, tensor(6), tensor(7));
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

}  // namespace
}  // namespace natten::cpu

#include "native/cpu/scratch.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <new>

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

}  // namespace
}  // namespace natten::cpu

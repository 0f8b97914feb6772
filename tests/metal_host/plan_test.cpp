// Which kernels run on matrix units: one predicate in plan.cpp decides, before launch.
#include "fast/plan.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdlib>

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
int on_matrix_units(const Problem& p, Platform platform = Platform::cuda) {
  int count = 0;
  for (const KernelId kernel : kFused) count += plan(p, kernel, platform).matrix;
  return count;
}

TEST(MatrixUnits, TakeHeadDimsFrom8To128) {
  for (const Platform platform : {Platform::metal, Platform::cuda}) {
    for (const FloatType type : {f16, bf16}) {
      for (const std::int64_t dim : {8, 12, 24, 33, 40, 48, 64, 72, 80, 96, 127, 128}) {
        EXPECT_EQ(on_matrix_units(attention(type, dim, dim), platform), 3) << dim;
        EXPECT_EQ(on_matrix_units(attention(type, dim, 136 - dim), platform), 3) << dim;
      }
      for (const std::int64_t dim : {1, 7, 129, 256}) {
        EXPECT_EQ(on_matrix_units(attention(type, dim, 64), platform), 0) << dim;
        EXPECT_EQ(on_matrix_units(attention(type, 64, dim), platform), 0) << dim;
      }
    }
  }
}

TEST(MatrixUnits, OfAppleTakeFloat32) {
  EXPECT_EQ(on_matrix_units(attention(f32, 64, 64), Platform::metal), 3);
  EXPECT_EQ(on_matrix_units(attention(f32, 128, 128), Platform::metal), 3);
  EXPECT_EQ(on_matrix_units(attention(f32, 64, 64), Platform::cuda), 0);
}

TEST(MatrixUnits, TakeNoMixtureOfTypes) {
  for (const auto& [query, key, value] :
       {std::array{f16, f16, f32}, {f16, f32, f16}, {f32, f16, f16}, {f16, bf16, f16}, {bf16, bf16, f16}}) {
    Problem p = attention(f16, 64, 64);
    p.query_type = query, p.key_type = key, p.value_type = value;
    for (const Platform platform : {Platform::metal, Platform::cuda}) EXPECT_EQ(on_matrix_units(p, platform), 0);
  }
}

TEST(MatrixUnits, LeaveTheGradientOfABiasToMultiplyAdds) {
  Problem p = attention(f16, 64, 64);
  p.has_rpb = true;
  EXPECT_TRUE(plan(p, KernelId::forward, Platform::cuda).matrix);
  EXPECT_FALSE(plan(p, KernelId::backward_query, Platform::cuda).matrix);
  EXPECT_TRUE(plan(p, KernelId::backward_key_value, Platform::cuda).matrix);
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

/// Packed coordinates of a tile's region must fit in a word.
TEST(MatrixUnits, LeaveRegionsThatAreTooLargeToMultiplyAdds) {
  Problem p = attention(f16, 64, 64);
  for (Axis& axis : p.axes) axis = {1024, 1024, 1, 1, 1, false};
  EXPECT_EQ(on_matrix_units(p), 0);
}

TEST(MatrixUnits, HaveNoKernelsOfTheSplitForm) {
  Problem qk = attention(f16, 64, 0), av = attention(f16, 0, 64);
  qk.op = Op::qk;
  av.op = Op::av;
  for (const KernelId kernel : {KernelId::qk, KernelId::qk_backward_query, KernelId::qk_backward_key}) {
    EXPECT_FALSE(plan(qk, kernel, Platform::cuda).matrix);
  }
  for (const KernelId kernel : {KernelId::av, KernelId::av_backward_attn, KernelId::av_backward_value}) {
    EXPECT_FALSE(plan(av, kernel, Platform::cuda).matrix);
  }
}

TEST(MatrixUnits, CanBeSwitchedOff) {
  setenv("NATTEN_FAST_TILE", "matrix=0", 1);
  EXPECT_EQ(on_matrix_units(attention(f16, 64, 64)), 0);
  unsetenv("NATTEN_FAST_TILE");
  EXPECT_EQ(on_matrix_units(attention(f16, 64, 64)), 3);
}

}  // namespace
}  // namespace natten::fast

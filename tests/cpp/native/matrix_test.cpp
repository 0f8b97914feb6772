// bfloat16 on matrix units: windows that they take, with every option, forward and backward; what is not finite reaches
// what the vector kernels let it reach; and no thread keeps AMX's registers.
#include <cmath>

#include "every_target.h"
#include "native/cpu/forward_plan.h"
#include "native/cpu/matrix_plan.h"

namespace natten::cpu::testing {
namespace {

class Matrix : public EveryTarget {
 protected:
  static Problem bfloat_problem(int rank, std::int64_t heads, std::int64_t dim) {
    Problem p = plain_problem(rank, heads, dim);
    p.query_type = p.key_type = p.value_type = FloatType::bfloat16;
    return p;
  }

  void run(std::uint64_t seed, const Problem& p) {
    ++problems_;
    taken_ += takes_matrix_unit(p) ? 1 : 0;
    const bool has_backward = takes_matrix_unit_backward(p);
    EveryTarget::run(seed, p, {has_backward ? &KernelCase::run_attention : &KernelCase::run_forward});
  }

  void SetUp() override {
    EveryTarget::SetUp();
    if (matrix_unit() == MatrixUnit::none) GTEST_SKIP() << "no matrix unit";
  }
  void TearDown() override {
    EXPECT_GE(3 * taken_, 2 * problems_);  // a few problems are left to vectors
    EveryTarget::TearDown();
  }

  int problems_ = 0, taken_ = 0;
};

TEST_P(Matrix, AlongTwoAxes) {
  std::uint64_t seed = 700;
  for (const std::int64_t kernel_size : {13, 17}) {
    for (const std::int64_t dim : {32, 33, 64, 97}) {
      Problem p = bfloat_problem(2, 1 + seed % 2, dim);
      if (seed % 3 == 0) p.heads *= 2;
      p.value_dim = seed % 4 == 1 ? dim + 7 : dim;
      p.axes[1] = {kernel_size + static_cast<std::int64_t>(seed % 5), kernel_size, 1, 1, 1, false};
      p.axes[2] = {kernel_size + 3 + static_cast<std::int64_t>(seed % 9), kernel_size, 1, 1, 1, false};
      if (seed % 5 == 1) p.axes[2].gna_stride = 3;
      if (seed % 7 == 1) p.axes[1].gna_stride = kernel_size / 2;
      p.has_lengths = seed % 5 == 2;
      run(seed++, p);
      if (HasFailure()) return;
    }
  }
}

TEST_P(Matrix, CausalDilatedStridedNegative) {
  Problem p = bfloat_problem(2, 2, 64);
  p.axes[1] = {29, 14, 1, 2, 1, false};
  p.axes[2] = {27, 13, 1, 1, 1, true};
  run(740, p);
  p.axes[1] = {20, 17, 4, 1, 1, true};
  p.axes[2] = {40, 15, 1, 2, 1, false};
  run(741, p);
  p.axes[1] = {24, 20, 1, 1, 1, false};
  p.axes[2] = {30, 20, 1, 1, 2, false};
  run(742, p);
  p.scale = -0.3;
  run(743, p);
  p.axes[2] = {30, 20, 1, 1, 3, true};
  run(744, p);
  p.axes[1].is_causal = p.axes[2].is_causal = true;
  p.axes[2] = {30, 20, 5, 1, 1, true};
  p.scale = 0.2;
  run(744, p);
}

TEST_P(Matrix, AlongThreeAxes) {
  Problem p = bfloat_problem(3, 1, 64);
  p.axes[0] = {9, 7, 1, 1, 1, false};
  p.axes[1] = {10, 7, 1, 1, 1, false};
  p.axes[2] = {15, 13, 1, 1, 1, false};
  run(760, p);
  p.axes[0] = {6, 3, 1, 1, 1, true};
  p.axes[1] = {12, 1, 1, 1, 1, false};
  p.axes[2] = {110, 96, 1, 1, 1, false};
  run(761, p);
  p.axes[0] = {5, 1, 1, 1, 1, false};
  p.axes[1] = {20, 16, 1, 1, 1, false};
  p.axes[2] = {23, 16, 3, 1, 1, false};
  run(762, p);
}

// Also so long that there are many chunks of keys.
TEST_P(Matrix, AlongOneAxis) {
  std::uint64_t seed = 780;
  for (const std::int64_t kernel_size : {96, 127, 128, 600}) {
    for (const bool is_causal : {false, true}) {
      Problem p = bfloat_problem(1, 1, seed % 2 ? 64 : 72);
      p.axes[2] = {kernel_size + 37, kernel_size, 1, 1, 1, is_causal};
      if (seed % 3 == 0) p.axes[2].gna_stride = 5;
      p.has_lengths = seed % 4 == 1;
      run(seed++, p);
    }
  }
}

std::uint16_t bits_of(double x) {
  BFloat half;
  from_float(static_cast<float>(x), half);
  return half.bits;
}

// One value, key, query or gradient of a result is not finite; results are so where, and nowhere else than, the vector
// kernels have them.
TEST_P(Matrix, WhatIsNotFinite) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const std::int64_t dim = 64;
  Problem p = bfloat_problem(2, 2, dim);
  p.axes[1] = {20, 13, 1, 1, 1, false};
  p.axes[2] = {22, 13, 1, 1, 1, false};
  ++problems_;
  taken_ += takes_matrix_unit_backward(p) ? 1 : 0;
  const std::int64_t tokens = p.tokens(), size = tokens * 2 * dim;
  Random random(5);
  std::normal_distribution<double> normal;
  for (int which = 0; which < 4; ++which) {
    for (const double poison : {kInfinity, -kInfinity, std::nan("")}) {
      std::vector<std::uint16_t> arrays[8];  // query, key, value, dout; out, dq, dk, dv
      for (auto& array : arrays) {
        array.resize(size);
        for (auto& x : array) x = bits_of(normal(random));
      }
      arrays[which][(200 * 2 + 1) * dim + 5] = bits_of(poison);
      const auto tensor = [&](int i) {
        const std::int64_t row = p.axes[2].length * 2 * dim;
        return Tensor{arrays[i].data(), {tokens * 2 * dim, row, row, 2 * dim, dim}, FloatType::bfloat16};
      };
      std::vector<float> lse[2];
      Values out[2];
      for (int i = 0; i < 2; ++i) {
        set_cpu_target(i == 0 ? GetParam() : "AVX3");
        lse[i].resize(tokens * 2);
        const AttentionInputs inputs{p, tensor(0), tensor(1), tensor(2), nullptr, nullptr};
        attention_forward(inputs, tensor(4), lse[i].data());
        attention_backward(inputs, {tensor(4), lse[i].data(), tensor(3), nullptr},
                           {tensor(5), nullptr, tensor(6), tensor(7)});
        for (int a = 4; a < 8; ++a) {
          for (const std::uint16_t bits : arrays[a]) out[i].push_back(to_float(BFloat{bits}));
        }
      }
      set_cpu_target(GetParam());
      const auto expect_alike = [&](double got, double want, double tolerance) {
        if (std::isnan(want)) {
          EXPECT_TRUE(std::isnan(got)) << got;
        } else if (std::isinf(want)) {
          EXPECT_EQ(got, want);
        } else {
          EXPECT_NEAR(got, want, tolerance);
        }
      };
      for (std::int64_t i = 0; i < 4 * size; ++i) expect_alike(out[0][i], out[1][i], 0.04);
      for (std::int64_t i = 0; i < tokens * 2; ++i) expect_alike(lse[0][i], lse[1][i], 1e-4);
      if (HasFailure()) FAIL() << "array " << which << ", " << poison;
    }
  }
}

NATTEN_ON_EVERY_TARGET(Matrix);

#if defined(__x86_64__)
TEST(MatrixRegisters, AreReleased) {
  if (!has_matrix_unit(MatrixUnit::amx)) GTEST_SKIP() << "no AMX here";
  const auto tiles_in_use = [] {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(1));
    return (low >> 18 & 1) != 0;
  };
  EXPECT_FALSE(tiles_in_use());
  {
    const MatrixRegisters registers(MatrixUnit::amx);
    alignas(64) static std::uint16_t a[512], b[512];
    alignas(64) static float sums[256];
    std::fill_n(a, 512, bits_of(2));
    std::fill_n(b, 512, bits_of(3));
    const std::int64_t zero = 0;
    multiply<false>(MatrixUnit::amx, {reinterpret_cast<const char*>(a), &zero, &zero, 64,
                                      reinterpret_cast<const char*>(b), &zero, &zero, 64, 1, 1, 1, sums, &zero, 64});
    EXPECT_TRUE(tiles_in_use());
    for (const float sum : sums) EXPECT_EQ(sum, 32 * 6);
  }
  EXPECT_FALSE(tiles_in_use());
}
#endif

}  // namespace
}  // namespace natten::cpu::testing

// Every entry point on random problems, on every SIMD target that the machine runs.
#include <cstdlib>

#include "kernel_case.h"
#include "native/cpu/target.h"

namespace natten::cpu::testing {
namespace {

// NATTEN_TEST_CASES multiplies the number of random problems.
int cases(int count) {
  const char* factor = std::getenv("NATTEN_TEST_CASES");
  return factor == nullptr ? count : std::max(1, static_cast<int>(count * std::atof(factor)));
}

class Kernels : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { set_cpu_target(GetParam()); }
  void TearDown() override { set_cpu_target(""); }

  void run_random(std::uint64_t first_seed, int count, const Limits& limits, void (KernelCase::*run)()) {
    for (int i = 0; i < count && !HasFailure(); ++i) {
      Random random(first_seed + i);
      const Problem problem = random_problem(random, limits);
      SCOPED_TRACE("seed " + std::to_string(first_seed + i) + ": " + describe(problem));
      KernelCase kernel_case(random, problem);
      (kernel_case.*run)();
    }
  }
};

TEST_P(Kernels, Attention) {
  run_random(1000, cases(150), {}, &KernelCase::run_attention);
}
TEST_P(Kernels, Split) {
  run_random(5000, cases(150), {}, &KernelCase::run_split);
}
TEST_P(Kernels, AttentionWide) {
  run_random(2000, cases(30), {200000, 80, 257}, &KernelCase::run_attention);
}
TEST_P(Kernels, SplitWide) {
  run_random(6000, cases(30), {200000, 80, 257}, &KernelCase::run_split);
}

INSTANTIATE_TEST_SUITE_P(Targets, Kernels, ::testing::ValuesIn(cpu_targets()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace natten::cpu::testing

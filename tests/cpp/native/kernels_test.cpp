// Every entry point on random problems, on every SIMD target that the machine runs.
#include "every_target.h"

namespace natten::cpu::testing {
namespace {

class Kernels : public EveryTarget {
 protected:
  void run_random(std::uint64_t first_seed, int count, const Limits& limits, void (KernelCase::*entry)()) {
    for (int i = 0; i < count && !HasFailure(); ++i) {
      Random random(first_seed + i);
      run(first_seed + i, random_problem(random, limits), {entry});
    }
  }
};

TEST_P(Kernels, Attention) {
  run_random(1000, cases(1200), {}, &KernelCase::run_attention);
}
TEST_P(Kernels, AttentionWithHiddenPairs) {
  const int count = cases(300);
  for (int i = 0; i < count && !HasFailure(); ++i) {
    Random random(3000 + i);
    Problem problem = random_problem(random, {});
    problem.has_rpb = true;
    run(3000 + i, problem, {&KernelCase::run_attention_with_hidden_pairs});
  }
}
TEST_P(Kernels, Split) {
  run_random(50000, cases(1200), {}, &KernelCase::run_split);
}
TEST_P(Kernels, AttentionWide) {
  run_random(2000, cases(150), {200000, 80, 257}, &KernelCase::run_attention);
}
TEST_P(Kernels, SplitWide) {
  run_random(60000, cases(150), {200000, 80, 257}, &KernelCase::run_split);
}

NATTEN_ON_EVERY_TARGET(Kernels);

}  // namespace
}  // namespace natten::cpu::testing

// The backward pass without a ring of packed queries, which are packed anew for every block of keys.
#include "every_target.h"
#include "native/cpu/tile_tasks.h"

namespace natten::cpu::testing {
namespace {

class PackedAnew : public EveryTarget {
 protected:
  void TearDown() override {
    set_sweep_limit(0);
    EveryTarget::TearDown();
  }
};

TEST_P(PackedAnew, OfRandomProblems) {
  const int count = cases(150);
  for (int i = 0; i < count && !HasFailure(); ++i) {
    Random random(5000 + i);
    const Problem problem = random_problem(random, {});
    // Blocks of one row of keys and more, strips or not.
    set_sweep_limit(1 << pick(random, 0, 20));
    run(5000 + i, problem, {&KernelCase::run_attention_with_tokens, &KernelCase::run_split});
    if (problem.has_rpb) run(5000 + i, problem, {&KernelCase::run_attention_with_hidden_pairs});
  }
}

TEST_P(PackedAnew, InStrips) {
  std::uint64_t seed = 5200;
  for (const FloatType type : {FloatType::float32, FloatType::float16, FloatType::bfloat16}) {
    for (const bool is_circular : {false, true}) {
      Problem p = plain_problem(3, 2, 17);
      p.kv_heads = is_circular ? 2 : 1;
      p.query_type = p.key_type = p.value_type = type;
      p.axes[0] = {3, 2, 1, 1, 1, false, is_circular};
      p.axes[1] = {5, 3, 1, 1, 1, !is_circular, is_circular};
      p.axes[2] = {70, 5, 1, 1, 1, false, is_circular};
      for (const std::int64_t limit : {1 << 8, 1 << 15, 1 << 17}) {
        set_sweep_limit(limit);
        run(seed++, p, {&KernelCase::run_attention});
      }
    }
  }
}

// Their sums wait in the rows of dq.
TEST_P(PackedAnew, LongWindowsAlongOneAxis) {
  std::uint64_t seed = 5300;
  for (const FloatType type : {FloatType::float32, FloatType::float16, FloatType::bfloat16}) {
    Problem p = plain_problem(1, 2, 9);
    p.kv_heads = 1;
    p.query_type = type;
    p.axes[2] = {700, 300, 1, 1, 1, false, type == FloatType::bfloat16};
    set_sweep_limit(1);
    run(seed++, p, {&KernelCase::run_attention});
  }
}

NATTEN_ON_EVERY_TARGET(PackedAnew);

}  // namespace
}  // namespace natten::cpu::testing

// Tensors whose elements lie more than 2^31 elements apart: every product of an index and a stride needs 64 bits. They
// are mapped, but only the pages of their few rows take memory, so this runs on any machine.
#include "every_target.h"

namespace natten::cpu::testing {
namespace {

class Distance : public EveryTarget {
 protected:
  static void run(const Problem& problem, void (KernelCase::*entry)()) {
    for (std::uint64_t seed = 0; seed < 8 && !HasFailure(); ++seed) {
      SCOPED_TRACE("seed " + std::to_string(seed) + ": " + describe(problem));
      Random random(seed);
      try {
        (KernelCase(random, problem, TestTensor::Layout::distant).*entry)();
      } catch (const std::bad_alloc&) {
        GTEST_SKIP() << "needs 100 GiB of address space (not of memory), which this system does not give";
      }
    }
  }

  /// Two tokens or more on every axis.
  static Problem problem(FloatType type) {
    Problem p = plain_problem(3, 4, 8);
    p.batch = p.kv_heads = 2;
    p.axes = {Axis{3, 2, 1, 1, 1, false}, Axis{4, 3, 1, 1, 1, true}, Axis{18, 5, 1, 2, 1, false}};
    p.query_type = p.key_type = p.value_type = type;
    p.has_lengths = type == FloatType::float16;
    return p;
  }
};

TEST_P(Distance, Attention) {
  run(problem(FloatType::float32), &KernelCase::run_attention);
  run(problem(FloatType::float16), &KernelCase::run_attention);
}

TEST_P(Distance, Split) {
  run(problem(FloatType::float32), &KernelCase::run_split);
  run(problem(FloatType::float16), &KernelCase::run_split);
}

TEST_P(Distance, QueryLanes) {
  Problem p = plain_problem(1, 2, 8);
  p.batch = 2;
  p.axes[2] = {70, 30, 1, 1, 1, false};
  run(p, &KernelCase::run_attention);
}

NATTEN_ON_EVERY_TARGET(Distance);

}  // namespace
}  // namespace natten::cpu::testing

// Tests that run once on every SIMD target of the machine.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "kernel_case.h"
#include "native/cpu/target.h"

namespace natten::cpu::testing {

/// How many of `count` random problems to run: NATTEN_TEST_CASES multiplies them.
inline int cases(int count) {
  const char* factor = std::getenv("NATTEN_TEST_CASES");
  return factor == nullptr ? count : std::max(1, static_cast<int>(count * std::atof(factor)));
}

class EveryTarget : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { set_cpu_target(GetParam()); }
  void TearDown() override { set_cpu_target(""); }

  /// Runs the entry points named, of a problem whose data `seed` chooses.
  static void run(std::uint64_t seed, const Problem& problem, std::initializer_list<void (KernelCase::*)()> entries) {
    SCOPED_TRACE("seed " + std::to_string(seed) + ": " + describe(problem));
    Random random(seed);
    for (const auto entry : entries) (KernelCase(random, problem).*entry)();
  }
};

/// Instantiates a suite derived from EveryTarget.
#define NATTEN_ON_EVERY_TARGET(suite)                                          \
  INSTANTIATE_TEST_SUITE_P(Targets, suite, ::testing::ValuesIn(cpu_targets()), \
                           [](const auto& info) { return info.param; })

/// One sample without options, every axis a single token.
inline Problem plain_problem(int rank, std::int64_t heads, std::int64_t dim) {
  Problem p;
  p.rank = rank;
  p.batch = 1;
  p.heads = p.kv_heads = heads;
  p.head_dim = p.value_dim = dim;
  p.scale = 1 / std::sqrt(static_cast<double>(dim));
  p.axes.fill(Axis{1, 1, 1, 1, 1, false});
  return p;
}

}  // namespace natten::cpu::testing

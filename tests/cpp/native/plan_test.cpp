// Tables of windows: shared by samples, bounded where samples differ.
#include "every_target.h"
#include "native/cpu/tile_tasks.h"

namespace natten::cpu::testing {
namespace {

Problem long_problem(std::int64_t batch, std::int64_t length) {
  Problem p = plain_problem(1, 1, 8);
  p.batch = batch;
  p.axes[2] = {length, 7, 1, 2, 1, false};
  return p;
}

TEST(Plan, SamplesShareTheirTables) {
  AttentionInputs inputs{long_problem(64, 65536), {}, {}, {}, nullptr, nullptr};
  int waves = 0;
  for_each_wave(inputs, Cut::keys, [&](const std::vector<SamplePlan>& plans) {
    ++waves;
    ASSERT_EQ(plans.size(), 64u);
    for (const SamplePlan& plan : plans) EXPECT_EQ(&plan.group(2, 1), &plans[0].group(2, 1));
  });
  EXPECT_EQ(waves, 1);
}

TEST(Plan, DifferentLengthsComeInWaves) {
  constexpr std::int64_t kBatch = 40, kLength = 65536;
  AttentionInputs inputs{long_problem(kBatch, kLength), {}, {}, {}, nullptr, nullptr};
  std::vector<std::int32_t> lengths;
  for (std::int64_t b = 0; b < kBatch; ++b) {
    lengths.insert(lengths.end(), {1, 1, static_cast<std::int32_t>(b == 3 ? 1 : kLength - b / 2)});
  }
  inputs.lengths = lengths.data();
  inputs.problem.has_lengths = true;
  std::int64_t next = 0;
  for_each_wave(inputs, Cut::keys, [&](const std::vector<SamplePlan>& plans) {
    std::int64_t bytes = 0;
    const void* last = nullptr;
    for (const SamplePlan& plan : plans) {
      next += next == 3 ? 1 : 0;  // whose length is illegal
      EXPECT_EQ(plan.batch, next++);
      if (&plan.group(2, 0) != last) bytes += plan.group(2, 0).bytes() + plan.group(2, 1).bytes();
      last = &plan.group(2, 0);
    }
    EXPECT_LT(bytes, 24 << 20);
  });
  EXPECT_EQ(next, kBatch);
}

// As many waves as samples.
TEST(Plan, WavesAddUp) {
  Problem p = long_problem(3, 150000);
  p.axes[2].dilation = 1;
  p.axes[2].stride = 7;
  p.heads = p.kv_heads = 1;
  p.head_dim = p.value_dim = 2;
  p.has_rpb = p.has_lengths = true;
  Random random(7);
  KernelCase(random, p).run_attention();
}

}  // namespace
}  // namespace natten::cpu::testing

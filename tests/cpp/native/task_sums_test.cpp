// Sums over the queries of all tasks, of position biases and extra tokens: few tasks at a time, and one done again.
#include "every_target.h"
#include "native/cpu/tile_tasks.h"

namespace natten::cpu::testing {
namespace {

TEST(TaskSums, MemoryIsBounded) {
  struct Case {
    std::int64_t heads, kernel_size, tasks;
  };
  for (const Case& c : {Case{16, 63, 1 << 20}, Case{2, 200, 64}, Case{1, 2, 1 << 30}}) {
    Problem p = plain_problem(2, c.heads, 1);
    p.kv_heads = 1;
    for (int a : {1, 2}) p.axes[a] = {c.kernel_size, c.kernel_size, 1, 1, 1, false};
    std::vector<float> drpb(c.heads * (2 * c.kernel_size - 1) * (2 * c.kernel_size - 1), 1.0f);
    const TaskSums sums(p, drpb.data(), nullptr);
    EXPECT_GE(sums.size(), static_cast<std::int64_t>(drpb.size()));
    EXPECT_LE(4 * sums.size() * sums.most(c.tasks), 128 << 20);
    EXPECT_GE(sums.most(c.tasks), 1);
  }
  EXPECT_EQ(TaskSums(plain_problem(1, 1, 1), nullptr, nullptr).most(7), 7);
}

/// With room for the sums of few tasks.
class FewTasks : public EveryTarget {
 protected:
  void TearDown() override {
    set_task_sums_limit(0);
    EveryTarget::TearDown();
  }
};

TEST_P(FewTasks, OfRandomProblems) {
  const int count = cases(150);
  for (int i = 0; i < count && !HasFailure(); ++i) {
    Random random(4000 + i);
    Problem problem = random_problem(random, {});
    problem.has_rpb = true;
    set_task_sums_limit(1 << pick(random, 0, 12));
    run(4000 + i, problem, {&KernelCase::run_attention_with_tokens, &KernelCase::run_split});
  }
}

// A task that is done again, because its dense blocks met an infinity, keeps what the tasks before it added.
TEST_P(FewTasks, ATaskThatIsDoneAgain) {
  constexpr std::int64_t kLength = 1300, kDim = 4, kKernel = 31;
  Problem p = plain_problem(1, 1, kDim);
  p.axes[2] = {kLength, kKernel, 1, 1, 1, false};
  p.has_rpb = true;
  Random random(1);
  std::uniform_real_distribution<float> uniform(0.1f, 1.0f);
  std::vector<std::vector<float>> arrays(8, std::vector<float>(kLength * kDim));
  for (auto& array : arrays) {
    for (float& x : array) x = uniform(random);
  }
  auto &query = arrays[0], &key = arrays[1], &value = arrays[2], &dout = arrays[3], &out = arrays[4];
  std::fill_n(key.begin() + 900 * kDim, kDim, -std::numeric_limits<float>::infinity());  // its weight is zero
  const auto tensor = [&](std::vector<float>& values) {
    return Tensor{values.data(), {kLength * kDim, kLength * kDim, kLength * kDim, kDim, kDim}, FloatType::float32};
  };
  const std::vector<float> rpb(2 * kKernel - 1, 0.25f);
  std::vector<float> lse(kLength), drpb(rpb.size());
  const AttentionInputs inputs{p, tensor(query), tensor(key), tensor(value), rpb.data(), nullptr};
  attention_forward(inputs, tensor(out), lse.data());
  const auto to_double = [](const std::vector<float>& x) { return Values(x.begin(), x.end()); };
  oracle::Arrays given;
  given.query = to_double(query), given.key = to_double(key), given.value = to_double(value);
  given.rpb = to_double(rpb), given.out = to_double(out), given.lse = to_double(lse), given.dout = to_double(dout);
  const Values want = oracle::Reference(p, given).attention_gradients().rpb;
  for (const std::int64_t limit : {1, 0}) {
    set_task_sums_limit(limit);
    attention_backward(inputs, {tensor(out), lse.data(), tensor(dout), nullptr},
                       {tensor(arrays[5]), drpb.data(), tensor(arrays[6]), tensor(arrays[7])});
    expect_close("drpb", to_double(drpb), want, FloatType::float32, 1e-4);
  }
}

NATTEN_ON_EVERY_TARGET(FewTasks);

}  // namespace
}  // namespace natten::cpu::testing

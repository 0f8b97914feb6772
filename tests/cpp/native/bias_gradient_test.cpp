#include "native/cpu/bias_gradient.h"

#include "every_target.h"

namespace natten::cpu::testing {
namespace {

TEST(BiasGradient, MemoryIsBounded) {
  struct Case {
    std::int64_t heads, kernel_volume_of_table, tasks;
  };
  for (const Case& c : {Case{16, 125 * 125, 1 << 20}, Case{32, 127 * 127 * 127, 64}, Case{1, 3, 1 << 30}}) {
    std::vector<float> drpb(c.heads * c.kernel_volume_of_table);
    const BiasGradient gradient(drpb.data(), c.heads, c.kernel_volume_of_table, c.tasks);
    EXPECT_LT(4 * (gradient.parts() - 1) * c.heads * c.kernel_volume_of_table, 128 << 20);
    EXPECT_EQ(gradient.part(0, 0), drpb.data());
  }
  EXPECT_EQ(BiasGradient(nullptr, 4, 9, 7).parts(), 7);
  EXPECT_EQ(BiasGradient(nullptr, 4, 9, 7).part(1, 2), nullptr);
}

/// With room for `bytes` of partial tables.
class FewParts : public EveryTarget {
 protected:
  void TearDown() override {
    set_bias_gradient_limit(0);
    EveryTarget::TearDown();
  }
};

TEST_P(FewParts, OfRandomProblems) {
  const int count = cases(150);
  for (int i = 0; i < count && !HasFailure(); ++i) {
    Random random(4000 + i);
    Problem problem = random_problem(random, {});
    problem.has_rpb = true;
    set_bias_gradient_limit(1 << pick(random, 0, 12));
    run(4000 + i, problem, {&KernelCase::run_attention, &KernelCase::run_split});
  }
}

// A task that is done again, because its dense blocks met an infinity, keeps what the tasks before it added.
TEST_P(FewParts, ATaskThatIsDoneAgain) {
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
    set_bias_gradient_limit(limit);
    attention_backward(inputs, {tensor(out), lse.data(), tensor(dout), nullptr}, tensor(arrays[5]), drpb.data(),
                       tensor(arrays[6]), tensor(arrays[7]));
    expect_close("drpb", to_double(drpb), want, FloatType::float32, 1e-4);
  }
}

NATTEN_ON_EVERY_TARGET(FewParts);

}  // namespace
}  // namespace natten::cpu::testing

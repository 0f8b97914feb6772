// Which tier runs a problem, and what is told of it: without a GPU, problems of GPUs go through the same choice.
#include "api/registry.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "natten/tiers.h"

namespace natten {
namespace {

Problem problem(DeviceType device, FloatType type) {
  Problem p;
  p.device = device;
  p.batch = p.heads = p.kv_heads = 1;
  p.head_dim = p.value_dim = 8;
  p.axes = {Axis{1, 1, 1, 1, 1, false}, Axis{1, 1, 1, 1, 1, false}, Axis{9, 3, 1, 1, 1, false}};
  p.query_type = p.key_type = p.value_type = type;
  return p;
}

class Registry : public testing::Test {
 protected:
  Registry() {
    set_backend("auto");
    set_fallback_logger([this](const std::string& message) { told.push_back(message); });
  }
  ~Registry() override {
    set_fallback_logger([](const std::string&) {});
  }

  std::string run(const Problem& p) { return choose_tier({"na1d", 1}, p)->name; }

  std::vector<std::string> told;
};

TEST_F(Registry, AutoTellsOfWhatEndsOnPure) {
  EXPECT_EQ(run(problem(DeviceType::cpu, FloatType::float16)), kCompiled);
  EXPECT_TRUE(told.empty());
  for (int i = 0; i < 2; ++i) EXPECT_EQ(run(problem(DeviceType::cpu, FloatType::float64)), kPure);
  ASSERT_EQ(told.size(), 1u);
  EXPECT_NE(told[0].find("float64 is computed by the pure tier only"), std::string::npos) << told[0];
  EXPECT_NE(told[0].find("falling back to tier 'pure'"), std::string::npos) << told[0];
}

/// Also a tier whose predicate takes everything.
TEST(Options, AreDeclinedByTiersThatDoNotNameThem) {
  Tier tier;
  tier.supports = [](const Problem&, Role) { return Objection(); };
  Problem p = problem(DeviceType::cpu, FloatType::float32);
  EXPECT_FALSE(objection(tier, p));
  p.axes[2].is_circular = true;
  tier.takes = kSpan | kLongCausalKernel;
  EXPECT_EQ(objection(tier, p), "a circular axis is not among the options of this tier");
  tier.takes |= kCircularAxis;
  EXPECT_FALSE(objection(tier, p));
}

TEST_F(Registry, AutoTellsOfAGpuThatEndsOnPure) {
  Problem p = problem(DeviceType::gpu, FloatType::float32);
  const bool has_gpu = support_matrix().at(kFast).available;
  if (has_gpu) p.head_dim = p.value_dim = 1024;  // more than kernels for GPUs take
  EXPECT_EQ(run(p), kPure);
  ASSERT_EQ(told.size(), 1u);
  EXPECT_NE(told[0].find("compiled kernels run on the CPU device only"), std::string::npos) << told[0];
  if (!has_gpu) EXPECT_NE(told[0].find("MLX finds no GPU on this machine"), std::string::npos) << told[0];
}

TEST_F(Registry, TheJitTierHasOneName) {
  const std::string name = support_matrix().at(kFast).name;
  set_backend(kFastCuda);
  EXPECT_EQ(get_backend(), name);
  for (const TierPtr& tier : tiers()) EXPECT_TRUE(tier->name == kCompiled || tier->name == kPure || tier->name == name);
  set_backend(kPure);
  std::string declined;
  for (const auto& [tier, reason] :
       explain_choice({"na1d", 1}, problem(DeviceType::cpu, FloatType::float32)).declined) {
    declined += tier + ": " + reason + '\n';
  }
  EXPECT_EQ(declined,
            std::string(kCompiled) + ": the backend 'pure' is chosen\n" + name + ": the backend 'pure' is chosen\n");
  set_backend("auto");
}

}  // namespace
}  // namespace natten

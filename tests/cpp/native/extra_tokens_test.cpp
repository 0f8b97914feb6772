// Extra tokens, which every query attends besides its window, in every kernel: all options, every design of the forward
// and of the backward, and what is not finite.
#include "every_target.h"
#include "native/cpu/forward_plan.h"
#include "native/cpu/matrix_plan.h"

namespace natten::cpu::testing {
namespace {

class ExtraTokens : public EveryTarget {
 protected:
  static void run(std::uint64_t seed, const Problem& p) {
    EveryTarget::run(seed, p, {&KernelCase::run_attention_with_tokens});
  }
};

TEST_P(ExtraTokens, OfRandomProblems) {
  const int count = cases(500);
  for (int i = 0; i < count && !HasFailure(); ++i) {
    Random random(7000 + i);
    run(7000 + i, random_problem(random, {}));
  }
}

TEST_P(ExtraTokens, AlongOneAxis) {
  std::uint64_t seed = 100;
  for (const std::int64_t kernel_size : {1, 7, 31, 100, 300}) {  // direct, query lanes with one tile and two, chunks
    for (const bool is_causal : {false, true}) {
      Problem p = plain_problem(1, 2, kernel_size == 100 ? 64 : 40);
      p.kv_heads = seed % 3 == 0 ? 1 : 2;
      p.axes[2] = {2 * kernel_size + 50, kernel_size, 1, 1, 1, is_causal};
      if (seed % 4 == 1) p.axes[2].gna_stride = std::max<std::int64_t>(kernel_size / 3, 1);
      if (seed % 4 == 2) p.axes[2].stride = std::min<std::int64_t>(3, kernel_size);
      p.has_rpb = seed % 3 == 1;
      p.has_lengths = seed % 5 == 1;
      run(seed++, p);
    }
  }
  Problem p = plain_problem(1, 1, 16);
  p.value_dim = 500;
  p.axes[2] = {560, 516, 2, 1, 1, false};  // keys are packed some at a time
  run(seed, p);
}

TEST_P(ExtraTokens, OfFewQueries) {
  std::uint64_t seed = 200;
  for (const std::int64_t dim : {16, 33, 64, 128}) {
    for (const std::int64_t kernel_size : {17, 64, 1000}) {
      Problem p = plain_problem(2, 4, dim);
      p.kv_heads = seed % 2 == 0 ? 2 : 4;
      p.axes[1] = {2, 1, 1, 1, 1, false};
      p.axes[2] = {kernel_size + 20, kernel_size, kernel_size / 3, 1, 1, seed % 3 == 0};
      p.has_rpb = seed % 3 == 1;
      if (seed % 4 == 1) p.key_type = p.value_type = FloatType::bfloat16;
      EXPECT_EQ(forward::choose_design(p), forward::Design::few_queries);
      run(seed++, p);
    }
  }
}

TEST_P(ExtraTokens, InSegmentsAndStrips) {
  Problem p = plain_problem(2, 2, 4);
  p.kv_heads = 1;
  p.axes[1] = {40, 40, 2, 1, 1, false};
  p.axes[2] = {41, 41, 3, 1, 1, false};
  EXPECT_TRUE(forward::is_segmented(p));
  run(300, p);
  p = plain_problem(3, 1, 5);
  p.axes[0] = {13, 12, 1, 1, 1, false};
  p.axes[1] = {14, 13, 1, 1, 2, false};
  p.axes[2] = {15, 12, 5, 1, 1, false};
  EXPECT_TRUE(forward::is_segmented(p));
  run(301, p);
  p = plain_problem(2, 1, 130);
  p.axes[1] = {20, 5, 1, 1, 1, false};
  p.axes[2] = {100, 9, 1, 1, 1, false};  // several strips
  run(302, p);
}

TEST_P(ExtraTokens, OnAMatrixUnit) {
  if (matrix_unit() == MatrixUnit::none) GTEST_SKIP() << "no matrix unit";
  std::uint64_t seed = 400;
  for (const std::int64_t dim : {64, 65, 97}) {
    Problem p = plain_problem(2, 2, dim);
    p.query_type = p.key_type = p.value_type = FloatType::bfloat16;
    if (seed % 2 == 0) p.kv_heads = 1;
    p.value_dim = seed % 2 == 0 ? dim : dim + 7;
    p.axes[1] = {20, 13, seed % 3 == 0 ? 2 : 1, 1, 1, seed % 3 == 1};
    p.axes[2] = {23, 14, 1, 1, 1, false};
    if (seed % 3 == 2) p.scale = -0.2;
    p.has_lengths = seed % 3 == 2;
    EXPECT_TRUE(takes_matrix_unit_backward(p));
    run(seed++, p);
  }
  Problem p = plain_problem(1, 1, 72);
  p.query_type = p.key_type = p.value_type = FloatType::bfloat16;
  p.axes[2] = {200, 127, 1, 1, 1, false};
  EXPECT_TRUE(takes_matrix_unit(p));
  run(seed, p);
}

/// One head of positive arrays; keys of -infinity, of windows or of extra tokens, and infinite values with them.
class EmptyParts : public EveryTarget {
 protected:
  static constexpr float kInfinity = std::numeric_limits<float>::infinity();

  static void run_case(const Problem& p) {
    SCOPED_TRACE(describe(p));
    const std::int64_t dim = p.head_dim, tokens = p.tokens(), count = p.extra_tokens, queries = p.queries();
    Random random(tokens);
    std::uniform_real_distribution<float> uniform(0.1f, 1.0f);
    const auto random_rows = [&](std::int64_t rows) {
      std::vector<float> values(rows * dim);
      for (float& x : values) x = uniform(random);
      return values;
    };
    const std::vector<float> query = random_rows(tokens), key = random_rows(tokens), value = random_rows(tokens);
    const std::vector<float> extra_key = random_rows(count), extra_value = random_rows(count);
    const auto run = [&](std::vector<float> k, std::vector<float> v, std::vector<float> ek, std::vector<float> ev) {
      std::vector<float> q = query, out(queries * dim), lse(queries);
      const auto tensor = [&](std::vector<float>& values) {  // one sample, one plane
        const std::int64_t row = (values.data() == out.data() ? p.queries(2) : p.axes[2].length) * dim;
        return Tensor{values.data(), {0, 0, row, dim, dim}, FloatType::float32};
      };
      AttentionInputs inputs{p, tensor(q), tensor(k), tensor(v), nullptr, nullptr};
      inputs.extra_key = tensor(ek);
      inputs.extra_value = tensor(ev);
      attention_forward(inputs, tensor(out), lse.data());
      out.insert(out.end(), lse.begin(), lse.end());
      return Values(out.begin(), out.end());
    };
    const std::vector<float> lowest(key.size(), -kInfinity), lowest_extra(extra_key.size(), -kInfinity);
    const std::vector<float> high(value.size(), kInfinity), high_extra(extra_value.size(), kInfinity);
    oracle::Arrays given;
    const auto to_double = [](const std::vector<float>& x) { return Values(x.begin(), x.end()); };
    given.query = to_double(query), given.extra_key = to_double(extra_key), given.extra_value = to_double(extra_value);
    const auto want = [&](const std::vector<float>& k, const std::vector<float>& v) {
      given.key = to_double(k), given.value = to_double(v);
      Values result = oracle::Reference(p, given).out();
      const Values lse = oracle::Reference(p, given).lse();
      result.insert(result.end(), lse.begin(), lse.end());
      return result;
    };
    // Windows of no weight: what their values are reaches nothing.
    expect_close("extra tokens alone", run(lowest, high, extra_key, extra_value), want(lowest, value),
                 FloatType::float32, 1e-5);
    given.extra_key = to_double(lowest_extra);
    expect_close("windows alone", run(key, value, lowest_extra, high_extra), want(key, value), FloatType::float32,
                 1e-5);
    const Values none = run(lowest, high, lowest_extra, high_extra);
    for (std::int64_t i = 0; i < queries * dim; ++i) ASSERT_EQ(none[i], 0);
    for (std::int64_t i = 0; i < queries; ++i) ASSERT_EQ(none[queries * dim + i], -kInfinity);
    // A value that is not finite reaches every query, and only its own channel.
    std::vector<float> poisoned = extra_value;
    poisoned[dim + 1] = std::numeric_limits<float>::quiet_NaN();
    const Values some = run(key, value, extra_key, poisoned);
    for (std::int64_t i = 0; i < queries * dim; ++i) ASSERT_EQ(std::isnan(some[i]), i % dim == 1);
  }
};

TEST_P(EmptyParts, OfEveryDesign) {
  for (const std::int64_t kernel_size : {5, 31, 100}) {
    for (const std::int64_t dim : {4, 36}) {
      Problem p = plain_problem(1, 1, dim);
      p.extra_tokens = 5;
      p.axes[2] = {230, kernel_size, 1, 1, 1, false};
      run_case(p);
    }
  }
  Problem p = plain_problem(1, 1, 20);
  p.extra_tokens = 3;
  p.axes[2] = {23, 17, 3, 1, 1, false};
  EXPECT_EQ(forward::choose_design(p), forward::Design::few_queries);
  run_case(p);
  p.axes[2] = {18, 18, 1, 1, 1, false};
  p.axes[1] = {7, 3, 1, 1, 1, false};
  p.rank = 2;
  run_case(p);
}

NATTEN_ON_EVERY_TARGET(ExtraTokens);
NATTEN_ON_EVERY_TARGET(EmptyParts);

}  // namespace
}  // namespace natten::cpu::testing

// A query all of whose logits are -inf has output 0, lse -inf and gradients 0, whatever else stands in its row, and
// gives nothing to the gradients of its keys.
#include "every_target.h"

namespace natten::cpu::testing {
namespace {

class EmptyQuery : public EveryTarget {
 protected:
  /// One head, every query of `empty` minus infinity against positive keys.
  static void run_case(const Problem& p, std::initializer_list<std::int64_t> empty) {
    SCOPED_TRACE(describe(p));
    const std::int64_t dim = p.head_dim, tokens = p.tokens();
    Random random(tokens);
    std::uniform_real_distribution<float> uniform(0.1f, 1.0f);
    std::vector<std::vector<float>> arrays(5, std::vector<float>(tokens * dim));
    for (auto& array : arrays) {
      for (float& x : array) x = uniform(random);
    }
    auto &query = arrays[0], &key = arrays[1], &value = arrays[2], &dout = arrays[3], &out = arrays[4];
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    for (const std::int64_t i : empty) {
      std::fill_n(query.begin() + i * dim, dim, -kInfinity);
      std::fill_n(dout.begin() + i * dim, dim, std::numeric_limits<float>::quiet_NaN());
      value[i * dim] = kInfinity;
    }
    const auto tensor = [&](std::vector<float>& values) {
      const std::int64_t row = p.axes[2].length * dim;
      return Tensor{values.data(), {tokens * dim, row * p.axes[1].length, row, dim, dim}, FloatType::float32};
    };
    std::vector<float> lse(tokens), dq(tokens * dim), dk(tokens * dim), dv(tokens * dim);
    const AttentionInputs inputs{p, tensor(query), tensor(key), tensor(value), nullptr, nullptr};
    attention_forward(inputs, tensor(out), lse.data());
    for (const std::int64_t i : empty) {
      EXPECT_EQ(lse[i], -kInfinity);
      for (std::int64_t c = 0; c < dim; ++c) EXPECT_EQ(out[i * dim + c], 0.0f) << "out " << i;
    }
    // Other queries attend the infinite values: finite ones for their gradients.
    for (const std::int64_t i : empty) value[i * dim] = 1;
    attention_forward(inputs, tensor(out), lse.data());
    attention_backward(inputs, {tensor(out), lse.data(), tensor(dout), nullptr},
                       {tensor(dq), nullptr, tensor(dk), tensor(dv)});
    const auto to_double = [](const std::vector<float>& x) { return Values(x.begin(), x.end()); };
    oracle::Arrays given;
    given.query = to_double(query), given.key = to_double(key), given.value = to_double(value);
    given.out = to_double(out), given.lse = to_double(lse), given.dout = to_double(dout);
    const oracle::Gradients want = oracle::Reference(p, given).attention_gradients();
    expect_close("dq", to_double(dq), want.query, FloatType::float32, 1e-4);
    expect_close("dk", to_double(dk), want.key, FloatType::float32, 1e-4);
    expect_close("dv", to_double(dv), want.value, FloatType::float32, 1e-4);
  }
};

TEST_P(EmptyQuery, AlongOneAxis) {
  for (const std::int64_t kernel_size : {1, 7, 24, 100, 300}) {
    for (const bool is_causal : {false, true}) {
      Problem p = plain_problem(1, 1, 20);
      p.axes[2] = {400, kernel_size, 1, 1, 1, is_causal};
      run_case(p, {0, 5, 200, 399});
      if (HasFailure()) return;
    }
  }
}

TEST_P(EmptyQuery, AlongSeveralAxes) {
  Problem p = plain_problem(3, 1, 33);
  p.axes[0] = {3, 2, 1, 1, 1, false};
  p.axes[1] = {9, 5, 1, 1, 1, false};
  p.axes[2] = {20, 7, 1, 1, 1, false};
  run_case(p, {0, 100, 101, 539});
  p.axes[2] = {20, 7, 1, 1, 3, true};  // empty slots that are keys of other queries
  run_case(p, {0, 100, 101, 539});
}

NATTEN_ON_EVERY_TARGET(EmptyQuery);

}  // namespace
}  // namespace natten::cpu::testing

// The C++ API end to end, against sums written out by hand.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include "mlx/mlx.h"
#include "natten/natten.h"

namespace natten {
namespace {

mx::array normal(mx::Shape shape, int seed) {
  return mx::random::normal(shape, mx::float32, mx::random::key(seed));
}

float at(const mx::array& a, std::vector<int> index) {
  mx::array element = a;
  for (int i : index) element = mx::take(element, i, 0);
  return element.item<float>();
}

bool close(const mx::array& a, const mx::array& b, double tolerance = 1e-5) {
  return mx::allclose(a, b, tolerance, tolerance).item<bool>();
}

TEST(Api, NeighborhoodMask) {
  const mx::array mask = neighborhood_mask({4, 5}, {.kernel_size = {3, 2}, .is_causal = {true, false}});
  EXPECT_EQ(mask.shape(), (mx::Shape{20, 20}));
  EXPECT_EQ(mask.dtype(), mx::bool_);
  EXPECT_EQ(mx::sum(mask).item<int>(), (1 + 2 + 3 + 3) * 5 * 2);
  const mx::array added = neighborhood_mask({8}, {3}, {.dtype = mx::float32});
  EXPECT_EQ(mx::sum(mx::exp(added)).item<float>(), 24.0f);
  EXPECT_THROW(neighborhood_mask({2, 2, 2, 2}, {1}), std::invalid_argument);
}

TEST(Api, OneQueryByHand) {
  const mx::array q = normal({1, 6, 1, 2}, 1), k = normal({1, 6, 1, 2}, 2), v = normal({1, 6, 1, 2}, 3);
  const auto [out, lse] = attention(q, k, v, {.kernel_size = 3}, {.scale = 0.5});
  for (int query = 0; query < 6; ++query) {
    const int start = std::min(std::max(query - 1, 0), 3);
    double total = 0, sums[2] = {0, 0};
    for (int key = start; key < start + 3; ++key) {
      double logit = 0;
      for (int d = 0; d < 2; ++d) logit += 0.5 * at(q, {0, query, 0, d}) * at(k, {0, key, 0, d});
      total += std::exp(logit);
      for (int d = 0; d < 2; ++d) sums[d] += std::exp(logit) * at(v, {0, key, 0, d});
    }
    EXPECT_NEAR(at(lse, {0, query, 0}), std::log(total), 1e-5);
    for (int d = 0; d < 2; ++d) EXPECT_NEAR(at(out, {0, query, 0, d}), sums[d] / total, 1e-5);
  }
}

TEST(Api, WindowThatCoversTheInputIsDenseAttention) {
  const mx::array q = normal({2, 4, 5, 2, 8}, 1), k = normal({2, 4, 5, 2, 8}, 2), v = normal({2, 4, 5, 2, 8}, 3);
  const mx::array out = attention(q, k, v, {.kernel_size = {4, 5}}).out;
  const auto heads_first = [](const mx::array& x) { return mx::transpose(mx::flatten(x, 1, 2), {0, 2, 1, 3}); };
  const mx::array dense =
      mx::fast::scaled_dot_product_attention(heads_first(q), heads_first(k), heads_first(v), 1.0f / std::sqrt(8.0f));
  EXPECT_TRUE(close(heads_first(out), dense));
}

TEST(Api, SplitFormComposesToTheFused) {
  const mx::array q = normal({1, 7, 6, 4, 3}, 1), k = normal({1, 7, 6, 2, 3}, 2), v = normal({1, 7, 6, 2, 5}, 3);
  const Neighborhood n{.kernel_size = {4, 3}, .stride = {2, 1}, .dilation = {1, 2}, .is_causal = {true, false}};
  const auto [out, lse] = attention(q, k, v, n);
  const mx::array logits = qk(q, k, n);
  EXPECT_EQ(logits.shape(), (mx::Shape{1, 4, 6, 4, 12}));
  EXPECT_TRUE(close(mx::logsumexp(logits, -1), lse));
  EXPECT_TRUE(close(av(mx::softmax(logits, -1), v, n), out));
}

TEST(Api, EveryRankThroughOneCode) {
  // A 3-D problem with two axes of length 1 is the 1-D problem.
  const mx::array q = normal({2, 9, 2, 4}, 1), k = normal({2, 9, 2, 4}, 2), v = normal({2, 9, 2, 4}, 3);
  const auto lift = [](const mx::array& x) { return mx::expand_dims(x, {1, 2}); };
  const mx::array line = attention(q, k, v, {.kernel_size = 5}).out;
  const mx::array volume = attention(lift(q), lift(k), lift(v), {.kernel_size = {1, 1, 5}}).out;
  EXPECT_TRUE(mx::array_equal(lift(line), volume).item<bool>());
}

TEST(Api, AdditionalTokensJoinTheSoftmax) {
  const mx::array q = normal({1, 6, 2, 4}, 1), k = normal({1, 6, 2, 4}, 2), v = normal({1, 6, 2, 4}, 3);
  const mx::array keys = normal({1, 3, 2, 4}, 4), values = normal({1, 3, 2, 4}, 5);
  const auto whole = attention(q, k, v, {.kernel_size = 6}, {.additional_keys = keys, .additional_values = values});
  const mx::array all_k = mx::concatenate({k, keys}, 1), all_v = mx::concatenate({v, values}, 1);
  const auto heads_first = [](const mx::array& x) { return mx::transpose(x, {0, 2, 1, 3}); };
  const mx::array dense =
      mx::fast::scaled_dot_product_attention(heads_first(q), heads_first(all_k), heads_first(all_v), 0.5f);
  EXPECT_TRUE(close(heads_first(whole.out), dense));
}

TEST(Api, AdditionalTokensOfTheSplitForm) {
  const mx::array q = normal({2, 6, 2, 4}, 1), k = normal({2, 6, 2, 4}, 2), v = normal({2, 6, 2, 4}, 3);
  const mx::array keys = normal({1, 3, 2, 4}, 4), values = normal({1, 3, 2, 4}, 5);  // of every sample
  const mx::array logits = qk(q, k, {.kernel_size = 3}, {.additional_keys = keys});
  EXPECT_EQ(logits.shape(), (mx::Shape{2, 6, 2, 6}));
  const mx::array out = av(mx::softmax(logits, -1), v, {.kernel_size = 3}, {.additional_values = values});
  EXPECT_TRUE(
      close(out, attention(q, k, v, {.kernel_size = 3}, {.additional_keys = keys, .additional_values = values}).out));
  EXPECT_THROW(av(logits, v, {.kernel_size = 3}), std::invalid_argument);
}

TEST(Api, DenseAttentionOfDifferentLengths) {
  const mx::array q = normal({1, 9, 4, 4}, 1), k = normal({1, 4, 2, 4}, 2), v = normal({1, 4, 2, 3}, 3);
  const auto result = dense_attention(q, k, v, {.return_lse = true});
  const auto heads_first = [](const mx::array& x) { return mx::transpose(x, {0, 2, 1, 3}); };
  const mx::array dense = mx::fast::scaled_dot_product_attention(heads_first(q), heads_first(k), heads_first(v), 0.5f);
  EXPECT_TRUE(close(heads_first(result.out), dense));
  EXPECT_EQ(result.lse->shape(), (mx::Shape{1, 9, 4}));
  EXPECT_THROW(dense_attention(q, k, v, {.is_causal = true}), std::invalid_argument);
}

TEST(Api, LengthsCutEachSample) {
  const mx::array q = normal({2, 8, 1, 4}, 1), k = normal({2, 8, 1, 4}, 2), v = normal({2, 8, 1, 4}, 3);
  const mx::array out = attention(q, k, v, {.kernel_size = 3}, {.lengths = mx::array({5, 8})}).out;
  const auto head = [](const mx::array& x, int sample, int length) {
    return mx::slice(x, {sample, 0, 0, 0}, {sample + 1, length, 1, 4});
  };
  const mx::array alone = attention(head(q, 0, 5), head(k, 0, 5), head(v, 0, 5), {.kernel_size = 3}).out;
  EXPECT_TRUE(close(head(out, 0, 5), alone));
  EXPECT_TRUE(mx::all(mx::equal(mx::slice(out, {0, 5, 0, 0}, {1, 8, 1, 4}), mx::array(0.0f))).item<bool>());
}

TEST(Api, MergeOfHalvesIsTheWhole) {
  const mx::array q = normal({1, 4, 1, 4}, 1), k = normal({1, 4, 1, 4}, 2), v = normal({1, 4, 1, 4}, 3);
  const auto [out, lse] = attention(q, k, v, {.kernel_size = 4});
  const auto twice = merge({out, out}, {lse, lse});  // the same keys twice: same mean, log 2 more
  EXPECT_TRUE(close(twice.out, out));
  EXPECT_TRUE(close(twice.lse, mx::add(lse, mx::array(std::log(2.0f)))));
}

TEST(Api, GradientsReachEveryInput) {
  const mx::array q = normal({1, 6, 2, 4}, 1), k = normal({1, 6, 1, 4}, 2), v = normal({1, 6, 1, 3}, 3);
  const mx::array rpb = normal({2, 5}, 4);
  const auto loss = [](const std::vector<mx::array>& a) {
    const auto [out, lse] = attention(a[0], a[1], a[2], {.kernel_size = 3}, {.rpb = a[3]});
    return mx::add(mx::sum(mx::square(out)), mx::sum(mx::square(lse)));
  };
  const std::vector<mx::array> inputs{q, k, v, rpb};
  const std::vector<mx::array> gradients = mx::grad(loss, {0, 1, 2, 3})(inputs);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    ASSERT_EQ(gradients[i].shape(), inputs[i].shape());
    // Along a random direction, the directional derivative by central differences.
    const mx::array direction = normal(inputs[i].shape(), 10 + static_cast<int>(i));
    const float step = 1e-2f;
    const auto moved = [&](float by) {
      std::vector<mx::array> shifted = inputs;
      shifted[i] = mx::add(shifted[i], mx::multiply(direction, mx::array(by)));
      return loss(shifted).item<float>();
    };
    const float difference = (moved(step) - moved(-step)) / (2 * step);
    const float derivative = mx::sum(mx::multiply(gradients[i], direction)).item<float>();
    EXPECT_NEAR(derivative, difference, 2e-2f * std::max(1.0f, std::abs(derivative))) << "input " << i;
  }
}

TEST(Api, EmptyBatch) {
  const mx::array q = mx::zeros({0, 6, 2, 4});
  const auto [out, lse] = attention(q, q, q, {.kernel_size = 3, .stride = 2});
  EXPECT_EQ(out.shape(), (mx::Shape{0, 3, 2, 4}));
  EXPECT_EQ(lse.shape(), (mx::Shape{0, 3, 2}));
}

TEST(Api, SupportMatrixAndExplain) {
  const auto matrix = support_matrix();
  ASSERT_EQ(matrix.size(), 3u);
  EXPECT_TRUE(matrix.at("pure").available);
  for (const auto& [name, row] : matrix) {
    EXPECT_EQ(row.available, row.reason.empty()) << name;
    for (const char* op : {"na1d", "na2d", "na3d", "split_qk_av"}) {
      EXPECT_TRUE(row.forward.at(op)) << name << ' ' << op;
      EXPECT_TRUE(row.backward.at(op)) << name << ' ' << op;
    }
  }
  set_backend("pure");
  const mx::Shape shape{1, 8, 2, 4};
  const Explanation chosen = explain({.query = {shape}, .key = {shape}, .value = {shape}}, {3});
  EXPECT_EQ(chosen.tier, "pure");
  EXPECT_EQ(chosen.declined.size(), 2u);
  EXPECT_EQ(get_backend(), "pure");
  {
    const BackendScope scope("nanobind");
    EXPECT_EQ(get_backend(), "nanobind");
    std::string elsewhere;
    std::thread([&] { elsewhere = get_backend(); }).join();
    EXPECT_EQ(elsewhere, "pure");
    EXPECT_THROW(BackendScope("x"), std::invalid_argument);
  }
  EXPECT_EQ(get_backend(), "pure");
  set_backend("auto");
}

TEST(Api, AdditionalTokensAreExplained) {
  const ArrayDescription x{{1, 8, 2, 4}, mx::float16}, extra{{1, 3, 2, 4}, mx::float16},
      none{{1, 0, 2, 4}, mx::float16};
  const auto kernel = [&](const ArrayDescription& tokens) {
    return explain({.query = x, .key = x, .value = x, .additional_keys = tokens, .additional_values = tokens}, {3})
        .kernel;
  };
  EXPECT_NE(kernel(extra).find("3 additional tokens"), std::string::npos) << kernel(extra);
  EXPECT_EQ(kernel(none), explain({.query = x, .key = x, .value = x}, {3}).kernel);
}

TEST(Api, CostsNeedNoGpu) {
  const mx::Shape shape{1, 8, 2, 4};
  const std::string cost = gpu_cost({.query = {shape}, .key = {shape}, .value = {shape}}, {3});
  EXPECT_NE(cost.find("backward_key_value: "), std::string::npos) << cost;
  const ArrayDescription wide{shape, mx::float64};
  const std::string none = gpu_cost({.query = wide, .key = wide, .value = wide}, {3});
  EXPECT_EQ(none.find("none: tier 'fast_"), 0u) << none;
  EXPECT_NE(none.find("float64"), std::string::npos) << none;
}

}  // namespace
}  // namespace natten

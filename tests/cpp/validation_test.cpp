// Every rule on arguments, by the fragment that programs match.
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "mlx/mlx.h"
#include "natten/natten.h"

namespace natten {
namespace {

mx::array floats(mx::Shape shape, mx::Dtype dtype = mx::float32) {
  return mx::zeros(shape, dtype);
}

template <class Call>
std::string error_of(Call call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}

#define EXPECT_FRAGMENT(expression, fragment)                                                    \
  do {                                                                                           \
    const std::string message = error_of([&] { (void)(expression); });                           \
    EXPECT_NE(message.find(fragment), std::string::npos) << #expression << " said: " << message; \
  } while (false)

const mx::array kPlane = floats({1, 5, 6, 2, 4});

TEST(Validation, Shapes) {
  EXPECT_FRAGMENT(attention(floats({2, 3}), kPlane, kPlane, {3}), "[na1d]");
  EXPECT_FRAGMENT(attention(kPlane, floats({1, 5, 2, 4}), kPlane, {3}), "[na2d] key must have layout [B, H, W");
  EXPECT_FRAGMENT(attention(kPlane, floats({1, 5, 7, 2, 4}), kPlane, {3}), "Spatial dimensions must match");
  EXPECT_FRAGMENT(attention(kPlane, kPlane, floats({1, 4, 6, 2, 4}), {3}), "Spatial dimensions must match");
  EXPECT_FRAGMENT(attention(kPlane, floats({2, 5, 6, 2, 4}), kPlane, {3}), "Batch dimensions must match");
  EXPECT_FRAGMENT(attention(kPlane, floats({1, 5, 6, 2, 3}), kPlane, {3}), "Head dim must match");
  EXPECT_FRAGMENT(attention(floats({1, 5, 6, 3, 4}), kPlane, kPlane, {3}), "must be divisible by");
  EXPECT_FRAGMENT(attention(kPlane, kPlane, floats({1, 5, 6, 1, 4}), {3}), "heads of key and value must match");
  EXPECT_FRAGMENT(attention(floats({1, 5, 6, 2, 0}), floats({1, 5, 6, 2, 0}), kPlane, {3}), "no axis of size 0");
}

TEST(Validation, FirstWrongArrayIsNamed) {
  const mx::array flat = floats({2, 3});
  EXPECT_FRAGMENT(attention(kPlane, flat, flat, {3}), "[na2d] key must have layout");
  EXPECT_FRAGMENT(attention(flat, flat, flat, {3}), "[na1d] query must have layout");
  EXPECT_FRAGMENT(attention(floats({1, 5, 6, 2, 4}, mx::int32), flat, flat, {3}), "[na2d] query must be float32");
}

TEST(Validation, Types) {
  EXPECT_FRAGMENT(attention(floats({1, 5, 6, 2, 4}, mx::int32), kPlane, kPlane, {3}), "int32");
  EXPECT_FRAGMENT(attention(kPlane, floats({1, 5, 6, 2, 4}, mx::bool_), kPlane, {3}), "bool");
  EXPECT_FRAGMENT(attention(kPlane, kPlane, floats({1, 5, 6, 2, 4}, mx::complex64), {3}), "complex64");
}

TEST(Validation, Windows) {
  const auto with = [](Neighborhood n) { return attention(kPlane, kPlane, kPlane, n); };
  EXPECT_FRAGMENT(with({6}), "kernel_size[0]=6 must be <= input spatial size 5");
  EXPECT_FRAGMENT(with({0}), "kernel_size values must be positive");
  EXPECT_FRAGMENT(with({-3}), "kernel_size values must be positive");
  EXPECT_FRAGMENT(with({PerAxis<std::int64_t>{3, 3, 3}}), "must have length 2");
  EXPECT_FRAGMENT(with({.kernel_size = 3, .stride = 4}), "stride[0]=4 must be <= kernel_size[0]=3");
  EXPECT_FRAGMENT(with({.kernel_size = 3, .stride = 0}), "stride values must be positive");
  EXPECT_FRAGMENT(with({.kernel_size = 3, .dilation = 2}), "dilation[0] * kernel_size[0] = 6 exceeds input size 5");
  EXPECT_FRAGMENT(with({.kernel_size = 3, .dilation = std::numeric_limits<std::int64_t>::max()}), "exceeds input size");
  EXPECT_FRAGMENT(with({std::numeric_limits<std::int64_t>::max()}), "must be <= input spatial size 5");
  EXPECT_FRAGMENT(with({.kernel_size = 3, .gna_stride = 4}), "gna_stride[0]=4 must be <= kernel_size[0]=3");
  EXPECT_FRAGMENT(with({.kernel_size = 3, .stride = 2, .gna_stride = 2}), "must not both exceed 1");
  EXPECT_FRAGMENT(with({.kernel_size = 3, .is_causal = {true}}), "is_causal must have length 2");
}

TEST(Validation, AdditionalTokens) {
  const mx::array good = floats({1, 7, 2, 4});
  const auto with = [](std::optional<mx::array> keys, std::optional<mx::array> values) {
    return attention(kPlane, kPlane, kPlane, {3}, {.additional_keys = keys, .additional_values = values});
  };
  EXPECT_FRAGMENT(with(good, {}), "additional_keys and additional_values must both be provided");
  EXPECT_FRAGMENT(with(floats({7, 2, 4}), good), "must be 4D");
  EXPECT_FRAGMENT(with(floats({2, 7, 2, 4}), good), "batch");
  EXPECT_FRAGMENT(with(floats({1, 7, 2, 5}), good), "head dim");
  EXPECT_FRAGMENT(with(good, floats({1, 8, 2, 4})), "same number of tokens");
  EXPECT_FRAGMENT(with(floats({1, 7, 2, 4}, mx::int8), good), "int8");
}

TEST(Validation, Bias) {
  EXPECT_FRAGMENT(attention(kPlane, kPlane, kPlane, {3}, {.rpb = floats({2, 5, 4})}), "rpb must have shape [2, 5, 5]");
  EXPECT_FRAGMENT(attention(kPlane, kPlane, kPlane, {3}, {.rpb = floats({1, 5, 5})}), "rpb must have shape");
  EXPECT_FRAGMENT(attention(kPlane, kPlane, kPlane, {3}, {.rpb = floats({2, 5, 5}, mx::int32)}), "int32");
}

TEST(Validation, Lengths) {
  const auto with = [](mx::array lengths) { return attention(kPlane, kPlane, kPlane, {3}, {.lengths = lengths}); };
  EXPECT_FRAGMENT(with(mx::array({3.0f, 3.0f}, {1, 2})), "int32 or int64");
  EXPECT_FRAGMENT(with(mx::array({3, 3}, {2, 1})), "lengths must have shape [1, 2]");
  EXPECT_FRAGMENT(with(mx::array({2, 3}, {1, 2})), "kernel_size");
  EXPECT_FRAGMENT(with(mx::array({3, 7}, {1, 2})), "max_spatial");
  EXPECT_FRAGMENT(with(mx::array({3, -1}, {1, 2})), "kernel_size");
  const mx::array line = floats({1, 5, 2, 4});
  EXPECT_FRAGMENT(attention(line, line, line, {3}, {.lengths = mx::array({6})}), "L_max");
}

TEST(Validation, Scale) {
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT_FRAGMENT(attention(kPlane, kPlane, kPlane, {3}, {.scale = infinity}), "scale must be finite");
}

TEST(Validation, SplitForm) {
  EXPECT_FRAGMENT(qk(kPlane, floats({1, 5, 6, 2, 5}), {3}), "[na2d_qk] Head dim must match");
  EXPECT_FRAGMENT(av(floats({1, 5, 6, 2, 8}), kPlane, {3}),
                  "[na2d_av] the last axis of attn must be prod(kernel_size)");
  EXPECT_FRAGMENT(av(floats({1, 4, 6, 2, 9}), kPlane, {3}), "Spatial dimensions must match");
  EXPECT_FRAGMENT(av(floats({1, 5, 6, 3, 9}), kPlane, {3}), "must be divisible by");
}

TEST(Validation, Merge) {
  const mx::array out = floats({2, 3, 4}), lse = floats({2, 3});
  EXPECT_FRAGMENT(merge({out}, {lse}), "at least two");
  EXPECT_FRAGMENT(merge({out, out}, {lse}), "must match");
  EXPECT_FRAGMENT(merge({out, floats({2, 3, 5})}, {lse, lse}), "shape");
  EXPECT_FRAGMENT(merge({out, out}, {lse, floats({3, 2})}), "shape");
}

TEST(Validation, Sizes) {
  // Broadcasts have the shape of more elements than memory could hold.
  const mx::array huge = mx::broadcast_to(mx::array(0.0f), {1, 1 << 16, 1 << 15, 1, 1});
  EXPECT_FRAGMENT(attention(huge, huge, huge, {1}), "tokens");
  const int most = std::numeric_limits<int>::max();
  const mx::array wide = mx::broadcast_to(mx::array(0.0f), {1, most, most, 1});
  const mx::array deep = mx::broadcast_to(mx::array(0.0f), {1, most, 1, most});
  EXPECT_FRAGMENT(attention(wide, mx::broadcast_to(mx::array(0.0f), {1, most, 1, 1}), deep, {1}), "too large");
}

TEST(Validation, BackendsAndExplain) {
  EXPECT_FRAGMENT(set_backend("cuda"),
                  "Unknown backend 'cuda'. Expected one of ['auto', 'pure', 'fast_metal', 'nanobind']");
  EXPECT_FRAGMENT(explain({.op = "softmax", .query = {{1, 5, 2, 4}}}, {3}), "op must be 'attention', 'qk' or 'av'");
  const ArrayDescription x{{1, 5, 2, 4}};
  EXPECT_FRAGMENT(explain({.query = x, .key = x, .value = x, .rpb = {{{2, 4}}}}, {3}), "rpb");
  EXPECT_FRAGMENT(explain({.query = x, .key = x, .value = x, .additional_keys = x}, {3}), "must both be provided");
  EXPECT_FRAGMENT(gpu_cost({.query = x, .key = x, .value = x}, {9}), "must be <= input spatial size 5");
}

}  // namespace
}  // namespace natten

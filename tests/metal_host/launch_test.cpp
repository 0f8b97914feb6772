// The fast tier through the library's public functions, emulated: what launches share, and what they keep.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <set>

#include "mlx/mlx.h"
#include "mlx/primitives.h"
#include "natten/natten.h"

namespace natten {
namespace {

class Launches : public testing::Test {
 protected:
  void SetUp() override {
    setenv("NATTEN_TEST_FAST_EMULATOR", "metal", 1);
    setenv("NATTEN_STRICT", "1", 1);
    set_backend("fast_metal");
    clear_cache();
  }
  void TearDown() override {
    set_backend("auto");
    unsetenv("NATTEN_STRICT");
    unsetenv("NATTEN_TEST_FAST_EMULATOR");
  }
};

mx::array normal(mx::Shape shape, int seed) {
  return mx::random::normal(shape, mx::float32, mx::random::key(seed));
}

/// Forward and all gradients with a scale, as one traced function.
std::vector<mx::array> forward_and_gradients(const std::vector<mx::array>& inputs, double scale) {
  const auto call = [scale](const std::vector<mx::array>& a) -> std::vector<mx::array> {
    return {attention(a[0], a[1], a[2], {.kernel_size = 5}, {.scale = scale}).out};
  };
  const auto [outputs, gradients] = mx::vjp(call, inputs, {mx::ones_like(inputs[2])});
  return {outputs[0], gradients[0], gradients[1], gradients[2]};
}

TEST_F(Launches, OfDifferentScalesShareAKernel) {
  const std::vector<mx::array> inputs = {normal({1, 20, 2, 8}, 1), normal({1, 20, 2, 8}, 2), normal({1, 20, 2, 8}, 3)};
  std::size_t kernels = 0;
  for (const bool is_compiled : {false, true}) {
    for (const double scale : {0.3, -1.2, 0.3, 2.0}) {
      const auto function = [scale](const std::vector<mx::array>& a) { return forward_and_gradients(a, scale); };
      const std::vector<mx::array> got = is_compiled ? mx::compile(function)(inputs) : function(inputs);
      mx::eval(got);
      set_backend("pure");
      const std::vector<mx::array> expected = forward_and_gradients(inputs, scale);
      set_backend("fast_metal");
      for (std::size_t i = 0; i < got.size(); ++i) {
        EXPECT_TRUE(mx::allclose(got[i], expected[i], 1e-4, 1e-5).item<bool>())
            << "scale " << scale << ", result " << i;
      }
      if (kernels == 0) kernels = kernel_cache_usage().kernels;
      EXPECT_EQ(kernel_cache_usage().kernels, kernels);
    }
  }
}

TEST_F(Launches, OfOtherBatchesAndHeadsShareAKernel) {
  const auto run = [](int batch, int heads) {
    const mx::array x = mx::zeros({batch, 40, heads, 16});
    attention(x, x, x, {.kernel_size = 7});
  };
  run(1, 2);
  const std::size_t kernels = kernel_cache_usage().kernels;
  EXPECT_GT(kernels, 0u);
  run(3, 2);
  run(1, 8);
  EXPECT_EQ(kernel_cache_usage().kernels, kernels);
}

/// Primitives between a result and the inputs of its call, but for views.
std::multiset<std::string> primitives_of(const mx::array& result) {
  static const std::set<std::string> views = {"Reshape", "ExpandDims", "Squeeze", "AsStrided", "Broadcast", "Slice"};
  std::multiset<std::string> found;
  std::set<std::uintptr_t> seen;
  std::vector<mx::array> next = {result};
  while (!next.empty()) {
    const mx::array a = next.back();
    next.pop_back();
    if (!a.has_primitive() || !seen.insert(a.primitive_id()).second) continue;
    if (views.count(a.primitive().name()) == 0) found.insert(a.primitive().name());
    next.insert(next.end(), a.inputs().begin(), a.inputs().end());
  }
  return found;
}

TEST_F(Launches, OfAStepOfDecodingAreOneKernelForAllSteps) {
  constexpr int kTokens = 150, kWindow = 64;
  const std::vector<mx::array> whole = {normal({2, kTokens, 4, 16}, 1), normal({2, kTokens, 2, 16}, 2),
                                        normal({2, kTokens, 2, 16}, 3)};
  const auto rows = [&](int i, int start, int count) {
    mx::array part = mx::contiguous(mx::slice(whole[i], {0, start, 0, 0}, {2, start + count, whole[i].shape(2), 16}));
    part.eval();
    return part;
  };
  const Neighborhood neighborhood{.kernel_size = kWindow, .is_causal = true};
  set_backend("pure");
  const mx::array expected = attention(whole[0], whole[1], whole[2], neighborhood).out;
  set_backend("fast_metal");
  for (const int token : {kWindow, 100, 101, kTokens - 1}) {
    const int first = token - kWindow + 1;
    const mx::array query = rows(0, token, 1), key = rows(1, first, kWindow), value = rows(2, first, kWindow);
    AttentionOptions options;
    options.query_start = token;
    options.key_start = first;
    options.shape = token + 1;
    const mx::array out = attention(query, key, value, neighborhood, options).out;
    EXPECT_EQ(primitives_of(out).size(), 1u) << testing::PrintToString(primitives_of(out));  // nothing is copied
    EXPECT_EQ(kernel_cache_usage().kernels, 1u);  // of all steps, which have no second one
    const mx::array right = mx::slice(expected, {0, token, 0, 0}, {2, token + 1, 4, 16});
    EXPECT_TRUE(mx::allclose(out, right, 1e-4, 1e-5).item<bool>()) << token;
  }
}

TEST_F(Launches, CacheCanBeCleared) {
  const mx::array x = mx::zeros({1, 40, 2, 16});
  attention(x, x, x, {.kernel_size = 7});
  EXPECT_GT(kernel_cache_usage().bytes, 0u);
  clear_cache();
  EXPECT_EQ(kernel_cache_usage().kernels, 0u);
  EXPECT_EQ(kernel_cache_usage().bytes, 0u);
}

/// Bytes of this process in memory; 0 where the system does not say.
std::size_t resident_bytes() {
  std::size_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages >> pages;
  return pages * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

TEST_F(Launches, OfManyLengthsTakeLittleMemory) {
  const auto run = [](int length) {
    const mx::array x = mx::zeros({1 + length % 3, length, 1, 16});
    const auto call = [](const std::vector<mx::array>& a) -> std::vector<mx::array> {
      return {attention(a[0], a[0], a[0], {.kernel_size = 31}).out};
    };
    mx::vjp(call, {x}, {x});
  };
  for (int length = 31; length < 231; ++length) run(length);
  const std::size_t before = resident_bytes();
  for (int length = 231; length < 10231; ++length) run(length);
  EXPECT_LT(resident_bytes(), before + (20 << 20));
  const KernelCacheUsage usage = kernel_cache_usage();
  EXPECT_LE(usage.kernels, 24u);  // MLX keeps what it compiled of each, which nothing here does
  EXPECT_LE(usage.bytes, usage.limit);
  EXPECT_LE(usage.limit, std::size_t(20) << 20);
}

}  // namespace
}  // namespace natten

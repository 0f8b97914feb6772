// Does the emulator run kernels right, and does it catch what it claims to catch? Each mistake here is one that would
// be silent, or deadly, on a GPU.
#include "emulator.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "kernel_text.h"
#include "lint.h"

namespace natten::metal_host {
namespace {

using fast::ElementType;
using fast::KernelSource;

const char* const kHeader = "using namespace metal;\n";

/// A kernel with one input `x` and one output `y` of `size` elements each; `groups` threadgroups of `threads` threads.
struct Probe {
  std::string source;
  std::string header = kHeader;
  ElementType type = ElementType::float32;
  int size = 64;
  int threads = 64, groups = 1;

  KernelSource kernel() const {
    KernelSource kernel;
    kernel.name = "probe";
    kernel.inputs = {{"x", type, {size}}};
    kernel.outputs = {{"y", type, {size}}};
    kernel.header = header;
    kernel.source = source;
    kernel.grid = {threads * groups, 1, 1};
    kernel.threadgroup = {threads, 1, 1};
    return kernel;
  }

  template <class T = float>
  Report operator()(const std::vector<T>& x, std::vector<T>& y, std::uint64_t order = 0) const {
    y.assign(size, T{});
    return run(kernel(), {{x.data(), {1}}}, {y.data()}, order);
  }

  std::string error(std::uint64_t order = 0) const {
    std::vector<float> x(size), y;
    std::iota(x.begin(), x.end(), 1.0f);
    return (*this)(x, y, order).error;
  }
};

#define EXPECT_HAS(text, part) EXPECT_NE((text).find(part), std::string::npos) << "got: " << (text)

const char* const kIndex = "  uint i = thread_position_in_grid.x;\n";

TEST(Emulator, RunsAKernelAndCountsItsBytes) {
  const Probe probe{std::string(kIndex) + "  y[i] = 3 * x[i] + x[0];\n", kHeader, ElementType::float32, 96, 32, 3};
  std::vector<float> x(96), y;
  std::iota(x.begin(), x.end(), 1.0f);
  const Report report = probe(x, y);
  EXPECT_EQ(report.error, "");
  for (int i = 0; i < 96; ++i) EXPECT_EQ(y[i], 3 * x[i] + 1);
  EXPECT_EQ(report.loaded(), 2 * 96 * 4);
  EXPECT_EQ(report.loaded_once(), (96 + 2) * 4);  // x[0] again in the second and the third group
  EXPECT_EQ(report.stored(), 96 * 4);
}

/// CUDA's dynamic shared memory with a barrier of Hopper's at its start, on which `arrivals` are expected.
KernelSource with_barrier(int arrivals, const std::string& source) {
  KernelSource kernel = Probe{"", ""}.kernel();
  kernel.platform = fast::Platform::cuda;
  kernel.dynamic_bytes = 4096;
  kernel.source =
      "extern __shared__ unsigned char na_memory[];\n"
      "float* const numbers = reinterpret_cast<float*>(na_memory + 256);\n"
      "const unsigned barrier = natten::shared_address(na_memory), i = threadIdx.x;\n"
      "if (i == 0) natten::start_barrier(barrier, " +
      std::to_string(arrivals) + ");\n__syncthreads();\n" + source;
  return kernel;
}
std::string error_of(const KernelSource& kernel, std::uint64_t order) {
  std::vector<float> x(64, 1.0f), y(64);
  return run(kernel, {{x.data(), {1}}}, {y.data()}, order).error;
}

TEST(Emulator, KnowsBarriersInSharedMemory) {
  const std::string bring = "if (i < 32) { numbers[i] = x[i]; natten::arrive(barrier); }\n";
  const std::string wait = "natten::wait_for(barrier, 0);\n", take = "y[i] = numbers[i % 32];\n";
  const std::string named = "if (i < 32) natten::arrive_at_named(1, 64); else natten::named_barrier(1, 64);\n";
  for (const std::uint64_t order : {0, 1, 2}) {
    EXPECT_EQ(error_of(with_barrier(32, bring + wait + take), order), "");
    EXPECT_NE(error_of(with_barrier(32, bring + take), order), "");
    EXPECT_HAS(error_of(with_barrier(32, "natten::arrive(barrier + 8);\n" + take), order), "was not started");
    EXPECT_EQ(error_of(with_barrier(32, bring + named + "if (i >= 32) " + take + "else y[i] = 0;\n"), order), "");
  }
  EXPECT_HAS(error_of(with_barrier(33, bring + wait + take), 0), "waits at a barrier for what does not come");
  EXPECT_HAS(error_of(with_barrier(32, "natten::named_barrier(1, 96);\n"), 0), "what does not come");
}

TEST(Emulator, SeesMatrixUnitsReadWhatNobodyWrote) {
  const std::string product =
      "float c[1][4]; const unsigned a[4] = {0, 0, 0, 0};\n"
      "natten::warpgroup_product<__half, false>(c, a, (barrier + 256) >> 4 | 8ull << 16 | 8ull << 32, 0);\n"
      "y[i] = c[0][0];\n";
  const std::string fill = "for (int n = i; n < 512; n += 64) numbers[n] = 0;\n__syncthreads();\n";
  EXPECT_EQ(error_of(with_barrier(1, fill + product), 0), "");
  EXPECT_HAS(error_of(with_barrier(1, product), 0), "shared memory that was not written");
}

TEST(Emulator, CutsTheLastThreadgroupShort) {
  KernelSource kernel = Probe{"  y[thread_position_in_grid.x] = float(threads_per_threadgroup.x);\n"}.kernel();
  kernel.grid = {40, 1, 1};
  kernel.threadgroup = {32, 1, 1};
  kernel.outputs[0].shape = {40};
  std::vector<float> x(64), y(40);
  EXPECT_EQ(run(kernel, {{x.data(), {1}}}, {y.data()}, 7).error, "");
  EXPECT_EQ(y[31], 32);
  EXPECT_EQ(y[32], 8);
}

TEST(Emulator, VectorLoadsAndStoresCountTheirBytes) {
  const std::pair<ElementType, const char*> types[] = {
      {ElementType::float32, "float"}, {ElementType::float16, "half"}, {ElementType::bfloat16, "bfloat16_t"}};
  for (const auto& [type, name] : types) {
    const Probe probe{std::string(kIndex) +
                          "  vec<T, 4> v = *(const device vec<T, 4>*)(x + 4 * i);\n"
                          "  *(device vec<T, 4>*)(y + 4 * i) = v;\n",
                      std::string(kHeader) + "typedef " + name + " T;\n", type, 64, 16};
    std::vector<std::uint32_t> x(64, 0x3f803f80), y(64);
    const std::int64_t bytes = type == ElementType::float32 ? 256 : 128;
    const Report report = run(probe.kernel(), {{x.data(), {1}}}, {y.data()});
    EXPECT_EQ(report.error, "");
    EXPECT_EQ(report.loaded(), bytes);
    EXPECT_EQ(report.stored(), bytes);
    EXPECT_EQ(std::memcmp(x.data(), y.data(), bytes), 0);
  }
}

TEST(Emulator, PassesShapesStridesAndSmallInputsAsMlxDoes) {
  KernelSource kernel =
      Probe{"  y[0] = x[x_strides[0]] + float(x_shape[1] * 10 + x_ndim);\n", "", ElementType::float32, 1, 1}.kernel();
  kernel.inputs[0].shape = {2, 3};
  const std::vector<float> x = {1, 2, 3, 4, 5, 6};
  float y = 0;
  EXPECT_EQ(run(kernel, {{x.data(), {3, 1}}}, {&y}).error, "");
  EXPECT_EQ(y, 4 + 30 + 2);
  EXPECT_EQ(run(kernel, {{x.data() + 3, {-3, 1}}}, {&y}).error, "");  // reversed: element (1, 0) lies before (0, 0)
  EXPECT_EQ(y, 1 + 30 + 2);
  const std::string text = metal_text(kernel).text;
  EXPECT_HAS(text, "const constant float* x [[buffer(0)]]");
  EXPECT_HAS(text, "const constant int64_t* x_strides [[buffer(2)]]");
  EXPECT_HAS(text, "device float* y [[buffer(4)]]");
}

TEST(Emulator, BarriersAndThreadgroupMemory) {
  const Probe probe{
      "  uint i = thread_position_in_threadgroup.x;\n  threadgroup float tile[64];\n  tile[i] = x[i];\n"
      "  threadgroup_barrier(mem_flags::mem_threadgroup);\n  y[i] = tile[63 - i];\n"};
  std::vector<float> x(64), y;
  std::iota(x.begin(), x.end(), 0.0f);
  for (const int order : {0, 1, 2}) {
    const Report report = probe(x, y, order);
    EXPECT_EQ(report.error, "");
    EXPECT_EQ(report.threadgroup_bytes, 256);
    EXPECT_EQ(report.barriers, 1);
    for (int i = 0; i < 64; ++i) EXPECT_EQ(y[i], 63 - i);
  }
}

TEST(Emulator, SimdGroupOperations) {
  const Probe probe{
      "  uint i = thread_index_in_threadgroup;\n  float sum = simd_sum(x[i]);\n  float top = simd_max(x[i]);\n"
      "  float v = x[i];\n  for (ushort s = 1; s < 32; s *= 2) v += simd_shuffle_xor(v, s);\n"
      "  y[i] = sum == v ? sum + top + simd_broadcast(x[i], ushort(3)) + simd_shuffle_down(x[i], ushort(0)) : "
      "-1.0f;\n"};
  std::vector<float> x(64), y;
  std::iota(x.begin(), x.end(), 0.0f);
  for (const int order : {0, 5}) {
    ASSERT_EQ(probe(x, y, order).error, "");
    for (int i = 0; i < 64; ++i) {
      const int first = i / 32 * 32;
      EXPECT_EQ(y[i], 32 * first + 496 + first + 31 + first + 3 + i);
    }
  }
}

// --- What must be caught ---

TEST(Catches, DivergentBarrier) {
  const Probe exited{
      "  uint i = thread_position_in_grid.x;\n  y[i] = x[i];\n  if (i == 5) return;\n"
      "  threadgroup_barrier(mem_flags::mem_threadgroup);\n"};
  EXPECT_HAS(exited.error(), "divergent barrier");
  EXPECT_HAS(exited.error(), "1 have returned (first: thread 5)");
  const Probe elsewhere{
      "  uint i = thread_position_in_grid.x;\n  y[i] = x[i];\n"
      "  if (i < 7) {\n    threadgroup_barrier(mem_flags::mem_threadgroup);\n  } else {\n"
      "    threadgroup_barrier(mem_flags::mem_threadgroup);\n  }\n"};
  EXPECT_HAS(elsewhere.error(1), "divergent barrier");
  const Probe hidden{
      "  uint i = thread_position_in_grid.x;\n  y[i] = x[i];\n  if (i < 7) {\n    sync();\n    y[i] += 1.0f;\n"
      "  } else {\n    sync();\n  }\n",
      std::string(kHeader) + "inline void sync() { threadgroup_barrier(mem_flags::mem_threadgroup); }\n"};
  EXPECT_HAS(hidden.error(), "divergent barrier");
  // Compilers like to copy the code behind a condition into its branches; that is no divergence.
  const Probe fine{
      "  uint i = thread_position_in_grid.x;\n  float v = x[i];\n  if (i < 7) v += 1.0f;\n"
      "  threadgroup_barrier(mem_flags::mem_threadgroup);\n  if (i < 7) v *= 2.0f;\n  y[i] = v;\n"};
  EXPECT_EQ(fine.error(), "");
  const Probe simd{"  uint i = thread_position_in_grid.x;\n  y[i] = i == 40 ? 0.0f : simd_sum(x[i]);\n"};
  EXPECT_HAS(simd.error(), "divergent simd-group operation");
}

TEST(Catches, OutOfBoundsAccess) {
  EXPECT_HAS((Probe{std::string(kIndex) + "  y[i] = x[i + 1];\n"}.error()),
             "out-of-bounds read of 4 bytes at byte 256 of x, which has 256; thread (63, 0, 0)");
  EXPECT_HAS((Probe{std::string(kIndex) + "  y[int(i) - 1] = x[i];\n"}.error()),
             "out-of-bounds write of 4 bytes at byte -4 of y");
  EXPECT_HAS((Probe{std::string(kIndex) + "  y[i] = x[int(i) * 1000000];\n"}.error()), "out-of-bounds read");
  EXPECT_HAS((Probe{std::string(kIndex) + "  y[i] = x[i];\n  ((device float*)x)[i] = 0.0f;\n"}.error()), "read-only");
  EXPECT_HAS(
      (Probe{std::string(kIndex) + "  threadgroup float a[64];\n  threadgroup float b[64];\n  b[i] = a[i] = x[i];\n"
                                   "  threadgroup_barrier(mem_flags::mem_threadgroup);\n  threadgroup float* p = a;\n  "
                                   "y[i] = p[i + 1] + b[i];\n"}
           .error()),
      "outside of every threadgroup array");
}

TEST(Catches, MisalignedVectors) {
  const std::string body = std::string(kIndex) +
                           "  vec<float, 4> v = *(const device vec<float, 4>*)(x + 4 * (i / 4));\n"
                           "  y[i] = v[i % 4];\n";
  const Probe probe{body};
  alignas(16) float x[65] = {};
  std::vector<float> y(64);
  EXPECT_EQ(run(probe.kernel(), {{x, {1}}}, {y.data()}).error, "");
  EXPECT_HAS(run(probe.kernel(), {{x + 1, {1}}}, {y.data()}).error, "misaligned read");
}

TEST(Catches, UninitialisedThreadgroupMemory) {
  const Probe probe{std::string(kIndex) +
                    "  threadgroup float tile[65];\n  tile[i] = x[i];\n"
                    "  threadgroup_barrier(mem_flags::mem_threadgroup);\n  y[i] = tile[i + 1];\n"};
  EXPECT_HAS(probe.error(), "read before any thread of the group wrote it");
  // What one group leaves behind is not there for the next.
  const Probe leftover{
      "  threadgroup float tile[64];\n  uint i = thread_index_in_threadgroup;\n"
      "  if (threadgroup_position_in_grid.x == 0) tile[i] = x[i];\n  y[thread_position_in_grid.x] = tile[i];\n",
      "using namespace metal;\n",
      ElementType::float32,
      128,
      64,
      2};
  EXPECT_HAS(leftover.error(), "read before any thread of the group wrote it");
}

TEST(Catches, MissingBarrier) {
  const std::string read = "  y[i] = tile[(i + 1) % 64];\n";
  const std::string write = std::string(kIndex) + "  threadgroup float tile[64];\n  tile[i] = x[i];\n";
  EXPECT_NE((Probe{write + read}.error()), "");
  EXPECT_NE((Probe{write + read}.error(3)), "");
  EXPECT_NE((Probe{write + "  threadgroup_barrier(mem_flags::mem_none);\n" + read}.error()), "");
  EXPECT_EQ((Probe{write + "  threadgroup_barrier(mem_flags::mem_threadgroup);\n" + read}.error()), "");
  // Read, then overwritten without a barrier between.
  EXPECT_HAS(
      (Probe{write + "  threadgroup_barrier(mem_flags::mem_threadgroup);\n" + read + "  tile[i] = 0.0f;\n"}.error()),
      "is read by another thread");
  // A simd-group barrier orders a simd-group, no more.
  const std::string simd = "  simdgroup_barrier(mem_flags::mem_threadgroup);\n";
  EXPECT_EQ((Probe{write + simd + "  y[i] = tile[i ^ 1];\n"}.error()), "");
  EXPECT_NE((Probe{write + simd + "  y[i] = tile[i ^ 32];\n"}.error()), "");
  // Whoever read before it is done, within the simd-group.
  const std::string reads = write + simd + "  y[i] = tile[i ^ 1];\n" + simd + "  y[i] += tile[i ^ 2];\n";
  EXPECT_EQ((Probe{reads + simd + "  tile[i ^ 2] = 0.0f;\n"}.error()), "");
  EXPECT_EQ((Probe{write + simd + "  y[i] = tile[i ^ 1];\n" + simd + "  tile[i] += 1.0f;\n"}.error()), "");
  EXPECT_NE((Probe{reads + "  tile[i ^ 1] = 0.0f;\n"}.error()), "");
  EXPECT_NE((Probe{reads + simd + "  tile[i ^ 32] = 0.0f;\n"}.error()), "");
}

TEST(Catches, RacesAndGapsInOutputs) {
  EXPECT_HAS((Probe{"  y[thread_position_in_grid.x / 2] = 1.0f;\n"}.error()), "also written by another thread");
  const Probe groups{"  y[thread_index_in_threadgroup] = x[0];\n", "", ElementType::float32, 128, 64, 2};
  EXPECT_HAS(groups.error(), "also written by another threadgroup");
  EXPECT_HAS((Probe{std::string(kIndex) + "  if (i != 9) y[i] = x[i];\n"}.error()),
             "byte 36 of output y was never written");
  EXPECT_HAS((Probe{std::string(kIndex) + "  y[i] += x[i];\n"}.error()), "read before");
}

TEST(Catches, DependenceOnTheOrderOfThreads) {
  // No shared memory is involved that the emulator could watch: a thread counts how many ran before it.
  const Probe probe{std::string(kIndex) + "  y[i] = float(arrivals()++);\n",
                    "inline int& arrivals() { static int n; return n; }\n"};
  std::vector<float> x(64), y(64);
  EXPECT_THROW(run_emulated(probe.kernel(), {{x.data(), {1}}}, {y.data()}), std::runtime_error);
  const Probe plain{std::string(kIndex) + "  y[i] = x[i] + float(i);\n"};
  EXPECT_EQ(run_emulated(plain.kernel(), {{x.data(), {1}}}, {y.data()}).stored(), 256);
}

TEST(Catches, TooMuchThreadgroupMemory) {
  const Probe probe{std::string(kIndex) + "  threadgroup float tile[8193];\n  tile[i] = x[i];\n  y[i] = tile[i];\n"};
  EXPECT_HAS(probe.error(), "more than 32768 bytes of threadgroup memory");
}

TEST(Catches, WordsOfTheLanguageAsNames) {
  EXPECT_THROW((Probe{std::string(kIndex) + "  int kernel = 3;\n  y[i] = x[i];\n"}.error()), std::runtime_error);
}

TEST(Catches, ArrayIndexBeyondItsBound) {
  const Probe probe{std::string(kIndex) +
                    "  float row[4];\n  for (int k = 0; k <= int(x[0]) + 3; ++k) row[k] = x[k];\n"
                    "  y[i] = row[i % 4];\n"};
  EXPECT_HAS(probe.error(), "index 4 out of bounds");
}

// --- Address spaces ---

TEST(AddressSpaces, AreChecked) {
  const std::string helper = std::string(kHeader) +
                             "inline float first(const threadgroup float* p) { return p[0]; }\n"
                             "template <class T> inline float head(const device T* p) { return float(p[0]); }\n";
  const std::string body = std::string(kIndex) +
                           "  alignas(16) threadgroup float tile[64];\n  tile[i] = x[i];\n"
                           "  threadgroup_barrier(mem_flags::mem_threadgroup);\n"
                           "  vec<float, 4> v = *(const threadgroup vec<float, 4>*)(tile);\n"
                           "  y[i] = first(tile) + head(x) + v[1] + v.x;\n";
  for (const ElementType type : {ElementType::float32, ElementType::float16, ElementType::bfloat16}) {
    Probe right{body, helper, type};
    if (type != ElementType::float32) right.source = std::string(kIndex) + "  y[i] = decltype(y[i] + y[i])(head(x));\n";
    if (type == ElementType::float32) {
      EXPECT_EQ(right.error(), "");
    }
    EXPECT_EQ(address_space_complaints(right.kernel()), "");
  }
  const auto complaints = [&](const std::string& line) {
    const Probe probe{std::string(kIndex) + "  alignas(16) threadgroup float tile[64];\n  tile[i] = x[i];\n" + line,
                      helper};
    EXPECT_EQ(probe.error().find("out of bounds"), std::string::npos);  // the emulator itself sees nothing
    return address_space_complaints(probe.kernel());
  };
  EXPECT_EQ(complaints("  y[i] = first(tile);\n"), "");
  EXPECT_HAS(complaints("  y[i] = first(x);\n"), "no matching function");
  EXPECT_HAS(complaints("  y[i] = head(tile);\n"), "no matching function");
  EXPECT_HAS(complaints("  const float* p = x;\n  y[i] = p[i];\n"), "cannot initialize");
  EXPECT_HAS(complaints("  const device float* p = tile;\n  y[i] = p[i];\n"), "cannot initialize");
}

// --- 16-bit floats ---

/// Rounds to `digits` significant binary digits, no lower exponent than `least`, ties to even; in double,
/// independently.
double rounded(double x, int digits, int least) {
  int exponent = 0;
  std::frexp(x, &exponent);
  const double unit = std::ldexp(1.0, std::max(exponent - digits, least));
  return std::nearbyint(x / unit) * unit;
}

uint16_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>(bits >> 16);
}

TEST(HalfTypes, RoundAsHalf) {
  // x + y and x * y of the same type must round once to that type. 1 + 2^-11 is a tie that goes down to even, 2049 is
  // not representable in half; in float neither would round.
  const std::string body =
      std::string(kIndex) +
      "  T a = T(x[2 * i]), b = T(x[2 * i + 1]);\n  y[2 * i] = float(a + b);\n  y[2 * i + 1] = float(a * b);\n";
  std::vector<float> x = {1.0f, 0x1p-11f, 2048.0f, 1.0f, 1.0f, 0x1.8p-10f, 60000.0f, 10000.0f, 0x1p-14f, 0x1p-10f};
  uint32_t state = 1;
  while (x.size() < 4096) {
    state = state * 1664525u + 1013904223u;
    x.push_back(
        std::ldexp(static_cast<float>(static_cast<int32_t>(state)) / 0x1p31f, static_cast<int>(state % 12) - 6));
  }
  for (const ElementType type : {ElementType::float16, ElementType::bfloat16}) {
    const int digits = type == ElementType::float16 ? 11 : 8;
    const int least = type == ElementType::float16 ? -24 : -133;
    const double largest = type == ElementType::float16 ? 65504.0 : 3.4e38;
    const auto round = [&](double value) {
      const double result = rounded(value, digits, least);
      return std::abs(result) > largest ? std::copysign(INFINITY, result) : result;
    };
    const std::string name = type == ElementType::float16 ? "half" : "bfloat";
    const Probe probe{body, std::string(kHeader) + "typedef " + name + " T;\n", ElementType::float32, 4096, 64, 32};
    std::vector<float> y;
    ASSERT_EQ(probe(x, y).error, "");
    for (int i = 0; i < 4096; i += 2) {
      const double a = round(x[i]), b = round(x[i + 1]);
      ASSERT_EQ(y[i], round(a + b)) << a << " + " << b;
      ASSERT_EQ(y[i + 1], round(a * b)) << a << " * " << b;
    }
  }
}

TEST(HalfTypes, AllValuesSurviveAConversion) {
  // Widening every half and rounding it back gives the same bits, NaNs aside.
  const Probe probe{std::string(kIndex) + "  y[i] = half(float(x[i]));\n", "", ElementType::float16, 65536, 1024, 64};
  std::vector<uint16_t> x(65536), y;
  std::iota(x.begin(), x.end(), uint16_t{0});
  ASSERT_EQ(probe(x, y).error, "");
  for (int i = 0; i < 65536; ++i) {
    const bool is_nan = (i & 0x7fff) > 0x7c00;
    EXPECT_TRUE(is_nan ? (y[i] & 0x7fff) > 0x7c00 : y[i] == x[i]) << i;
  }
  KernelSource narrow =
      Probe{std::string(kIndex) + "  y[i] = bfloat(x[i]);\n", kHeader, ElementType::float32, 4, 4}.kernel();
  narrow.outputs[0].type = ElementType::bfloat16;
  const std::vector<float> values = {1.00390625f, 1.01171875f, -0.0f, 3.0e38f};
  ASSERT_EQ(run(narrow, {{values.data(), {1}}}, {y.data()}).error, "");
  EXPECT_EQ(y[0], bits_of(1.0f));       // tie to even, down
  EXPECT_EQ(y[1], bits_of(1.015625f));  // tie to even, up
  EXPECT_EQ(y[2], 0x8000);
}

}  // namespace
}  // namespace natten::metal_host

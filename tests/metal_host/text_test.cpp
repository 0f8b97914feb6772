// The text of the kernels for Metal, checked by clang in two ways (lint.h): all kernels of a few cases of the table, or
// of every case with NATTEN_TEST_EVERY_KERNEL=1.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <regex>
#include <string>

#include "cases.h"
#include "fast/embedded.h"
#include "fast/plan.h"
#include "lint.h"

namespace natten::metal_host {
namespace {

using fast::KernelSource;

constexpr InputSpace kSpaces[] = {InputSpace::constant, InputSpace::device};

/// The kernels of a case; those on matrix units also without them.
std::vector<KernelSource> metal_sources(const Case& test) {
  std::vector<KernelSource> sources;
  const auto add = [&](const KernelOf& kernel) {
    sources.push_back(fast::kernel_source(kernel.problem, kernel.id, fast::Platform::metal));
  };
  for (const KernelOf& kernel : kernels_of(test.problem)) {
    add(kernel);
    if (fast::plan(kernel.problem, kernel.id, fast::Platform::metal).engine != fast::Engine::matrix) continue;
    setenv("NATTEN_FAST_TILE", "matrix=0", 1);
    add(kernel);
    unsetenv("NATTEN_FAST_TILE");
  }
  return sources;
}

std::vector<Case> chosen_cases() {
  std::vector<Case> all = cases();
  if (wants_every_kernel()) return all;
  const std::vector<std::string> sample = {"1d_f32", "2d_f16", "3d_bf16", "all_3d", "tiny"};
  std::erase_if(all,
                [&](const Case& test) { return std::find(sample.begin(), sample.end(), test.name) == sample.end(); });
  return all;
}

class Texts : public testing::TestWithParam<Case> {};

TEST_P(Texts, KeepAddressSpacesApart) {
  for (const KernelSource& kernel : metal_sources(GetParam())) {
    EXPECT_EQ(address_space_complaints(kernel), "") << kernel.name;
  }
}

TEST_P(Texts, CompileWhicheverInputsAreConstant) {
  for (const KernelSource& kernel : metal_sources(GetParam())) {
    for (const InputSpace space : kSpaces) {
      EXPECT_EQ(msl_complaints(kernel, space), "")
          << kernel.name << (space == InputSpace::constant ? " constant" : " device");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Fast, Texts, testing::ValuesIn(chosen_cases()),
                         [](const auto& info) { return info.param.name; });

/// A kernel of one input `x` and one output `y`.
std::string complaints(const std::string& header, const std::string& body, InputSpace space = InputSpace::device) {
  KernelSource kernel;
  kernel.name = "probe";
  kernel.inputs = {{"x", fast::ElementType::float32, {64}}};
  kernel.outputs = {{"y", fast::ElementType::float32, {64}}};
  kernel.header = header;
  kernel.source = "  uint i = thread_position_in_grid.x;\n" + body;
  return msl_complaints(kernel, space);
}

#define EXPECT_HAS(text, part) EXPECT_PRED2(has, text, part)
bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(Model, KnowsWhatMslRejects) {
  // `this` of a member function is generic where nothing else is said, and so are its arrays.
  const std::string fill =
      "inline void fill(thread float (&a)[2]) { a[0] = a[1] = 1.0f; }\nstruct S { float a[2]; void f() ";
  const std::string call = "  S s;\n  s.f();\n  y[i] = s.a[0] + x[i];\n";
  EXPECT_EQ(complaints(fill + "thread { fill(a); } };\n", call), "");
  EXPECT_HAS(complaints(fill + "{ fill(a); } };\n", call), "no matching function");
  // MLX chooses between constant and device.
  const std::string first = "inline float first(const device float* p) { return p[0]; }\n";
  const std::string any = "template <class P> inline float first(P p) { return p[0]; }\n";
  EXPECT_EQ(complaints(first, "  y[i] = first(x);\n"), "");
  EXPECT_HAS(complaints(first, "  y[i] = first(x);\n", InputSpace::constant), "no matching function");
  EXPECT_EQ(complaints(any, "  y[i] = first(x);\n", InputSpace::constant), "");
  EXPECT_HAS(complaints("", "  y[i] = *(const threadgroup float*)(x + i);\n"), "address space");
  EXPECT_HAS(complaints("", "  threadgroup float tile[64];\n  device float* p = tile;\n  y[i] = p[i];\n"),
             "cannot initialize");
}

TEST(Model, KnowsWhatMslBefore41Rejects) {
  const std::string generic = "generic, which MSL before 4.1 refuses";
  EXPECT_HAS(complaints("inline float first(const float* p) { return p[0]; }\n", "  y[i] = first(x);\n"), generic);
  EXPECT_HAS(complaints("template <class T> inline T first(const T* p) { return p[0]; }\n", "  y[i] = first(x);\n"),
             generic);
  EXPECT_HAS(complaints("struct S { float a; float f() const { return a; } };\n", "  S s{x[i]};\n  y[i] = s.f();\n"),
             generic);
  EXPECT_HAS(complaints("struct S { const float* p; };\n", "  S s{x};\n  y[i] = s.p[i];\n"), generic);
  EXPECT_HAS(complaints("", "  const float* p = x;\n  y[i] = p[i];\n"), generic);
  EXPECT_HAS(complaints("", "  y[i] = *(const float*)(x + i);\n"), generic);
  EXPECT_EQ(complaints("", "  const device float* p = x;\n  y[i] = *(const device float*)(p + i);\n"), "");
}

TEST(Model, HasMlxsPreambleInFront) {
  EXPECT_EQ(complaints("", "  y[i] = Limits<float>::max + x[ceildiv(i, 2u)] + float(complex64_t(1.0f).real);\n"), "");
  EXPECT_HAS(complaints("struct Limits {};\n", "  y[i] = x[i];\n"), "redefinition");
  EXPECT_HAS(complaints("", "  int kernel = 3;\n  y[i] = x[kernel];\n"), "error");
}

/// Leaves out, one at a time, each `thread`, `device` and `threadgroup` of the bodies: some kernel is rejected then.
TEST(Model, SeesEveryMissingQualifier) {
  std::vector<KernelSource> kernels;
  for (const Case& test : cases()) {
    if (test.name != "all_3d") continue;
    for (const KernelSource& kernel : metal_sources(test)) kernels.push_back(kernel);
  }
  const std::regex qualifier(R"(\b(NA_THREAD|NA_DEVICE|NA_THREADGROUP|thread|device|threadgroup)\b)");
  int count = 0;
  for (const fast::text::Named& body : fast::text::all) {
    const std::string text = body.text;
    const auto has_body = [&](const KernelSource& kernel) { return kernel.header.find(text) != std::string::npos; };
    if (std::none_of(kernels.begin(), kernels.end(), has_body)) {
      const std::string name = body.name;
      EXPECT_TRUE(name.find("cuda") != std::string::npos || name.find("warpgroup") == 0) << name << " is in no kernel";
      continue;
    }
    for (std::sregex_iterator match(text.begin(), text.end(), qualifier), end; match != end; ++match) {
      const size_t at = static_cast<size_t>(match->position());
      const size_t line_start = text.rfind('\n', at) + 1;
      const std::string line = text.substr(line_start, text.find('\n', at) - line_start);
      const size_t comment = line.find("//");
      if (line[0] == '#' || comment < at - line_start) continue;
      ++count;
      std::string mutant = text;
      mutant.erase(at, static_cast<size_t>(match->length()));
      bool is_seen = false;
      for (KernelSource kernel : kernels) {
        const size_t where = kernel.header.find(text);
        if (where == std::string::npos) continue;
        kernel.header.replace(where, text.size(), mutant);
        for (const InputSpace space : kSpaces) is_seen = is_seen || !msl_complaints(kernel, space).empty();
        if (is_seen) break;
      }
      EXPECT_TRUE(is_seen) << body.name << ": without " << match->str() << " at column " << at - line_start << " of\n"
                           << line;
    }
  }
  EXPECT_GT(count, 100);
}

}  // namespace
}  // namespace natten::metal_host

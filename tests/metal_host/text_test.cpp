// The text of the kernels for Metal, checked by clang in two ways (lint.h): all kernels of a few cases of the table, or
// of every case with NATTEN_TEST_ALL=1.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <iterator>
#include <regex>
#include <stdexcept>
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
  const std::vector<std::string> sample = {"2d_f16", "all_3d",    "span_3d",       "circular_2d", "step_video",
                                           "tiny",   "extra_all", "extra_rpb_f16", "extra_step"};
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

class Qualifiers : public testing::Test {
 protected:
  static std::vector<KernelSource> kernels(const std::string& name) {
    for (const Case& test : cases()) {
      if (test.name == name) return metal_sources(test);
    }
    throw std::invalid_argument("no case " + name);
  }

  /// Leaves out, one at a time, each `thread`, `device` and `threadgroup` of a text (without NATTEN_TEST_ALL one in
  /// five). Each mutant must be rejected.
  static int expect_seen(const std::string& name, const std::string& text,
                         const std::function<bool(const std::string& mutant)>& is_rejected) {
    static const std::regex qualifier(R"(\b(NA_THREAD|NA_DEVICE|NA_THREADGROUP|thread|device|threadgroup)\b)");
    int count = 0;
    for (std::sregex_iterator match(text.begin(), text.end(), qualifier), end; match != end; ++match) {
      const size_t at = static_cast<size_t>(match->position());
      const size_t line_start = text.rfind('\n', at) + 1;
      const std::string line = text.substr(line_start, text.find('\n', at) - line_start);
      const size_t comment = line.find("//");
      if (line[0] == '#' || comment < at - line_start) continue;
      if (count++ % 5 != 0 && !wants_every_kernel()) continue;
      std::string mutant = text;
      mutant.erase(at, static_cast<size_t>(match->length()));
      EXPECT_TRUE(is_rejected(mutant)) << name << ": without " << match->str() << " at column " << at - line_start
                                       << " of\n"
                                       << line;
    }
    return count;
  }

  static bool is_rejected(const KernelSource& kernel) {
    return std::any_of(std::begin(kSpaces), std::end(kSpaces),
                       [&](InputSpace space) { return !msl_complaints(kernel, space).empty(); });
  }
};

// A body's text is the same in every case, and in these together no part of it is left out.
TEST_F(Qualifiers, OfEveryBodyAreMissed) {
  std::vector<KernelSource> all = kernels("all_3d");
  for (const KernelSource& kernel : kernels("extra_all")) all.push_back(kernel);
  for (const char* name : {"step_video", "extra_step"}) {
    all.push_back(kernels(name).front());  // its forward, which has a body of its own
  }
  int count = 0;
  for (const fast::text::Named& body : fast::text::all) {
    const std::string name = body.name, text = body.text;
    const auto with = [&](KernelSource kernel, const std::string& mutant) {
      kernel.header.replace(kernel.header.find(text), text.size(), mutant);
      return kernel;
    };
    std::vector<KernelSource> users = all;
    std::erase_if(users, [&](const KernelSource& kernel) { return kernel.header.find(text) == std::string::npos; });
    if (users.empty()) {
      const bool is_metal = name.find("cuda") == std::string::npos && name.find("warpgroup") != 0;
      EXPECT_FALSE(is_metal) << name << " is in no kernel";
      continue;
    }
    count += expect_seen(name, text, [&](const std::string& mutant) {
      return std::any_of(users.begin(), users.end(),
                         [&](const KernelSource& kernel) { return is_rejected(with(kernel, mutant)); });
    });
  }
  EXPECT_GT(count, 100);
}

class OfCase : public Qualifiers, public testing::WithParamInterface<std::string> {};

TEST_P(OfCase, QualifiersOfWhatIsGeneratedAreMissed) {
  int count = 0;
  for (const KernelSource& kernel : kernels(GetParam())) {
    count += expect_seen(kernel.name, kernel.source, [&](const std::string& mutant) {
      KernelSource changed = kernel;
      changed.source = mutant;
      return is_rejected(changed);
    });
  }
  EXPECT_GT(count, 10);
}

// Cases whose kernels differ in their flags: together all of lengths, bias, spans, circular and causal axes.
INSTANTIATE_TEST_SUITE_P(Model, OfCase, testing::Values("all_3d", "span_lengths", "circular_2d", "circular_turned"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace natten::metal_host

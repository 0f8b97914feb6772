// Every kernel of the fast tier on every case of the table, emulated (or a sample: cases.h): its results against the
// definition, the bytes it moves against what the cost model promises.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <stdexcept>

#include "cases.h"
#include "emulator.h"
#include "fast/cost.h"
#include "fast/plan.h"
#include "kernel_text.h"
#include "reference.h"

namespace natten::metal_host {
namespace {

using fast::ArraySpec;
using fast::ElementType;
using fast::KernelId;
using fast::KernelSource;
using oracle::Arrays;
using oracle::Gradients;
using oracle::Reference;
using oracle::Values;

// --- Numbers in storage: independent of the emulator's own half types ---

double narrowed(double x, ElementType type) {
  if (!std::isfinite(x)) return x;
  if (type == ElementType::float32) return static_cast<float>(x);
  const int digits = type == ElementType::float16 ? 11 : 8;
  int exponent = 0;
  std::frexp(x, &exponent);
  const double unit = std::ldexp(1.0, std::max(exponent - digits, type == ElementType::float16 ? -24 : -133));
  return std::nearbyint(x / unit) * unit;
}

void store(double x, ElementType type, char* to) {
  const auto value = static_cast<float>(x);
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (type == ElementType::float32) {
    std::memcpy(to, &bits, 4);
    return;
  }
  std::uint16_t half = bits >> 16;  // bfloat16: the upper bits of a float that is exact in it
  if (type == ElementType::float16) {
    const double magnitude = std::abs(x);
    half = x < 0 || std::signbit(x) ? 0x8000 : 0;
    if (std::isnan(x)) {
      half |= 0x7e00;
    } else if (magnitude >= 0x1p-14) {
      half |= static_cast<std::uint16_t>(((bits >> 23 & 0xff) - 112) << 10 | (bits >> 13 & 0x3ff));
    } else {
      half |= static_cast<std::uint16_t>(magnitude * 0x1p24);
    }
  }
  std::memcpy(to, &half, 2);
}

double load(const char* from, ElementType type) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, from, size_of(type));
  if (type == ElementType::float16) {
    const int exponent = bits >> 10 & 31;
    const double magnitude = exponent == 31  ? (bits & 0x3ff ? NAN : INFINITY)
                             : exponent == 0 ? (bits & 0x3ff) * 0x1p-24
                                             : std::ldexp(1024 + (bits & 0x3ff), exponent - 25);
    return bits & 0x8000 ? -magnitude : magnitude;
  }
  if (type == ElementType::bfloat16) bits <<= 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// --- Arrays ---

/// An array in memory, laid out as a caller may have it.
struct Stored {
  std::vector<char> bytes;
  std::vector<std::int64_t> strides;
  Input input() const { return {bytes.data(), strides}; }
};

Stored stored(const Values& values, const ArraySpec& spec, Layout layout) {
  // Order of the axes in memory, outermost first.
  std::vector<int> order;
  const int rank = static_cast<int>(spec.shape.size());
  for (int axis = 0; axis < rank; ++axis) order.push_back(axis);
  if (layout == Layout::heads_first && rank >= 5) std::rotate(order.begin() + 1, order.begin() + 4, order.begin() + 5);
  if (layout == Layout::channels_first && rank == 6) std::rotate(order.begin() + 1, order.begin() + 5, order.end());
  Stored result;
  result.strides.resize(rank);
  std::int64_t size = 1;
  for (int i = rank - 1; i >= 0; --i) {
    const bool is_shared = layout == Layout::same_batch && order[i] == 0 && rank >= 5;
    result.strides[order[i]] = is_shared ? 0 : size;
    if (!is_shared) size *= spec.shape[order[i]];
  }
  result.bytes.resize(size * size_of(spec.type));
  for (size_t i = 0; i < values.size(); ++i) {
    std::int64_t rest = static_cast<std::int64_t>(i), offset = 0;
    for (int axis = rank - 1; axis >= 0; --axis) {
      offset += rest % spec.shape[axis] * result.strides[axis];
      rest /= spec.shape[axis];
    }
    store(values[i], spec.type, &result.bytes[offset * size_of(spec.type)]);
  }
  return result;
}

ElementType element(FloatType type) {
  return type == FloatType::float16    ? ElementType::float16
         : type == FloatType::bfloat16 ? ElementType::bfloat16
                                       : ElementType::float32;
}

class Data {
 public:
  explicit Data(const Case& test) : case_(test), p_(test.problem) {
    const std::int64_t query_tokens = p_.batch * p_.query_tokens(), keys = p_.batch * p_.key_tokens();
    const std::int64_t queries = p_.batch * p_.queries();
    const ElementType q = element(p_.query_type), k = element(p_.key_type), v = element(p_.value_type);
    arrays_.lengths = test.lengths;
    arrays_.query = random(query_tokens * p_.heads * p_.head_dim, q);
    arrays_.key = random(keys * p_.kv_heads * p_.head_dim, k);
    arrays_.value = random(keys * p_.kv_heads * p_.value_dim, v);
    arrays_.extra_key = random(p_.batch * p_.extra_tokens * p_.kv_heads * p_.head_dim, k);
    arrays_.extra_value = random(p_.batch * p_.extra_tokens * p_.kv_heads * p_.value_dim, v);
    arrays_.attn = random(queries * p_.heads * p_.kernel_volume(), q);
    arrays_.dlogits = random(queries * p_.heads * p_.kernel_volume(), q);
    arrays_.dout = random(queries * p_.heads * p_.value_dim, q);
    arrays_.dlse = random(queries * p_.heads, ElementType::float32);
    if (p_.has_rpb) {
      std::int64_t entries = p_.heads;
      for (const Axis& axis : p_.axes) entries *= 2 * axis.kernel_size - 1;
      arrays_.rpb = random(entries, ElementType::float32);
      for (std::int64_t i = 0; test.masks && i < entries; ++i) {
        if (i < entries / p_.heads || i % 3 == 0) arrays_.rpb[i] = -INFINITY;
      }
    }
    const Reference reference(p_, arrays_);
    arrays_.out = reference.out();
    arrays_.lse = reference.lse();
    for (double& x : arrays_.out) x = narrowed(x, q);
    for (double& x : arrays_.lse) x = narrowed(x, ElementType::float32);
    arrays_.delta = reference.delta();
    for (double& x : arrays_.delta) x = narrowed(x, ElementType::float32);
  }

  Values random(std::int64_t count, ElementType type) {
    std::uniform_real_distribution<double> uniform(-1.0, 1.0);
    Values values(count);
    const std::int64_t distinct = case_.layout == Layout::same_batch ? count / p_.batch : count;
    for (std::int64_t i = 0; i < count; ++i)
      values[i] = i < distinct ? narrowed(uniform(engine_), type) : values[i - distinct];
    return values;
  }

  const Arrays& arrays() const { return arrays_; }

  /// The arrays as a kernel gets them: what it must not use is NaN.
  Arrays with_poison() const {
    Arrays poisoned = arrays_;
    const Reference reference(p_, arrays_);
    const auto rows = [&](Values& values, std::int64_t per_sample, auto keep) {
      const std::int64_t width = static_cast<std::int64_t>(values.size()) / (p_.batch * per_sample);
      for (std::int64_t i = 0; i < static_cast<std::int64_t>(values.size()); ++i) {
        if (!keep(i / width / per_sample, i / width % per_sample)) values[i] = NAN;
      }
    };
    const auto is_token = [&](std::int64_t b, std::int64_t row) { return reference.is_query_token(b, row); };
    const auto is_key = [&](std::int64_t b, std::int64_t row) { return reference.is_key(b, row); };
    const auto is_query = [&](std::int64_t b, std::int64_t query) { return reference.is_query(b, query); };
    rows(poisoned.query, p_.query_tokens(), is_token);
    for (Values* values : {&poisoned.key, &poisoned.value}) rows(*values, p_.key_tokens(), is_key);
    for (Values* values : {&poisoned.out, &poisoned.lse, &poisoned.dout, &poisoned.dlse, &poisoned.delta}) {
      rows(*values, p_.queries(), is_query);
    }
    const std::int64_t slots = p_.kernel_volume();
    for (Values* values : {&poisoned.attn, &poisoned.dlogits}) {
      for (std::int64_t i = 0; i < static_cast<std::int64_t>(values->size()); ++i) {
        const std::int64_t query = i / slots / p_.heads;
        if (!reference.is_filled(query / p_.queries(), query % p_.queries(), i % slots)) (*values)[i] = NAN;
      }
    }
    return poisoned;
  }

 private:
  const Case& case_;
  const Problem& p_;
  Arrays arrays_;
  std::mt19937 engine_{1};
};

/// The array that a kernel calls `name`.
const Values& input_named(const std::string& name, const Arrays& given) {
  const std::map<std::string, const Values*> arrays = {{"na_query", &given.query},
                                                       {"na_key", &given.key},
                                                       {"na_value", &given.value},
                                                       {"na_extra_key", &given.extra_key},
                                                       {"na_extra_value", &given.extra_value},
                                                       {"na_rpb", &given.rpb},
                                                       {"na_attn", &given.attn},
                                                       {"na_out", &given.out},
                                                       {"na_lse", &given.lse},
                                                       {"na_dout", &given.dout},
                                                       {"na_dlse", &given.dlse},
                                                       {"na_partials", &given.partials},
                                                       {"na_delta", &given.delta},
                                                       {"na_dlogits", &given.dlogits}};
  return *arrays.at(name);
}

/// Partial results [parts, ...] summed to the size of the whole.
Values summed(const Values& partials, size_t size) {
  Values sum(size, 0.0);
  for (size_t i = 0; i < partials.size(); ++i) sum[i % size] += partials[i];
  return sum;
}

/// What the kernel must return under `name`.
Values expected(KernelId id, const std::string& name, const Arrays& given, const Reference& reference) {
  if (id == KernelId::rpb_sum) return summed(given.partials, given.rpb.size());
  if (id == KernelId::av) return reference.weighted();
  if (name == "na_out") return reference.out();
  if (name == "na_lse") return reference.lse();
  if (name == "na_delta") return reference.delta();
  if (name == "na_logits") return reference.logits();
  const bool is_qk = id == KernelId::qk_backward_query || id == KernelId::qk_backward_key;
  const bool is_av = id == KernelId::av_backward_attn || id == KernelId::av_backward_value;
  const Gradients gradients = is_qk   ? reference.logits_gradients()
                              : is_av ? reference.weighted_gradients()
                                      : reference.attention_gradients();
  if (name == "na_dquery") return gradients.query;
  if (name == "na_dkey") return gradients.key;
  if (name == "na_dvalue") return gradients.value;
  if (name == "na_dattn") return gradients.attn;
  if (name == "na_partials") return gradients.rpb;
  throw std::invalid_argument(name);
}

/// Runs the kernel on the case's arrays. `results` are its outputs, widened.
Report emulate(const KernelSource& kernel, const Arrays& given, const Case& test, std::vector<Values>& results) {
  std::vector<Stored> arrays;
  std::vector<Input> inputs;
  std::vector<std::vector<char>> outputs;
  std::vector<void*> output_data;
  const auto scale = static_cast<float>(test.problem.scale);
  const auto spans = fast::span_numbers(fast::nearest(test.problem));
  arrays.reserve(kernel.inputs.size());
  for (const ArraySpec& input : kernel.inputs) {
    if (input.name == "na_lengths") {
      inputs.push_back({test.lengths.data(), {3, 1}});
      continue;
    }
    if (input.name == fast::kScaleName) {
      inputs.push_back({&scale, {1}});
      continue;
    }
    if (input.name == fast::kSpansName) {
      inputs.push_back({spans.data(), {fast::kSpanNumbers, 1}});
      continue;
    }
    const Values& values = input_named(input.name, given);
    EXPECT_EQ(element_count(input), static_cast<std::int64_t>(values.size())) << input.name;
    arrays.push_back(stored(values, input, test.layout));
    inputs.push_back(arrays.back().input());
  }
  for (const ArraySpec& output : kernel.outputs) {
    outputs.emplace_back(element_count(output) * size_of(output.type));
    output_data.push_back(outputs.back().data());
  }
  const Report report = run_emulated(kernel, inputs, output_data);
  for (size_t i = 0; i < outputs.size(); ++i) {
    const ElementType type = kernel.outputs[i].type;
    results.emplace_back();
    for (std::int64_t e = 0; e < element_count(kernel.outputs[i]); ++e) {
      results.back().push_back(load(&outputs[i][e * size_of(type)], type));
    }
  }
  return report;
}

/// Infinities in the same places, error at most `tolerance` of the largest value (of 0.1 at least: a result that is
/// small by cancellation has the error of its terms, which are of order 1 here).
void expect_near(const Values& got, const Values& expected, double tolerance, const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  double largest = 0.1, worst = 0;
  size_t where = 0;
  for (const double x : expected) largest = std::isfinite(x) ? std::max(largest, std::abs(x)) : largest;
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isinf(expected[i]) ? got[i] == expected[i] : std::abs(got[i] - expected[i]) <= worst) continue;
    worst = std::isinf(expected[i]) || std::isnan(got[i]) ? INFINITY : std::abs(got[i] - expected[i]);
    where = i;
    if (std::isinf(worst)) break;
  }
  EXPECT_LE(worst, tolerance * largest) << what << ": element " << where << " is " << got[where] << ", expected "
                                        << expected[where];
}

bool is_forward(KernelId id) {
  return id == KernelId::forward || id == KernelId::qk || id == KernelId::av;
}

/// Float32 results have the tolerances. A half result may be off by one unit in the last place of the largest:
/// sums are in float32, so rounding it once, by half a unit, is nearly all of its error.
/// So may what is made of operands with the 10 bits of tf32.
double tolerance(KernelId id, ElementType type, bool is_tf32 = false) {
  if (is_tf32) return 0x1p-9;
  if (type == ElementType::float16) return 0x1p-10;
  if (type == ElementType::bfloat16) return 0x1p-7;
  return is_forward(id) ? 1e-5 : 1e-4;
}

struct Param {
  Case test;
  KernelOf kernel;
  fast::Target target;
  bool matrix;  ///< on matrix units, where the plan takes them
};

/// CUDA's text differs in prelude and fragments, and in its tiles: kernels on matrix units, and some of the others.
bool is_sampled_on_cuda(const Param& param, size_t index) {
  return param.matrix || index % 5 == 0;
}

/// For its life, plans without matrix units.
class WithoutMatrixUnits {
 public:
  explicit WithoutMatrixUnits(bool active) : active_(active) {
    if (active) setenv("NATTEN_FAST_TILE", "matrix=0", 1);
  }
  ~WithoutMatrixUnits() {
    if (active_) unsetenv("NATTEN_FAST_TILE");
  }

 private:
  bool active_;
};

std::vector<Param> parameters() {
  std::vector<Param> all;
  size_t index = 0;
  for (const Case& test : cases()) {
    for (const KernelOf& kernel : kernels_of(test.problem)) {
      for (const fast::Target target : {fast::Target(fast::Platform::metal), {fast::Platform::cuda, 80, true}}) {
        for (const bool matrix : {false, true}) {
          const Param param{test, kernel, target, matrix};
          if (matrix && fast::plan(kernel.problem, kernel.id, target).engine != fast::Engine::matrix) continue;
          if (target.platform == fast::Platform::metal || is_sampled_on_cuda(param, ++index)) all.push_back(param);
        }
      }
    }
  }
  return all;
}

/// One of `every`, a prime, so that cases have different kernels in the sample; or all.
template <class T>
std::vector<T> sample(std::vector<T> all, size_t every) {
  size_t index = 0;
  if (!wants_every_kernel()) std::erase_if(all, [&](const T&) { return index++ % every != 0; });
  return all;
}

/// The kernels that sum the gradient of a bias.
std::vector<Param> with_bias_gradient() {
  std::vector<Param> all = parameters();
  std::erase_if(all, [](const Param& p) {
    const bool sums = p.kernel.id == KernelId::backward_query || p.kernel.id == KernelId::qk_backward_query;
    return !p.test.problem.has_rpb || !sums;
  });
  return all;
}

class Kernels : public testing::TestWithParam<Param> {};
class BiasGradients : public testing::TestWithParam<Param> {};

bool is_streamed(KernelId id, const std::string& name) {
  if (fast::row_of(id).holds_keys())
    return name == "na_query" || name == "na_dout" || name == "na_lse" || name == "na_delta";
  return fast::row_of(id).has_tiles() && (name == "na_key" || name == "na_value");
}

/// The bytes that the kernel moved are those of the cost model.
void expect_cost(const Case& test, const Problem& problem, KernelId id, fast::Target target, const KernelSource& source,
                 const Report& report) {
  const fast::Cost cost = fast::cost(problem, id, target);
  double loaded = 0;
  for (const Traffic& traffic : report.traffic) {
    for (const ArraySpec& input : source.inputs) {
      if (traffic.name == input.name && input.name != fast::kScaleName && input.name != fast::kSpansName)
        loaded += traffic.loaded_once;
    }
  }
  // The model takes full lengths, does not know that samples may be one in memory or that no query may attend some
  // keys, and bounds the loads of rpb.
  bool is_exact = !problem.spans && !problem.has_lengths && !problem.has_rpb && test.layout != Layout::same_batch &&
                  fast::row_of(id).has_tiles();
  bool is_circular = false;
  for (const Axis& axis : problem.axes) {
    is_circular |= axis.is_circular;
    is_exact = is_exact && !is_circular && (axis.stride == 1 || !fast::row_of(id).holds_keys());
  }
  if (is_exact) {
    EXPECT_EQ(loaded, cost.loaded);
  } else {
    // Without tiles, the threads past the end repeat the last row.
    EXPECT_LE(loaded, (fast::row_of(id).has_tiles() ? 1.0 : 1.1) * cost.loaded);
  }
  // Slots are filled before some of them get their value, and partial gradients of rpb are added up in place.
  bool writes_twice = id == KernelId::qk || id == KernelId::av_backward_attn;
  for (const ArraySpec& output : source.outputs) writes_twice = writes_twice || output.name == "na_partials";
  if (writes_twice) {
    EXPECT_GE(static_cast<double>(report.stored()), cost.stored);
  } else {
    EXPECT_EQ(static_cast<double>(report.stored()), cost.stored);
  }
  for (const Traffic& traffic : report.traffic) {
    if (!is_streamed(id, traffic.name) || is_circular || fast::plan(problem, id, target).engine == fast::Engine::matrix)
      continue;
    EXPECT_EQ(traffic.loaded, traffic.loaded_once) << traffic.name << " is loaded more than once by a tile";
  }
}

/// The pairs that threads computed, known from the rows that they read of threadgroup memory, are those of the model.
void expect_flops(const Problem& problem, KernelId id, fast::Target target, const Report& report) {
  if (!fast::row_of(id).has_tiles()) return;
  const fast::Cost cost = fast::cost(problem, id, target);
  const fast::Plan plan = fast::plan(problem, id, target);
  if (plan.engine == fast::Engine::decode) return;  // reads device memory, whose traffic tells
  if (plan.engine == fast::Engine::matrix) {
    // Blocks that no position of a simdgroup meets are skipped, and the last of a tile is filled up: on such small
    // inputs that is much. Of A alone, the array declared first.
    const double tiles = double(plan.tile_count() * problem.batch * problem.heads);
    const double pairs = cost.pairs + tiles * plan.positions() * (plan.block - 1);
    const double row = double(plan.products(fast::row_of(id))[0]) * plan.a.width * fast::element_size(plan.a.type);
    EXPECT_GT(report.threadgroup_loaded, 0);
    EXPECT_LE(double(report.threadgroup_loaded), pairs / 16 * row);
    return;
  }
  const int row_bytes = plan.a.slices * plan.lanes * plan.vector * fast::element_size(plan.a.type);
  const double pairs = static_cast<double>(report.threadgroup_loaded) / row_bytes * plan.run;
  // The model takes full lengths, and lets the last batch of a window be as long as the others.
  const bool has_short_batches = plan.run_axis == 1 && problem.axes[2].kernel_size % plan.batch != 0;
  EXPECT_LE(pairs, cost.pairs);
  if (!problem.has_lengths && !has_short_batches) EXPECT_EQ(pairs, cost.pairs);
  if (!problem.has_lengths) EXPECT_GE(pairs, 0.9 * cost.pairs);
}

TEST_P(Kernels, MatchTheDefinition) {
  const auto& [test, kernel, target, matrix] = GetParam();
  const WithoutMatrixUnits guard(!matrix);
  ASSERT_EQ(fast::objection(kernel.problem, target), std::nullopt);
  const KernelSource source = fast::kernel_source(kernel.problem, kernel.id, target);
  const bool is_tf32 = target.tf32 && matrix && test.problem.query_type == FloatType::float32;
  Data data(test);
  const Reference reference(test.problem, data.arrays());
  Arrays given = data.with_poison();
  if (kernel.id == KernelId::rpb_sum)
    given.partials = data.random(element_count(source.inputs[0]), ElementType::float32);
  std::vector<Values> results;
  const Report report = emulate(source, given, test, results);
  for (size_t i = 0; i < results.size(); ++i) {
    const std::string& name = source.outputs[i].name;
    Values right = expected(kernel.id, name, given, reference);
    if (name == "na_delta") {  // what it is in the padding is nobody's concern: the others get NaN there
      for (size_t at = 0; at < right.size(); ++at) {
        const std::int64_t query = static_cast<std::int64_t>(at) / test.problem.heads, queries = test.problem.queries();
        if (!reference.is_query(query / queries, query % queries)) results[i][at] = right[at] = 0.0;
      }
    }
    expect_near(name == "na_partials" ? summed(results[i], right.size()) : results[i], right,
                tolerance(kernel.id, source.outputs[i].type, is_tf32), name);
  }
  expect_cost(test, kernel.problem, kernel.id, target, source, report);
  expect_flops(kernel.problem, kernel.id, target, report);
}

/// Hopper's warpgroup instructions, also where the plan prefers others.
struct OnWarpgroups {
  Case test;
  KernelOf kernel;
};
const fast::Target kHopper{fast::Platform::cuda, 90};

/// For its life, plans on warpgroup instructions.
class WithWarpgroups {
 public:
  WithWarpgroups() { setenv("NATTEN_FAST_TILE", "warpgroup=1", 1); }
  ~WithWarpgroups() { unsetenv("NATTEN_FAST_TILE"); }
};

std::vector<OnWarpgroups> on_warpgroups() {
  std::vector<OnWarpgroups> all;
  std::vector<Case> tests = cases();
  for (const Case& test : warpgroup_cases()) tests.push_back(test);
  for (const Case& test : tests) {
    for (const KernelOf& kernel : kernels_of(test.problem)) {
      const WithWarpgroups guard;
      const fast::Plan plan = fast::plan(kernel.problem, kernel.id, kHopper);
      if (plan.engine == fast::Engine::warpgroup) all.push_back({test, kernel});
    }
  }
  return all;
}
class Warpgroups : public testing::TestWithParam<OnWarpgroups> {};

TEST_P(Warpgroups, MatchTheDefinition) {
  const auto& [test, kernel] = GetParam();
  const WithWarpgroups guard;
  const KernelSource source = fast::kernel_source(kernel.problem, kernel.id, kHopper);
  Data data(test);
  const Reference reference(test.problem, data.arrays());
  const Arrays given = data.with_poison();
  std::vector<Values> results;
  emulate(source, given, test, results);
  for (size_t i = 0; i < results.size(); ++i) {
    const std::string& name = source.outputs[i].name;
    const Values right = expected(kernel.id, name, given, reference);
    expect_near(name == "na_partials" ? summed(results[i], right.size()) : results[i], right,
                tolerance(kernel.id, source.outputs[i].type, false), name);
  }
}

/// Threadgroups that sum the gradient of rpb over several tiles, and over samples.
TEST_P(BiasGradients, AreSummedInFewParts) {
  const auto& [test, kernel, target, matrix] = GetParam();
  Data data(test);
  const Reference reference(test.problem, data.arrays());
  const Arrays given = data.with_poison();
  for (const int parts : {1, 3}) {
    setenv("NATTEN_FAST_TILE", ("parts=" + std::to_string(parts) + (matrix ? "" : ",matrix=0")).c_str(), 1);
    const KernelSource source = fast::kernel_source(kernel.problem, kernel.id, target);
    unsetenv("NATTEN_FAST_TILE");
    EXPECT_LE(source.outputs[1].shape[0], parts);
    std::vector<Values> results;
    emulate(source, given, test, results);
    const bool is_tf32 = target.tf32 && matrix && test.problem.query_type == FloatType::float32;
    const double allowed = tolerance(kernel.id, ElementType::float32, is_tf32);
    expect_near(results[0], expected(kernel.id, "na_dquery", given, reference),
                tolerance(kernel.id, source.outputs[0].type, is_tf32), "na_dquery");
    const Values right = expected(kernel.id, "na_partials", given, reference);
    expect_near(summed(results[1], right.size()), right, allowed, "na_partials");
  }
}

/// The bodies' idea of where a lane's elements lie is checked against the emulator's: with another one, numbers are
/// wrong.
TEST(Fragments, OfAWrongLayoutGiveWrongNumbers) {
  const std::vector<Case> all = cases();
  const auto test = std::find_if(all.begin(), all.end(), [](const Case& c) { return c.name == "1d_f16"; });
  ASSERT_NE(test, all.end());
  const Data data(*test);
  const Reference reference(test->problem, data.arrays());
  const std::string layouts[] = {"lane / 16 * 4 + lane / 2 % 4, lane / 8 % 2 * 2 + lane % 2", "lane / 4, lane % 4"};
  for (const fast::Platform platform : {fast::Platform::metal, fast::Platform::cuda}) {
    KernelSource source = fast::kernel_source(test->problem, KernelId::forward, platform);
    const bool metal = platform == fast::Platform::metal;
    const std::string& own = layouts[metal ? 0 : 1];
    const size_t at = source.header.find(own);
    ASSERT_NE(at, std::string::npos) << "the layout has been rewritten: this test must follow";
    source.header.replace(at, own.size(), layouts[metal ? 1 : 0]);
    std::vector<Values> results;
    emulate(source, data.arrays(), *test, results);
    const Values right = reference.out();
    double worst = 0;
    for (size_t i = 0; i < right.size(); ++i) worst = std::max(worst, std::abs(results[0][i] - right[i]));
    EXPECT_GT(worst, 0.1);
  }
}

/// MLX gives stride 1 to axes that it inserts, as it does to calls of rank 1 and 2. Rows are aligned none the less.
TEST(Views, IgnoreTheStridesOfAxesWithOnePosition) {
  Problem p;
  p.batch = p.heads = p.kv_heads = 1;
  p.head_dim = p.value_dim = 16;
  p.query_type = p.key_type = p.value_type = FloatType::float16;
  p.axes = {Axis{1, 1, 1, 1, 1, false}, Axis{1, 1, 1, 1, 1, false}, Axis{40, 7, 1, 1, 1, false}};
  KernelSource k = fast::kernel_source(p, fast::KernelId::forward, fast::Platform::metal);
  k.source =
      "natten::Site na_site = natten::locate<true>(natten::Extent{{na_key_shape[1], na_key_shape[2], "
      "na_key_shape[3]}}, "
      "0, 0, 1, int(thread_position_in_threadgroup.x));\n"
      "const natten::Tile na_tile = natten::tile_of<true>(na_site);\n"
      "if (thread_position_in_threadgroup.x == 0) na_lse[0] = natten::view(natten::tensor(na_key, na_key_strides, 6), "
      "natten::Indexed::keys, na_tile, 0).vectors ? 1.0f : 0.0f;\n";
  k.outputs = {{"na_lse", ElementType::float32, {1}}};
  k.grid = k.threadgroup;
  k.shared_bytes = 0;
  const std::vector<std::uint16_t> data(40 * 16 + 8);
  const float scale = 1.0f;
  for (const auto& [strides, vectors] : {std::pair{std::vector<std::int64_t>{640, 1, 1, 16, 16, 1}, 1.0f},
                                         {{640, 640, 640, 16, 16, 1}, 1.0f},
                                         {{640, 640, 640, 15, 16, 1}, 0.0f},
                                         {{640, 640, 640, 16, 16, 2}, 0.0f}}) {
    std::vector<Input> inputs;
    for (const ArraySpec& input : k.inputs) {
      inputs.push_back(input.name == fast::kScaleName ? Input{&scale, {1}} : Input{data.data(), strides});
    }
    float result = -1;
    EXPECT_EQ(metal_host::run(k, inputs, {&result}).error, "");
    EXPECT_EQ(result, vectors);
  }
}

/// 2-D, half types, windows up to 7x7, head dims up to 64: tiles share what they load.
TEST(CostModel, ForwardMovesAtMostTwiceTheCompulsoryBytes) {
  for (const std::int64_t kernel_size : {3, 5, 7}) {
    for (const std::int64_t dim : {16, 32, 64}) {
      for (const std::int64_t length : {56, 256}) {
        Problem p;
        p.rank = 2;
        p.batch = 1;
        p.heads = p.kv_heads = 4;
        p.head_dim = p.value_dim = dim;
        p.query_type = p.key_type = p.value_type = FloatType::float16;
        p.axes = {Axis{1, 1, 1, 1, 1, false}, Axis{length, kernel_size, 1, 1, 1, false},
                  Axis{length, kernel_size, 1, 1, 1, false}};
        for (const fast::Platform platform : {fast::Platform::metal, fast::Platform::cuda}) {
          EXPECT_LE(fast::cost(p, KernelId::forward, platform).traffic(), 2.0)
              << "K " << kernel_size << " D " << dim << " L " << length << " platform " << static_cast<int>(platform);
        }
      }
    }
  }
}

/// The middle half of the rows costs about half of them, whatever the kernel.
TEST(CostModel, OfASpanIsThatOfItsQueries) {
  Problem p;
  p.batch = 1;
  p.heads = p.kv_heads = 4;
  p.head_dim = p.value_dim = 64;
  p.axes = {Axis{1, 1, 1, 1, 1, false}, Axis{256, 13, 1, 1, 1, false}, Axis{256, 13, 1, 1, 1, false}};
  Problem part = p;
  part.spans = {whole(p.axes[0]), {64, 128, 58, 140}, whole(p.axes[2])};
  for (const FloatType type : {FloatType::float32, FloatType::float16}) {
    for (Problem* of : {&p, &part}) of->query_type = of->key_type = of->value_type = type;
    for (const fast::Platform platform : {fast::Platform::metal, fast::Platform::cuda}) {
      for (const KernelId kernel : {KernelId::forward, KernelId::backward_query, KernelId::backward_key_value}) {
        const fast::Cost all = fast::cost(p, kernel, platform),
                         half = fast::cost(fast::nearest(part), kernel, platform);
        EXPECT_EQ(half.useful_pairs * 2, all.useful_pairs);
        EXPECT_LE(half.pairs, 0.55 * all.pairs) << fast::kernel_name(kernel);
        EXPECT_LE(half.loaded + half.stored, 0.55 * (all.loaded + all.stored)) << fast::kernel_name(kernel);
      }
    }
  }
}

/// Of a long axis most tiles are not looked at: costs must grow with its length all the same.
TEST(CostModel, OfALongAxisIsThatOfItsParts) {
  Problem p;
  p.batch = p.heads = p.kv_heads = 1;
  p.head_dim = p.value_dim = 64;
  p.axes = {Axis{1, 1, 1, 1, 1, false}, Axis{1, 1, 1, 1, 1, false}, Axis{1 << 16, 31, 1, 1, 1, false}};
  for (const KernelId kernel : {KernelId::forward, KernelId::backward_query, KernelId::backward_key_value}) {
    const fast::Cost small = fast::cost(p, kernel, fast::Platform::metal);
    Problem large = p;
    large.axes[2].length = std::int64_t(1) << 29;
    const fast::Cost cost = fast::cost(large, kernel, fast::Platform::metal);
    EXPECT_EQ(small.useful_pairs, 31.0 * (1 << 16));
    EXPECT_NEAR(cost.useful_pairs / (31.0 * (1 << 29)), 1.0, 1e-6);
    EXPECT_NEAR(cost.pairs / small.pairs / (1 << 13), 1.0, 1e-3);
    EXPECT_NEAR(cost.loaded / small.loaded / (1 << 13), 1.0, 1e-3);
  }
}

/// Nor are most tiles of a long axis with long windows, whose borders reach far, and most groups of a large dilation.
TEST(CostModel, OfLongWindowsAndManyGroupsIsThatOfTheirParts) {
  Problem p;
  p.batch = p.heads = p.kv_heads = 1;
  p.head_dim = p.value_dim = 64;
  p.axes = {Axis{1, 1, 1, 1, 1, false}, Axis{1, 1, 1, 1, 1, false}, Axis{}};
  for (const bool is_causal : {false, true}) {
    for (const std::int64_t dilation : {1, 1 << 10, (1 << 10) + 1}) {
      for (const std::int64_t kernel_size : {1 << 6, 1 << 8, 1 << 16}) {
        const std::int64_t length = dilation == 1 ? 1 << 20 : dilation * (1 << 9);
        if (kernel_size * dilation > length) continue;
        const double places = double(length) / double(dilation), k = double(kernel_size);
        const double met = is_causal ? double(dilation) * (k * places - k * (k - 1) / 2) : double(length) * k;
        p.axes[2] = Axis{length, kernel_size, 1, dilation, 1, is_causal};
        for (const KernelId kernel : {KernelId::forward, KernelId::backward_key_value}) {
          const fast::Cost cost = fast::cost(p, kernel, fast::Platform::metal);
          EXPECT_NEAR(cost.useful_pairs / met, 1.0, 1e-3) << length << ' ' << kernel_size << ' ' << dilation;
          EXPECT_GE(cost.waste(), 1.0);
        }
      }
    }
  }
}

std::string name_of(const testing::TestParamInfo<Param>& info) {
  return info.param.test.name + "_" + fast::kernel_name(info.param.kernel.id) + (info.param.matrix ? "_matrix" : "") +
         (info.param.target.platform == fast::Platform::cuda ? "_cuda" : "");
}

INSTANTIATE_TEST_SUITE_P(Fast, Kernels, testing::ValuesIn(sample(parameters(), 19)), name_of);
INSTANTIATE_TEST_SUITE_P(Fast, Warpgroups, testing::ValuesIn(sample(on_warpgroups(), 7)), [](const auto& info) {
  return info.param.test.name + "_" + fast::kernel_name(info.param.kernel.id);
});
INSTANTIATE_TEST_SUITE_P(Fast, BiasGradients, testing::ValuesIn(sample(with_bias_gradient(), 7)), name_of);

}  // namespace
}  // namespace natten::metal_host

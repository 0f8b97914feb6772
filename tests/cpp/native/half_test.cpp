// Scalar conversions against the definition of the formats, vector conversions against the scalar ones.
#include "native/cpu/half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "native/cpu/kernels.h"
#include "native/cpu/target.h"

namespace natten::cpu {
namespace {

double half_value(std::uint32_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 31) return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * INFINITY;
  return sign * (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25));
}

// Floats around every half value and around every midpoint of two.
std::vector<float> interesting_floats() {
  std::vector<float> floats = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 65519.0f, 65520.0f, 1e30f, 1e-30f, 3e38f};
  for (std::uint32_t bits = 0; bits < 0x7c00; bits += 7) {
    const float low = static_cast<float>(half_value(bits)), high = static_cast<float>(half_value(bits + 1));
    if (!std::isfinite(high)) continue;
    const float middle = (low + high) / 2;
    for (float x : {low, middle, std::nextafter(middle, low), std::nextafter(middle, high)}) {
      floats.push_back(x);
      floats.push_back(-x);
    }
  }
  return floats;
}

TEST(Half, EveryValueConvertsToFloat) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float got = to_float(Half{static_cast<std::uint16_t>(bits)});
    const double want = half_value(bits);
    EXPECT_TRUE(std::isnan(want) ? std::isnan(got) : got == want) << bits;
    Half back;
    from_float(got, back);
    if (!std::isnan(want)) EXPECT_EQ(back.bits, bits);
  }
}

TEST(Half, RoundsToNearestEven) {
  for (float x : interesting_floats()) {
    Half half;
    from_float(x, half);
    const double got = to_float(half);
    if (std::isnan(x)) {
      EXPECT_TRUE(std::isnan(got));
    } else if (std::abs(x) >= 65520.0f) {
      EXPECT_TRUE(std::isinf(got) && std::signbit(got) == std::signbit(x)) << x;
    } else {
      const double below = half_value((half.bits & 0x7fff) - ((half.bits & 0x7fff) != 0));
      const double above = half_value((half.bits & 0x7fff) + 1);
      const double error = std::abs(std::abs(x) - std::abs(got));
      const double to_neighbor = std::min(std::abs(std::abs(x) - below), std::abs(std::abs(x) - above));
      if ((half.bits & 0x7fff) != 0 && std::isfinite(above)) {
        EXPECT_LE(error, to_neighbor) << x;
        if (error == to_neighbor) EXPECT_EQ(half.bits & 1, 0) << x;
      }
    }
  }
}

TEST(BFloat, RoundsToNearestEven) {
  BFloat result;
  from_float(1.00390625f, result);  // midway between 1 and 1 + 2^-7
  EXPECT_EQ(to_float(result), 1.0f);
  from_float(1.01171875f, result);  // midway between 1 + 2^-7 and 1 + 2^-6
  EXPECT_EQ(to_float(result), 1.015625f);
  from_float(NAN, result);
  EXPECT_TRUE(std::isnan(to_float(result)));
  from_float(-INFINITY, result);
  EXPECT_EQ(to_float(result), -INFINITY);
}

/// One row of `channels`.
Tensor row(void* data, std::int64_t channels, FloatType type) {
  return {data, {channels, channels, channels, channels, channels}, type};
}

/// A window of one key, whose weight is 1: a copy from one type to another.
void copy(const Tensor& from, std::int64_t channels, const Tensor& to) {
  Problem p;
  p.rank = p.batch = p.heads = p.kv_heads = p.head_dim = 1;
  p.value_dim = channels;
  p.axes.fill(Axis{1, 1, 1, 1, 1, false});
  p.value_type = from.type;
  float zero = 0, lse;
  attention_forward({p, row(&zero, 1, FloatType::float32), row(&zero, 1, FloatType::float32), from}, to, &lse);
}

TEST(Conversions, AreTheScalarFunctionsOnEveryTarget) {
  std::vector<float> floats = interesting_floats();
  const std::int64_t count = floats.size();
  for (const std::string& target : cpu_targets()) {
    set_cpu_target(target);
    for (const FloatType type : {FloatType::float16, FloatType::bfloat16}) {
      std::vector<std::uint16_t> stored(count);
      std::vector<float> loaded(count);
      copy(row(floats.data(), count, FloatType::float32), count, row(stored.data(), count, type));
      copy(row(stored.data(), count, type), count, row(loaded.data(), count, FloatType::float32));
      with_storage_type(type, [&](auto storage) {
        if constexpr (sizeof(storage) == 2) {
          for (std::int64_t i = 0; i < count; ++i) {
            from_float(floats[i], storage);
            const float want = to_float(storage);
            // The sum of a window is not -0.
            const bool is_same = stored[i] == storage.bits || floats[i] == 0;
            EXPECT_TRUE(std::isnan(want) ? std::isnan(loaded[i]) : is_same && loaded[i] == want)
                << target << " " << floats[i];
          }
        }
      });
    }
  }
  set_cpu_target("");
}

// Two keys, one of which has the logit 0 and a value of 0.
TEST(Exponential, IsAccurateOnEveryTarget) {
  std::vector<float> x = {-INFINITY, -1000.0f, NAN, 0.0f};
  for (float v = -87.0f; v < 80.0f; v += 0.0137f) x.push_back(v);
  Problem p;
  p.rank = p.heads = p.kv_heads = p.head_dim = p.value_dim = 1;
  p.batch = static_cast<std::int64_t>(x.size());
  p.scale = 1;
  p.axes.fill(Axis{1, 1, 1, 1, 1, false});
  p.axes[2] = {2, 2, 1, 1, 1, false};
  std::vector<float> key(2 * x.size(), 0.0f), value(key), query(key.size(), 1.0f), out(key.size()), lse(key.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    key[2 * i] = x[i];
    value[2 * i] = 1;
  }
  const auto tensor = [](std::vector<float>& values) {
    return Tensor{values.data(), {2, 2, 2, 1, 1}, FloatType::float32};
  };
  for (const std::string& target : cpu_targets()) {
    set_cpu_target(target);
    attention_forward({p, tensor(query), tensor(key), tensor(value)}, tensor(out), lse.data());
    EXPECT_EQ(out[0], 0.0f);
    EXPECT_EQ(out[2], 0.0f);
    EXPECT_TRUE(std::isnan(out[4]));
    EXPECT_EQ(out[6], 0.5f);
    for (std::size_t i = 4; i < x.size(); ++i) {
      const double want = 1 / (1 + std::exp(-static_cast<double>(x[i])));
      // The logit times log2(e) is rounded.
      EXPECT_NEAR(out[2 * i] / want, 1.0, 4e-7 + 1e-7 * std::abs(x[i])) << target << " " << x[i];
    }
  }
  set_cpu_target("");
}

}  // namespace
}  // namespace natten::cpu

// Random problems with every feature, small enough for the brute-force reference.
#pragma once

#include <string>

#include "test_tensor.h"

namespace natten::cpu::testing {

struct Limits {
  std::int64_t pairs = 60000;  ///< heads * queries * keys per query * channels, per sample, about
  std::int64_t longest = 40;   ///< axis
  std::int64_t widest = 70;    ///< head dimension
};

inline FloatType random_type(Random& random) {
  const std::int64_t choice = pick(random, 0, 3);
  return choice == 0 ? FloatType::float16 : choice == 1 ? FloatType::bfloat16 : FloatType::float32;
}

inline std::int64_t random_dim(Random& random, std::int64_t widest) {
  static constexpr std::int64_t kDims[] = {1,  2,  3,  4,  7,  8,  15,  16,  17,  31,
                                           32, 33, 48, 64, 65, 96, 127, 128, 129, 257};
  std::int64_t dim;
  do dim = kDims[pick(random, 0, std::size(kDims) - 1)];
  while (dim > widest);
  return dim;
}

inline Axis random_axis(Random& random, std::int64_t longest) {
  Axis axis{};
  axis.length = pick(random, 1, longest);
  axis.kernel_size = chance(random, 0.15) ? axis.length : pick(random, 1, std::min<std::int64_t>(axis.length, 17));
  axis.dilation = chance(random, 0.4) ? pick(random, 1, axis.length / axis.kernel_size) : 1;
  axis.stride = axis.gna_stride = 1;
  if (chance(random, 0.3)) (chance(random, 0.5) ? axis.stride : axis.gna_stride) = pick(random, 1, axis.kernel_size);
  axis.is_causal = chance(random, 0.3);
  return axis;
}

inline Problem random_problem(Random& random, const Limits& limits) {
  for (;;) {
    Problem p;
    p.rank = static_cast<int>(pick(random, 1, 3));
    p.batch = chance(random, 0.03) ? 0 : pick(random, 1, 2);
    p.kv_heads = pick(random, 1, 3);
    p.heads = p.kv_heads * (chance(random, 0.6) ? 1 : pick(random, 1, 3));
    p.head_dim = random_dim(random, limits.widest);
    p.value_dim = chance(random, 0.5) ? p.head_dim : random_dim(random, limits.widest);
    p.axes.fill(Axis{1, 1, 1, 1, 1, false});
    const std::int64_t longest = p.rank == 1 ? limits.longest : p.rank == 2 ? limits.longest / 2 : limits.longest / 4;
    for (int a = kAxes - p.rank; a < kAxes; ++a) p.axes[a] = random_axis(random, longest);
    p.scale = chance(random, 0.5) ? 1.0 / std::sqrt(static_cast<double>(p.head_dim)) : 0.37;
    p.query_type = random_type(random);
    p.key_type = chance(random, 0.7) ? p.query_type : random_type(random);
    p.value_type = chance(random, 0.7) ? p.key_type : random_type(random);
    p.has_rpb = chance(random, 0.3);
    p.has_lengths = chance(random, 0.3);
    if (p.heads * p.queries() * p.kernel_volume() * (p.head_dim + p.value_dim) <= limits.pairs) return p;
  }
}

inline std::vector<std::int32_t> random_lengths(Random& random, const Problem& p) {
  std::vector<std::int32_t> lengths;
  for (std::int64_t b = 0; b < p.batch; ++b) {
    for (const Axis& axis : p.axes) {
      const std::int64_t least = axis.is_causal ? 1 : axis.kernel_size * axis.dilation;
      std::int64_t length = pick(random, least, axis.length);
      if (chance(random, 0.05)) length = chance(random, 0.5) ? least - 1 : axis.length + 1;
      if (chance(random, 0.02)) length = chance(random, 0.5) ? -3 : 0x7fffffff;
      lengths.push_back(static_cast<std::int32_t>(length));
    }
  }
  return lengths;
}

inline std::string describe(const Problem& p) {
  static constexpr const char* kTypes[] = {"f16", "bf16", "f32", "f64"};
  std::string text = "rank " + std::to_string(p.rank) + " B " + std::to_string(p.batch) + " heads " +
                     std::to_string(p.heads) + "/" + std::to_string(p.kv_heads) + " D " + std::to_string(p.head_dim) +
                     "/" + std::to_string(p.value_dim) + " types " + kTypes[static_cast<int>(p.query_type)] + " " +
                     kTypes[static_cast<int>(p.key_type)] + " " + kTypes[static_cast<int>(p.value_type)] +
                     (p.has_rpb ? " rpb" : "") + (p.has_lengths ? " lengths" : "");
  for (const Axis& a : p.axes) {
    text += " | L " + std::to_string(a.length) + " K " + std::to_string(a.kernel_size) + " s " +
            std::to_string(a.stride) + " d " + std::to_string(a.dilation) + " u " + std::to_string(a.gna_stride) +
            (a.is_causal ? " causal" : "");
  }
  return text;
}

}  // namespace natten::cpu::testing

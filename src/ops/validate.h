// Every rule on the arguments of a call, checked before any graph node exists. Errors: std::invalid_argument,
// "[function] what was expected, what was given".
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "definition/problem.h"
#include "graph/dtype.h"
#include "mlx/array.h"
#include "mlx/device.h"
#include "natten/attention.h"
#include "natten/neighborhood.h"

namespace natten {

namespace mx = mlx::core;

/// Shape and type of an array, which may not exist (explain).
struct Spec {
  Spec(const mx::array& a) : shape(a.shape()), dtype(a.dtype()) {}
  Spec(const mx::Shape& s, mx::Dtype t) : shape(s), dtype(t) {}
  const mx::Shape& shape;
  mx::Dtype dtype;
};

/// The function whose arguments are checked, as errors name it.
struct Caller {
  std::string name;  ///< na2d, na1d_varlen, na3d_qk, ...
  int rank;
  std::string lengths_name = "lengths";
};

[[noreturn]] void fail(const Caller& caller, const std::string& message);

/// A floating type that the device has.
void validate_float(const Caller& caller, const char* name, mx::Dtype dtype, mx::Device device);
void validate_scale(const Caller& caller, const char* name, double scale);

/// What can be checked of a neighborhood without an array.
void validate_neighborhood(const Caller& caller, const Neighborhood& neighborhood);

Problem validate_attention(const Caller& caller, Spec query, Spec key, Spec value, const Neighborhood& neighborhood,
                           const std::optional<Scale>& scale, const std::optional<Spec>& rpb,
                           const std::optional<Spec>& lengths, mx::Device device);
Problem validate_qk(const Caller& caller, Spec query, Spec key, const Neighborhood& neighborhood,
                    const std::optional<Scale>& scale, const std::optional<Spec>& rpb,
                    const std::optional<Spec>& lengths, mx::Device device);
Problem validate_av(const Caller& caller, Spec attn, Spec value, const Neighborhood& neighborhood,
                    const std::optional<Spec>& lengths, mx::Device device);

/// Additional keys [B, N, Hkv, D] and values [B, N, Hkv, Dv]: both or neither.
void validate_additional(const Caller& caller, const Problem& problem, const std::optional<Spec>& keys,
                         const std::optional<Spec>& values);

/// Checks K*d <= L_b <= L where `lengths` does not depend on a tracer; evaluates it for that.
void validate_length_values(const Caller& caller, const Problem& problem, const mx::array& lengths);

void validate_merge(const std::vector<mx::array>& outputs, const std::vector<mx::array>& lse_tensors);

}  // namespace natten

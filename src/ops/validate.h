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
#include "natten/tiers.h"

namespace natten {

namespace mx = mlx::core;

/// Shape and type of an array, which may not exist (explain).
struct Spec {
  Spec(const mx::array& a) : shape(a.shape()), dtype(a.dtype()) {}
  Spec(const ArrayDescription& a) : shape(a.shape), dtype(a.dtype) {}
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

/// query, key, value or attn by itself.
void validate_input(const Caller& caller, const char* name, Spec spec, mx::Device device);

/// What can be checked of a neighborhood without an array.
void validate_neighborhood(const Caller& caller, const Neighborhood& neighborhood);

/// Where the rows of the arrays lie on the whole axes: the span of an Options.
struct Placement {
  const PerAxis<std::int64_t>& query_start;
  const PerAxis<std::int64_t>& key_start;
  const std::optional<PerAxis<std::int64_t>>& shape;
};

/// What validation reads of a call's options, as far as the operation has them; as long as these exist.
struct Given {
  Placement placement;
  mx::Device device;
  std::optional<Spec> lengths = {}, rpb = {};
  std::optional<Scale> scale = {};
};
template <class Options>
Given given_of(const Options& options, mx::Device device) {
  Given given{{options.query_start, options.key_start, options.shape}, device, options.lengths};
  if constexpr (requires { options.scale; }) given.scale = options.scale;
  if constexpr (requires { options.rpb; }) {
    if (options.rpb) given.rpb.emplace(*options.rpb);
  }
  return given;
}

/// A value for every axis, or for each of them: any, or from 1 to 2^60.
void validate_count(const Caller& caller, const char* name, const PerAxis<std::int64_t>& values);
void validate_lengths(const Caller& caller, const char* name, const PerAxis<std::int64_t>& values);
/// The axis `axis` of a valid neighborhood on `length` tokens.
Axis validate_axis(const Caller& caller, int axis, std::int64_t length, const Neighborhood& neighborhood);
/// Positions [start, start + rows) of an axis, as which `what` are queries or keys.
void validate_positions(const Caller& caller, const char* what, int axis, std::int64_t start, std::int64_t rows,
                        std::int64_t length);

Problem validate_attention(const Caller& caller, Spec query, Spec key, Spec value, const Neighborhood& neighborhood,
                           const Given& given);
Problem validate_qk(const Caller& caller, Spec query, Spec key, const Neighborhood& neighborhood, const Given& given);
/// With `additional` slots behind those of the window.
Problem validate_av(const Caller& caller, Spec attn, Spec value, const Neighborhood& neighborhood, const Given& given,
                    std::int64_t additional = 0);

/// Additional keys [B or 1, N, Hkv, D] and values [B or 1, N, Hkv, Dv]: both or neither. -> N
std::int64_t validate_additional(const Caller& caller, const Problem& problem, const std::optional<Spec>& keys,
                                 const std::optional<Spec>& values);

/// One of them, for the split form. -> N
std::int64_t validate_additional_keys(const Caller& caller, const Problem& problem, const std::optional<Spec>& keys);
std::int64_t validate_additional_values(const Caller& caller, const Problem& problem,
                                        const std::optional<Spec>& values);

/// Checks that every axis may have the length of each sample and that the keys of its windows are there. Evaluates
/// `lengths` for that; where it depends on a tracer, checks the keys of the whole axes' windows instead.
void validate_length_values(const Caller& caller, const Problem& problem, const mx::array& lengths);

void validate_merge(const std::vector<mx::array>& outputs, const std::vector<mx::array>& lse_tensors);

}  // namespace natten

// What planners share. One for each engine; plan.cpp asks them in order of preference.
#pragma once

#include <functional>

#include "fast/plan.h"

namespace natten::fast {

constexpr int kKilobyte = 1024;
constexpr std::int64_t kLongWindow = 1000;  ///< keys: from there on the main loop, and what it loads, is what counts

/// The plan of a kernel that has a body for the engine, made of `plan`, which has streams and run axis; nothing where
/// the engine does not suit the problem.
std::optional<Plan> plan_simt(const Problem& p, const KernelRow& kernel, Target target, Plan plan);
std::optional<Plan> plan_warpgroup(const Problem& p, const KernelRow& kernel, Target target, Plan plan);
std::optional<Plan> plan_decode(const Problem& p, const KernelRow& kernel, Target target, Plan plan);
std::optional<Plan> plan_matrix(const Problem& p, const KernelRow& kernel, Target target, Plan plan);

inline int ceil_div64(std::int64_t a, std::int64_t b) {
  return static_cast<int>((a + b - 1) / b);
}

/// Positions that a tile of `extent` on the axis meets, at most.
std::int64_t reach(const Problem& p, int axis, int extent, bool keys);
std::int64_t tiles_on(const Problem& p, int axis, int extent, bool keys);

/// Whether the queries that stream past lie at even distances, as bias_offset() takes them (bodies/matrix_bias.h): not
/// at the seam of a circular axis where a stride or a span leaves some out.
bool has_even_queries(const Problem& p);
/// Of each simdgroup's 16 queries the gradients of a bias table, and a block of logit gradients with 8 spare columns.
void reserve_bias_sums(const Problem& p, Plan& plan);

/// Rows of threadgroup memory, once lanes and vectors are known.
void finish_streams(const KernelRow& kernel, Plan& plan);

/// The box, of as many positions as the threads hold, that costs least; and whatever else the cost has chosen with it.
void choose_extent(const Problem& p, const KernelRow& kernel,
                   const std::function<double(const Problem&, const KernelRow&, Plan&)>& cost_of, Plan& plan);

void override_from_environment(Plan& plan);
/// A number of NATTEN_FAST_TILE that concerns more than one plan; -1 where it is not there.
int override_of(const std::string& name);
[[noreturn]] void refuse(const Plan& plan);

}  // namespace natten::fast

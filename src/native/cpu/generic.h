// Kernels that are right for every problem: one query (or one key) at a time, vectorised along the channels. The fast
// paths hand them what they decline. Entry points and their contracts: kernels.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "native/cpu/axis_run.h"
#include "native/cpu/bias_gradient.h"
#include "native/cpu/kernels.h"
#include "native/cpu/sample.h"
#include "native/cpu/tensor.h"
#include "native/cpu/thread_pool.h"
#include "native/cpu/tuning.h"

namespace natten::cpu::generic {

void attention_forward(const AttentionInputs& inputs, const Tensor& out, float* lse);
void attention_backward_query(const AttentionInputs& inputs, const SavedForward& saved, const Tensor& dq, float* drpb);
void attention_backward_key_value(const AttentionInputs& inputs, const SavedForward& saved, const Tensor& dk,
                                  const Tensor& dv);
void qk(const AttentionInputs& inputs, const Tensor& logits);
void qk_backward_query(const AttentionInputs& inputs, const Tensor& dlogits, const Tensor& dq, float* drpb);
void qk_backward_key(const AttentionInputs& inputs, const Tensor& dlogits, const Tensor& dk);
void av(const AttentionInputs& inputs, const Tensor& attn, const Tensor& out);
void av_backward_attn(const AttentionInputs& inputs, const Tensor& dout, const Tensor& dattn);
void av_backward_value(const AttentionInputs& inputs, const Tensor& attn, const Tensor& dout, const Tensor& dv);

/// A run of consecutive positions of a grid, and one head: the work item of these kernels.
struct Item {
  std::int64_t head;
  std::int64_t part;  ///< number of this run among those of its head
  std::int64_t begin, end;
};

/// Number of runs of `length` positions.
inline std::int64_t parts_of(const Grid& grid, std::int64_t length) {
  return (grid.size() + length - 1) / length;
}

/// Calls body(item) for all heads and runs of the grid, in parallel.
template <class Body>
void for_each_item(const Grid& grid, std::int64_t heads, std::int64_t length, double flops, Body&& body) {
  const std::int64_t parts = parts_of(grid, length);
  parallel_for(heads * parts, flops, [&](std::int64_t index) {
    const std::int64_t part = index / heads;  // heads inside: they share cache lines
    body(Item{index % heads, part, part * length, std::min((part + 1) * length, grid.size())});
  });
}

/// Calls visit(sample, batch, place, flat index) for the positions of an item.
template <class Visit>
void for_each_position(const Problem& problem, const std::int32_t* lengths, const Grid& grid, const Item& item,
                       Visit&& visit) {
  const std::int64_t per_sample = grid.per_sample();
  for (std::int64_t flat = item.begin; flat < item.end;) {
    const std::int64_t batch = flat / per_sample;
    const Sample sample = sample_of(problem, lengths, batch);
    for (const std::int64_t end = std::min(item.end, (batch + 1) * per_sample); flat < end; ++flat) {
      visit(sample, batch, grid.place(flat - batch * per_sample), flat);
    }
  }
}

/// Whether the query in a row of the results exists in this sample.
inline bool has_query(const Sample& sample, const Place& output) {
  bool inside = sample.is_legal;
  for (int a = 0; a < kAxes; ++a) {
    const Axis& axis = sample.axes[a];
    inside &= (first_query(axis, sample.spans[a]) + output[a]) * axis.stride < axis.length;
  }
  return inside;
}

/// Whether the key in a row exists in this sample.
inline bool has_key(const Sample& sample, const Place& row) {
  bool inside = sample.is_legal;
  for (int a = 0; a < kAxes; ++a) inside &= sample.spans[a].key_start + row[a] < sample.axes[a].length;
  return inside;
}

/// Row of query of a row of the results.
inline Place query_row(const Problem& p, const Place& output) {
  Place row;
  for (int a = 0; a < kAxes; ++a) {
    const AxisSpan span = p.span(a);
    row[a] = (first_query(p.axes[a], span) + output[a]) * p.axes[a].stride - span.query_start;
  }
  return row;
}

/// Whether the query in a row is computed at all.
inline bool is_query(const Problem& p, const Place& row) {
  bool is_computed = true;
  for (int a = 0; a < kAxes; ++a) is_computed &= (p.span(a).query_start + row[a]) % p.axes[a].stride == 0;
  return is_computed;
}

/// Row of the results of a row of query that is computed.
inline Place output_of(const Problem& p, const Place& row) {
  Place output;
  for (int a = 0; a < kAxes; ++a) {
    const AxisSpan span = p.span(a);
    output[a] = (span.query_start + row[a]) / p.axes[a].stride - first_query(p.axes[a], span);
  }
  return output;
}

/// The window of a query, or the inverse window of a key: the product of one run per axis.
struct Window {
  AxisRun axis[kAxes];

  std::int64_t size() const { return axis[0].count * axis[1].count * axis[2].count; }

  /// Calls visit(place of the first element, t0, t1) for every row, a run along the last axis.
  template <class Visit>
  void for_each_row(Visit&& visit) const {
    for (std::int64_t t0 = 0; t0 < axis[0].count; ++t0) {
      for (std::int64_t t1 = 0; t1 < axis[1].count; ++t1) {
        visit(Place{axis[0].first + t0 * axis[0].step, axis[1].first + t1 * axis[1].step, axis[2].first}, t0, t1);
      }
    }
  }

  /// Slot of the first element of row (t0, t1) in the row-major kernel.
  std::int64_t slot(const Problem& p, std::int64_t t0, std::int64_t t1) const {
    return ((axis[0].slot + t0) * p.axes[1].kernel_size + axis[1].slot + t1) * p.axes[2].kernel_size + axis[2].slot;
  }

  /// Entry of the first element of row (t0, t1) in one head's table of position biases.
  std::int64_t bias(const Problem& p, std::int64_t t0, std::int64_t t1) const {
    const std::int64_t row = (axis[0].bias + t0 * axis[0].bias_step) * (2 * p.axes[1].kernel_size - 1) + axis[1].bias +
                             t1 * axis[1].bias_step;
    return row * (2 * p.axes[2].kernel_size - 1) + axis[2].bias;
  }
};

inline Window keys_of(const Sample& sample, const Place& output) {
  const auto run = [&](int a) { return keys_of_query(sample.axes[a], sample.spans[a], output[a]); };
  return {{run(0), run(1), run(2)}};
}

inline Window queries_of(const Sample& sample, const Place& row) {
  const auto run = [&](int a) { return queries_of_key(sample.axes[a], sample.spans[a], row[a]); };
  return {{run(0), run(1), run(2)}};
}

/// Entries of one head's table of position biases.
inline std::int64_t bias_entries(const Problem& p) {
  std::int64_t entries = 1;
  for (const Axis& axis : p.axes) entries *= 2 * axis.kernel_size - 1;
  return entries;
}

/// The gradient of the position bias, cleared.
inline BiasGradient bias_gradient_of(const Problem& p, float* drpb) {
  if (drpb != nullptr) std::fill_n(drpb, p.heads * bias_entries(p), 0.0f);
  return BiasGradient(drpb, p.heads, bias_entries(p), tuning::kBiasGradientParts / p.heads);
}

/// Positions of a work item: one part of the gradient of the position bias, when that is wanted.
inline std::int64_t run_length(const Grid& grid, const BiasGradient& gradient, const float* drpb) {
  if (drpb == nullptr) return tuning::kGenericItem;
  return std::max<std::int64_t>(tuning::kGenericItem, (grid.size() + gradient.parts() - 1) / gradient.parts());
}

/// Whether a query has no logit but -inf: its output and its gradients are zero.
inline bool is_empty_lse(float lse) {
  return lse == -std::numeric_limits<float>::infinity();
}

/// Multiplications and additions of one product of every query with every channel of every key of its window.
inline double pair_flops(const Problem& p, std::int64_t dim) {
  return 2.0 * static_cast<double>(p.batch * p.heads * p.queries()) * static_cast<double>(p.kernel_volume() * dim);
}

}  // namespace natten::cpu::generic

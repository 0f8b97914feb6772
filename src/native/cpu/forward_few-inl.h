// The "few queries" forward kernel, for steps of decoding: a few queries that attend long windows along one axis, where
// memory binds. Keys and values are read in place, all heads of a token before the next ones, each once for all query
// heads that share it. Lanes are channels while queries meet keys, then keys in the softmax, then channels again for
// the values. Threads share the keys: the sums of segments of them are joined in their order. Included once
// per SIMD target.
#if defined(NATTEN_NATIVE_CPU_FORWARD_FEW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_FORWARD_FEW_INL_H_
#undef NATTEN_NATIVE_CPU_FORWARD_FEW_INL_H_
#else
#define NATTEN_NATIVE_CPU_FORWARD_FEW_INL_H_
#endif

#include <algorithm>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "hwy/highway.h"
#include "native/cpu/forward_task-inl.h"
#include "native/cpu/scratch.h"
#include "native/cpu/tile_direct-inl.h"
#include "native/cpu/tile_few-inl.h"
#include "native/cpu/tile_rows-inl.h"
#include "native/cpu/tile_softmax-inl.h"
#include "native/cpu/tuning.h"

HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {

class FewQueries : ForwardTask {
 public:
  FewQueries(const Pass& pass, const Task& task)
      : ForwardTask(pass, task), rows_(size_of(region_.part[2].queries) * heads_) {}

  /// The sums of one segment of the keys, into `segment_sums` or, where it is the only one, into the results. The last
  /// segment is that of extra tokens, where there are any.
  void run(std::int64_t segment, std::int64_t segments, float* segment_sums) {
    if (region_.is_empty()) return;
    is_extra_ = has_extra() && segment + 1 == segments;
    const std::int64_t all_rows = rows_ * p_.kv_heads;
    const Scratch memory([&](Scratch& scratch) {
      queries_ = scratch.take<float>(all_rows * pitch_);
      scores_ = scratch.take<float>(all_rows * kBlock);
      partial_ = scratch.take<float>(kFewRows * kLanes * kLanes);
      buffer_ = scratch.take<float>(kLanes * std::max(pitch_, value_pitch_));
      if (segments == 1) segment_sums = scratch.take<float>(forward::few_sums_size(p_));
    });
    const FewSums sums(segment_sums, all_rows, value_pitch_);
    sums.clear();
    load_queries();
    const Span keys = is_extra_ ? Span{0, pass_.extra.count()} : region_.part[2].keys;
    const Span part = is_extra_ ? keys : part_of(size_of(keys), segments - (has_extra() ? 1 : 0), segment);
    const std::int64_t end = keys.start + part.end;
    for (std::int64_t k = keys.start + part.start; k < end; k += kBlock) {
      add_block({k, std::min(k + kBlock, end)}, keys.end, sums);
    }
    if (segments == 1) store(sums, 1);
  }

  /// The results, from the sums of all segments.
  void join(std::int64_t segments, float* segment_sums) const {
    if (!region_.is_empty()) store(FewSums(segment_sums, rows_ * p_.kv_heads, value_pitch_), segments);
  }

 private:
  static constexpr std::int64_t kBlock = tuning::kFewBlock;

  bool has_extra() const { return pass_.extra.count() > 0; }

  // A task has one place of the outer axes.
  std::int64_t q0() const { return region_.part[0].queries.start; }
  std::int64_t q1() const { return region_.part[1].queries.start; }

  // Rows of a key head: all query heads of its first query, then of the next.
  const AxisGroup::Query& query_of(std::int64_t row) const {
    return region_.group[2]->queries[region_.part[2].queries.start + row / heads_];
  }
  std::int64_t head_of(std::int64_t kv_head, std::int64_t row) const { return kv_head * heads_ + row % heads_; }

  void load_queries() const {
    for_each_row([&](std::int64_t kv_head, std::int64_t row, std::int64_t index) {
      float* to = queries_ + index * pitch_;
      load_rows(region_.query_rows(pass_.inputs.query, head_of(kv_head, row), q0(), q1(),
                                   region_.part[2].queries.start + row / heads_),
                1, p_.head_dim, to, pitch_);
      scale_row(to, pitch_, static_cast<float>(p_.scale) * kLog2E);
      if (comes_in_pairs(p_.key_type, p_.head_dim)) pair_channels(to, p_.head_dim);
    });
  }

  /// Calls visit(key head, row of it, number among all rows).
  template <class Visit>
  void for_each_row(Visit&& visit) const {
    for (std::int64_t kv_head = 0; kv_head < p_.kv_heads; ++kv_head) {
      for (std::int64_t row = 0; row < rows_; ++row) visit(kv_head, row, kv_head * rows_ + row);
    }
  }

  /// Calls visit(key head, first key, keys, their rows) with whole vectors of channels: kLanes keys of all heads, which
  /// lie side by side, then the next ones, up to `keys.end`. Rows from there to `last` come soon,
  /// here or in the next segment.
  template <class Visit>
  HWY_INLINE void for_each_piece_of_keys(const Tensor& tensor, std::int64_t dim, const Span& keys, std::int64_t last,
                                         Visit&& visit) const {
    const std::int64_t k0 = region_.group[0]->queries[q0()].keys.start, k1 = region_.group[1]->queries[q1()].keys.start;
    const auto rows_of = [&](std::int64_t kv_head, std::int64_t k) {
      if (is_extra_) {
        return TensorRows{row_of(tensor, region_.task.plan->batch, {0, 0, k}, kv_head), tensor.strides[3], tensor.type};
      }
      return region_.key_rows(tensor, kv_head, k0, k1, k);
    };
    for (std::int64_t k = keys.start; k < keys.end; k += kLanes) {
      const std::int64_t count = std::min<std::int64_t>(kLanes, keys.end - k);
      const TensorRows rows = rows_of(0, k).run(count);
      if (dim % kLanes != 0 || !rows.is_run()) {
        const std::int64_t pitch = round_up(dim, kLanes);
        for (std::int64_t kv_head = 0; kv_head < p_.kv_heads; ++kv_head) {
          load_rows(rows_of(kv_head, k), count, dim, buffer_, pitch);
          if (comes_in_pairs(tensor.type, dim)) pair_channels(buffer_, count * dim);
          visit(kv_head, k, count, FewRows<float>{buffer_, pitch, 0});
        }
        continue;
      }
      const std::int64_t step = p_.kv_heads > 1 ? rows_of(1, k).data - rows.data : 0;
      with_storage_type(rows.type, [&](auto storage) {
        using T = decltype(storage);
        const std::int64_t ahead = k + 2 * kLanes <= last ? kLanes * rows.stride : 0;
        const char* data = rows.data;
        for (std::int64_t kv_head = 0; kv_head < p_.kv_heads; ++kv_head, data += step) {
          visit(kv_head, k, count, FewRows<T>{reinterpret_cast<const T*>(data), rows.stride, ahead});
        }
      });
    }
  }

  void add_block(const Span& keys, std::int64_t last, const FewSums& sums) const {
    const AttentionInputs& inputs = pass_.inputs;
    for_each_piece_of_keys(is_extra_ ? inputs.extra_key : inputs.key, p_.head_dim, keys, last,
                           [&](std::int64_t kv_head, std::int64_t k, std::int64_t count, const auto& rows) {
                             const float* queries = queries_ + kv_head * rows_ * pitch_;
                             float* scores = scores_ + kv_head * rows_ * kBlock + (k - keys.start);
                             multiply_few(rows, count, queries, pitch_, rows_, partial_, scores, kBlock);
                           });
    for_each_row([&](std::int64_t kv_head, std::int64_t row, std::int64_t index) {
      float* scores = scores_ + index * kBlock;
      const Span window = window_of(row, keys);
      if (inputs.rpb != nullptr && !is_extra_) add_bias(head_of(kv_head, row), query_of(row), keys, window, scores);
      std::fill_n(scores, window.start - keys.start, -std::numeric_limits<float>::infinity());
      const std::int64_t end = round_up(size_of(keys), kLanes);
      std::fill_n(scores + (window.end - keys.start), end - (window.end - keys.start),
                  -std::numeric_limits<float>::infinity());
      sums.weigh(index, scores, end);
    });
    for_each_piece_of_keys(is_extra_ ? inputs.extra_value : inputs.value, p_.value_dim, keys, last,
                           [&](std::int64_t kv_head, std::int64_t k, std::int64_t count, const auto& rows) {
                             add_values(kv_head, {k, k + count}, keys.start, rows, sums);
                           });
  }

  /// Of a row, among some keys; perhaps empty, at their start or end.
  Span window_of(std::int64_t row, const Span& keys) const {
    if (is_extra_) return keys;
    const Span& window = query_of(row).keys;
    const std::int64_t start = std::clamp(window.start, keys.start, keys.end);
    return {start, std::clamp(window.end, start, keys.end)};
  }

  void add_bias(std::int64_t head, const AxisGroup::Query& query, const Span& keys, const Span& window,
                float* scores) const {
    const float* bias = bias_of(head, q0(), q1()) + rpb_index(axes_[2], query.place, window.start);
    float* score = scores + (window.start - keys.start);
    for (std::int64_t k = 0; k < size_of(window); ++k) score[k] += kLog2E * bias[k];
  }

  /// Rows whose windows all hold a key share its load; the others take theirs one by one: a weight of 0 would not hide
  /// an infinite value.
  template <class T>
  void add_values(std::int64_t kv_head, const Span& keys, std::int64_t block, const FewRows<T>& values,
                  const FewSums& sums) const {
    for (std::int64_t row = 0; row < rows_; row += kFewRows) {
      const int count = static_cast<int>(std::min<std::int64_t>(kFewRows, rows_ - row));
      const std::int64_t index = kv_head * rows_ + row;
      const auto add = [&](int first, int rows, const Span& some) {
        const float* weights = scores_ + (index + first) * kBlock + (some.start - block);
        add_few_values(values.from(some.start - keys.start), size_of(some), weights, kBlock, rows,
                       sums.of(index + first), value_pitch_);
      };
      // Neither end of the window moves back from one row to the next.
      const Span first = window_of(row, keys), last = window_of(row + count - 1, keys);
      if (first.start == last.start && first.end == last.end) {
        add(0, count, first);
        continue;
      }
      for (int r = 0; r < count; ++r) add(r, 1, window_of(row + r, keys));
    }
  }

  void store(const FewSums& sums, std::int64_t segments) const {
    for_each_row([&](std::int64_t kv_head, std::int64_t row, std::int64_t index) {
      const Normalizer normalizer = sums.join(index, segments, forward::few_sums_size(p_), has_extra());
      float* out = sums.of(index);
      const float lse = hn::GetLane(normalizer.lse);
      scale_row(out, value_pitch_, hn::GetLane(normalizer.factor));
      if (comes_in_pairs(p_.value_type, p_.value_dim)) unpair_channels(out, p_.value_dim);
      if (normalizer.has_empty) clear_empty_rows(&lse, 1, out, value_pitch_);
      const std::int64_t head = head_of(kv_head, row), query = region_.part[2].queries.start + row / heads_;
      store_rows(out, value_pitch_, 1, p_.value_dim, region_.out_rows(pass_.out, head, q0(), q1(), query));
      region_.for_each_entry(p_, head, q0(), q1(), query, 1, [&](int, std::int64_t entry) { pass_.lse[entry] = lse; });
    });
  }

  const std::int64_t rows_;  ///< of a key head: its query heads, of every query
  bool is_extra_ = false;    ///< the keys at hand are extra tokens

  float *queries_, *scores_, *partial_, *buffer_;
};

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // NATTEN_NATIVE_CPU_FORWARD_FEW_INL_H_

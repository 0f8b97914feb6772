// One problem with its data, run through every entry point and compared with the reference.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <optional>

#include "native/cpu/forward_plan.h"
#include "native/cpu/matrix_plan.h"
#include "native/cpu/thread_pool.h"
#include "random_problem.h"

namespace natten::cpu::testing {

/// Relative to the largest value, plus one unit in the last place of a half result.
inline void expect_close(const char* what, const Values& got, const Values& want, FloatType type, double tolerance) {
  ASSERT_EQ(got.size(), want.size());
  double largest = 0;
  for (double x : want) largest = std::isfinite(x) ? std::max(largest, std::abs(x)) : largest;
  const double ulp = type == FloatType::float16 ? 0x1p-11 : type == FloatType::bfloat16 ? 0x1p-8 : 0;
  // Inputs are of order 1; a gradient that cancels to nothing keeps the error of its terms.
  const double allowed = (tolerance + ulp) * largest + 0.3 * tolerance;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const bool is_close = std::isfinite(want[i]) ? std::abs(got[i] - want[i]) <= allowed : got[i] == want[i];
    ASSERT_TRUE(is_close) << what << "[" << i << "] = " << got[i] << ", expected " << want[i] << " +- " << allowed;
  }
}

class KernelCase {
 public:
  using Layout = TestTensor::Layout;

  /// Every strided tensor gets `layout`, where none is given a random one.
  KernelCase(Random& random, const Problem& problem, std::optional<Layout> layout = {})
      : random_(random), p_(problem), layout_(layout) {
    const auto& x = p_.axes;
    const std::int64_t B = p_.batch, L0 = x[0].length, L1 = x[1].length, L2 = x[2].length;
    for (int a = 0; a < kAxes; ++a) out_[a] = output_length(x[a].length, x[a].stride);
    const std::int64_t tables[3] = {2 * x[0].kernel_size - 1, 2 * x[1].kernel_size - 1, 2 * x[2].kernel_size - 1};
    if (p_.has_lengths) arrays_.lengths = random_lengths(random, p_);
    query_ = input({B, L0, L1, L2, p_.heads, p_.head_dim}, p_.query_type, arrays_.query, Padding::query);
    key_ = input({B, L0, L1, L2, p_.kv_heads, p_.head_dim}, p_.key_type, arrays_.key, Padding::token);
    value_ = input({B, L0, L1, L2, p_.kv_heads, p_.value_dim}, p_.value_type, arrays_.value, Padding::token);
    if (p_.has_rpb) rpb_ = input({1, p_.heads, tables[0], tables[1], tables[2], 1}, arrays_.rpb);
    lengths_.emplace(arrays_.lengths.size() * sizeof(std::int32_t), true);
    if (lengths_->bytes() > 0) std::memcpy(lengths_->data(), arrays_.lengths.data(), lengths_->bytes());
    reference_.emplace(p_, arrays_);
  }

  AttentionInputs inputs() const {
    AttentionInputs inputs{p_,
                           query_->tensor(),
                           key_->tensor(),
                           value_->tensor(),
                           p_.has_rpb ? rpb_->floats() : nullptr,
                           p_.has_lengths ? reinterpret_cast<const std::int32_t*>(lengths_->data()) : nullptr};
    if (p_.extra_tokens > 0) {
      inputs.extra_key = extra_key_->tensor();
      inputs.extra_value = extra_value_->tensor();
    }
    return inputs;
  }

  /// Tokens that every query attends besides its window.
  void add_tokens(std::int64_t count, bool is_shared) {
    p_.extra_tokens = count;
    const std::optional<Layout> layout = layout_;
    if (is_shared) layout_ = Layout::shared;
    extra_key_ = input(extra_shape(p_.head_dim), p_.key_type, arrays_.extra_key, Padding::none);
    extra_value_ = input(extra_shape(p_.value_dim), p_.value_type, arrays_.extra_value, Padding::none);
    layout_ = layout;
  }

  void run_forward() {
    const Shape lse_shape = {p_.batch, out_[0], out_[1], out_[2], p_.heads, 1};
    auto out = output(row_shape(p_.value_dim), p_.query_type), lse = dense_output(lse_shape);
    check_forward(out, lse);
  }

  /// Hides many pairs by a position bias of -inf, in some heads all of them: queries without a finite logit.
  void hide_pairs() {
    Values values = arrays_.rpb;
    const std::size_t entries = values.size() / p_.heads;
    for (std::int64_t head = 0; head < p_.heads; ++head) {
      const double share = chance(random_, 0.3) ? 1 : 0.8;
      for (std::size_t i = head * entries; i < (head + 1) * entries; ++i) {
        if (chance(random_, share)) values[i] = -std::numeric_limits<double>::infinity();
      }
    }
    rpb_->set(values);
    arrays_.rpb = values;
  }

  void run_attention_with_hidden_pairs() {
    hide_pairs();
    run_attention();
  }

  void run_attention_with_tokens() {
    static constexpr std::int64_t kCounts[] = {1, 2, 3, 4, 7, 13, 16, 33, 64, 65, 130};
    add_tokens(kCounts[pick(random_, 0, std::size(kCounts) - 1)], chance(random_, 0.5));
    if (p_.has_rpb && chance(random_, 0.3)) hide_pairs();
    run_attention();
  }

  void run_attention() {
    const Shape lse_shape = {p_.batch, out_[0], out_[1], out_[2], p_.heads, 1};
    auto out = output(row_shape(p_.value_dim), p_.query_type), lse = dense_output(lse_shape);
    check_forward(out, lse);
    auto dout = input(row_shape(p_.value_dim), p_.query_type, arrays_.dout, Padding::output);
    const bool has_dlse = chance(random_, 0.5);
    auto dlse = input(lse_shape, arrays_.dlse);
    const SavedForward saved{out->tensor(), lse->floats(), dout->tensor(), has_dlse ? dlse->floats() : nullptr};
    if (!has_dlse) arrays_.dlse.clear();
    auto got_dq = output(query_shape(), p_.query_type), got_drpb = dense_output(rpb_shape());
    auto got_dk = output(key_shape(p_.head_dim), p_.key_type), got_dv = output(key_shape(p_.value_dim), p_.value_type);
    run({&got_dq, &got_drpb}, [&] {
      attention_backward(inputs(), saved, {got_dq->tensor(), p_.has_rpb ? got_drpb->floats() : nullptr});
    });
    run({&got_dk, &got_dv}, [&] {
      attention_backward(inputs(), saved, {{}, nullptr, got_dk->tensor(), got_dv->tensor()});
    });
    arrays_.out = out->get();
    arrays_.lse = lse->get();
    const oracle::Gradients want = reference_->attention_gradients();
    const double tolerance = 1e-4 + rounding(takes_matrix_unit_backward(p_));
    const auto compare_gradients = [&] {
      compare("dq", *got_dq, want.query, tolerance);
      compare("dk", *got_dk, want.key, tolerance);
      compare("dv", *got_dv, want.value, tolerance);
      if (p_.has_rpb) compare("drpb", *got_drpb, want.rpb, 1e-4);
    };
    compare_gradients();
    auto got_dextra_key = output(extra_shape(p_.head_dim), p_.key_type);
    auto got_dextra_value = output(extra_shape(p_.value_dim), p_.value_type);
    run({&got_dq, &got_drpb, &got_dk, &got_dv, &got_dextra_key, &got_dextra_value}, [&] {
      const Tensor dextra[] = {got_dextra_key->tensor(), got_dextra_value->tensor()};
      attention_backward(inputs(), saved,
                         {got_dq->tensor(), p_.has_rpb ? got_drpb->floats() : nullptr, got_dk->tensor(),
                          got_dv->tensor(), p_.extra_tokens > 0 ? dextra : nullptr});
    });
    compare_gradients();
    compare("dextra_key", *got_dextra_key, want.extra_key, 1e-4);
    compare("dextra_value", *got_dextra_value, want.extra_value, 1e-4);
  }

  void run_split() {
    const std::int64_t volume = p_.kernel_volume();
    auto logits = output(row_shape(volume), p_.query_type);
    run({&logits}, [&] { qk(inputs(), logits->tensor()); });
    const Values want = reference_->logits();
    compare("logits", *logits, want, 1e-5);

    // NaN in the empty slots of what the kernels read: no result may hold one.
    auto dlogits = input(row_shape(volume), p_.query_type, arrays_.dlogits, Padding::output, &want);
    auto got_dq = output(query_shape(), p_.query_type), got_dk = output(key_shape(p_.head_dim), p_.key_type);
    auto got_drpb = dense_output(rpb_shape());
    run({&got_dq, &got_drpb}, [&] {
      qk_backward_query(inputs(), dlogits->tensor(), got_dq->tensor(), p_.has_rpb ? got_drpb->floats() : nullptr);
    });
    run({&got_dk}, [&] { qk_backward_key(inputs(), dlogits->tensor(), got_dk->tensor()); });
    const oracle::Gradients of_logits = reference_->logits_gradients();
    compare("qk dq", *got_dq, of_logits.query, 1e-4);
    compare("qk dk", *got_dk, of_logits.key, 1e-4);
    if (p_.has_rpb) compare("qk drpb", *got_drpb, of_logits.rpb, 1e-4);

    auto attn = input(row_shape(volume), p_.query_type, arrays_.attn, Padding::output, &want);
    auto out = output(row_shape(p_.value_dim), p_.query_type);
    run({&out}, [&] { av(inputs(), attn->tensor(), out->tensor()); });
    compare("av", *out, reference_->weighted(), 1e-5);

    auto dout = input(row_shape(p_.value_dim), p_.query_type, arrays_.dout, Padding::output);
    auto got_dattn = output(row_shape(volume), p_.query_type), got_dv = output(key_shape(p_.value_dim), p_.value_type);
    run({&got_dattn}, [&] { av_backward_attn(inputs(), dout->tensor(), got_dattn->tensor()); });
    run({&got_dv}, [&] { av_backward_value(inputs(), attn->tensor(), dout->tensor(), got_dv->tensor()); });
    const oracle::Gradients of_weighted = reference_->weighted_gradients();
    compare("dattn", *got_dattn, of_weighted.attn, 1e-4);
    compare("av dv", *got_dv, of_weighted.value, 1e-4);
  }

 private:
  using TensorPointer = std::unique_ptr<TestTensor>;
  enum class Padding { none, token, query, output };  ///< what the positions of an array are

  Shape row_shape(std::int64_t dim) const { return {p_.batch, out_[0], out_[1], out_[2], p_.heads, dim}; }
  Shape key_shape(std::int64_t dim) const {
    return {p_.batch, p_.axes[0].length, p_.axes[1].length, p_.axes[2].length, p_.kv_heads, dim};
  }
  Shape extra_shape(std::int64_t dim) const { return {p_.batch, 1, 1, p_.extra_tokens, p_.kv_heads, dim}; }
  Shape query_shape() const {
    return {p_.batch, p_.axes[0].length, p_.axes[1].length, p_.axes[2].length, p_.heads, p_.head_dim};
  }
  Shape rpb_shape() const {
    return {1, p_.heads, 2 * p_.axes[0].kernel_size - 1, 2 * p_.axes[1].kernel_size - 1, 2 * p_.axes[2].kernel_size - 1,
            1};
  }

  bool is_padding(Padding kind, std::int64_t batch, const std::int64_t* at) const {
    if (kind == Padding::none) return false;
    for (int a = 0; a < kAxes; ++a) {
      const std::int64_t stride = p_.axes[a].stride;
      if (kind == Padding::query && at[a] % stride != 0) return true;
      const std::int64_t token = kind == Padding::output ? at[a] * stride : at[a];
      if (p_.has_lengths && token >= arrays_.lengths[batch * kAxes + a]) return true;
    }
    return false;
  }

  /// Random values with NaN in the padding and where `logits` has -inf; mostly of moderate size.
  TensorPointer input(const Shape& shape, FloatType type, Values& values, Padding padding,
                      const Values* logits = nullptr) {
    const bool poisoned = chance(random_, 0.8);
    const Layout layout = layout_.value_or(poisoned               ? random_layout()
                                           : chance(random_, 0.5) ? Layout::broadcast
                                                                  : Layout::dense);
    auto tensor = std::make_unique<TestTensor>(random_, shape, type, layout);
    values.clear();
    std::normal_distribution<double> normal;
    for (std::int64_t b = 0; b < shape[0]; ++b) {
      for (std::int64_t i = 0; i < shape[1] * shape[2] * shape[3]; ++i) {
        const std::int64_t at[3] = {i / (shape[2] * shape[3]), i / shape[3] % shape[2], i % shape[3]};
        const bool hidden = poisoned && is_padding(padding, b, at);
        for (std::int64_t c = 0; c < shape[4] * shape[5]; ++c) {
          const bool empty = poisoned && logits != nullptr && std::isinf((*logits)[values.size()]);
          values.push_back(hidden || empty ? std::numeric_limits<double>::quiet_NaN() : normal(random_));
        }
      }
    }
    tensor->set(values);
    return tensor;
  }
  /// A dense float32 array without padding.
  TensorPointer input(const Shape& shape, Values& values) {
    auto tensor = std::make_unique<TestTensor>(random_, shape, FloatType::float32, Layout::dense);
    std::normal_distribution<double> normal;
    values.resize(tensor->get().size());
    for (double& x : values) x = normal(random_);
    tensor->set(values);
    return tensor;
  }
  TensorPointer output(const Shape& shape, FloatType type) {
    return std::make_unique<TestTensor>(random_, shape, type, layout_.value_or(random_layout()));
  }
  TensorPointer dense_output(const Shape& shape) {
    return std::make_unique<TestTensor>(random_, shape, FloatType::float32, Layout::dense);
  }
  Layout random_layout() { return chance(random_, 0.5) ? Layout::dense : Layout::scrambled; }

  /// Matrix units take weights of 8 bits: every term of a sum may be off by half a unit of the last one.
  static double rounding(bool on_matrix_unit) { return on_matrix_unit ? 0x1p-9 : 0; }

  void check_forward(TensorPointer& out, TensorPointer& lse) {
    run({&out, &lse}, [&] { attention_forward(inputs(), out->tensor(), lse->floats()); });
    compare("out", *out, reference_->out(), 1e-5 + rounding(forward::choose_design(p_) == forward::Design::matrix));
    compare("lse", *lse, reference_->lse(), 1e-5);
  }

  /// Runs a kernel with one thread and with several: every bit must be the same.
  void run(std::initializer_list<TensorPointer*> outputs, const std::function<void()>& kernel) {
    std::vector<Values> first;
    for (const int threads : {1, 3}) {
      for (TensorPointer* output : outputs) (*output)->clear();
      set_thread_count(threads);
      kernel();
      set_thread_count(0);
      std::size_t index = 0;
      for (TensorPointer* output : outputs) {
        Values values = (*output)->get();
        if (threads == 1) {
          first.push_back(std::move(values));
        } else {
          EXPECT_TRUE(values.empty() || std::memcmp(values.data(), first[index].data(), 8 * values.size()) == 0)
              << "results depend on the number of threads";
        }
        ++index;
      }
    }
  }

  void compare(const char* what, const TestTensor& got, const Values& want, double tolerance) {
    expect_close(what, got.get(), want, got.tensor().type, tolerance);
    EXPECT_TRUE(got.is_intact()) << what << ": wrote outside of its elements";
  }

  Random& random_;
  Problem p_;
  std::optional<Layout> layout_;
  std::int64_t out_[3];
  oracle::Arrays arrays_;
  std::optional<oracle::Reference> reference_;  ///< of arrays_
  TensorPointer query_, key_, value_, rpb_, extra_key_, extra_value_;
  std::optional<Guarded> lengths_;
};

}  // namespace natten::cpu::testing

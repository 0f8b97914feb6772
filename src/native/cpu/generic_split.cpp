// The six kernels of the split form are three: products of a query's row with the rows of its window, sums of a
// window's rows weighted by slot, and the transpose of that sum, gathered key by key.
#include <limits>

#include "native/cpu/generic.h"
#include "native/cpu/row_ops.h"
#include "native/cpu/scratch.h"
#include "native/cpu/tuning.h"

namespace natten::cpu::generic {
namespace {

/// slots[output, slot] = scale * x . rows[key in slot] + rpb; `empty` in slots without a key. x stands at the query's
/// token when `x_at_tokens`, else at its output position.
void window_products(const AttentionInputs& inputs, const Tensor& x, bool x_at_tokens, const Tensor& rows,
                     std::int64_t dim, float scale, float empty, const Tensor& slots) {
  const Problem& p = inputs.problem;
  const Grid grid = output_grid(p);
  const RowOps x_ops = row_ops(x.type), rows_ops = row_ops(rows.type), slots_ops = row_ops(slots.type);
  const std::int64_t group = p.heads / p.kv_heads, volume = p.kernel_volume();

  for_each_item(grid, p.heads, tuning::kGenericItem, pair_flops(p, dim), [&](const Item& item) {
    Scratch scratch(Scratch::bytes<float>(dim) + Scratch::bytes<float>(volume));
    float* x_row = scratch.take<float>(dim);
    float* products = scratch.take<float>(volume);
    const float* rpb = inputs.rpb == nullptr ? nullptr : inputs.rpb + item.head * bias_entries(p);

    for_each_position(p, inputs.lengths, grid, item,
                      [&](const Sample& sample, std::int64_t batch, const Place& output, std::int64_t) {
                        const bool exists = has_query(sample, output);
                        std::fill_n(products, volume, exists ? empty : 0.0f);
                        if (exists) {
                          const Window window = keys_of(sample, output);
                          x_ops.load(row_of(x, batch, x_at_tokens ? query_row(p, output) : output, item.head), dim,
                                     x_row);
                          window.for_each_row([&](const Place& key, std::int64_t t0, std::int64_t t1) {
                            float* row = products + window.slot(p, t0, t1);
                            rows_ops.dot_rows(x_row, row_of(rows, batch, key, item.head / group),
                                              rows.strides[3] * window.axis[2].step, window.axis[2].count, dim, row);
                            const float* bias = rpb == nullptr ? nullptr : rpb + window.bias(p, t0, t1);
                            for (std::int64_t t = 0; t < window.axis[2].count; ++t)
                              row[t] = scale * row[t] + (bias ? bias[t] : 0.0f);
                          });
                        }
                        slots_ops.store(products, volume, row_of(slots, batch, output, item.head));
                      });
  });
}

/// sum = scale * sum over slots of weights[output, slot] * rows[key in slot], written at the query's token (and 0 at
/// tokens without a query) when `sum_at_tokens`, else at its output position. drpb, when given, sums the weights.
void window_sums(const AttentionInputs& inputs, const Tensor& weights, const Tensor& rows, std::int64_t dim,
                 float scale, const Tensor& sum, bool sum_at_tokens, float* drpb) {
  const Problem& p = inputs.problem;
  const Grid grid = sum_at_tokens ? query_grid(p) : output_grid(p);
  const RowOps weights_ops = row_ops(weights.type), rows_ops = row_ops(rows.type), sum_ops = row_ops(sum.type);
  const std::int64_t group = p.heads / p.kv_heads, volume = p.kernel_volume();
  const BiasGradient bias_gradient = bias_gradient_of(p, drpb);

  for_each_item(grid, p.heads, run_length(grid, bias_gradient, drpb), pair_flops(p, dim), [&](const Item& item) {
    Scratch scratch(Scratch::bytes<float>(dim) + Scratch::bytes<float>(volume));
    float* sum_row = scratch.take<float>(dim);
    float* weights_row = scratch.take<float>(volume);
    float* bias_sum = bias_gradient.part(item.head, item.part);

    for_each_position(
        p, inputs.lengths, grid, item, [&](const Sample& sample, std::int64_t batch, const Place& place, std::int64_t) {
          std::fill_n(sum_row, dim, 0.0f);
          const Place output = sum_at_tokens ? output_of(p, place) : place;
          if ((!sum_at_tokens || is_query(p, place)) && has_query(sample, output)) {
            const Window window = keys_of(sample, output);
            weights_ops.load(row_of(weights, batch, output, item.head), volume, weights_row);
            window.for_each_row([&](const Place& key, std::int64_t t0, std::int64_t t1) {
              const float* row = weights_row + window.slot(p, t0, t1);
              rows_ops.add_rows(row, row_of(rows, batch, key, item.head / group), rows.strides[3] * window.axis[2].step,
                                window.axis[2].count, dim, sum_row);
              if (bias_sum == nullptr) return;
              float* bias = bias_sum + window.bias(p, t0, t1);
              for (std::int64_t t = 0; t < window.axis[2].count; ++t) bias[t] += row[t];
            });
            for (std::int64_t c = 0; c < dim; ++c) sum_row[c] *= scale;
          }
          sum_ops.store(sum_row, dim, row_of(sum, batch, place, item.head));
        });
  });
  bias_gradient.add_up();
}

/// sum[key] = scale * sum over the queries that attend the key, of all heads that read its head, of
/// weights[query, slot of the key] * x[query].
void inverse_window_sums(const AttentionInputs& inputs, const Tensor& weights, const Tensor& x, bool x_at_tokens,
                         std::int64_t dim, float scale, const Tensor& sum) {
  const Problem& p = inputs.problem;
  const Grid grid = key_grid(p);
  const RowOps x_ops = row_ops(x.type), sum_ops = row_ops(sum.type);
  const std::int64_t group = p.heads / p.kv_heads, bytes = element_size(weights.type);
  const std::int64_t longest = 2 * p.axes[2].kernel_size + 2 * p.axes[2].gna_stride;

  for_each_item(grid, p.kv_heads, tuning::kGenericItem, pair_flops(p, dim), [&](const Item& item) {
    Scratch scratch(Scratch::bytes<float>(dim) + Scratch::bytes<float>(longest));
    float* sum_row = scratch.take<float>(dim);
    float* weights_row = scratch.take<float>(longest);

    for_each_position(
        p, inputs.lengths, grid, item, [&](const Sample& sample, std::int64_t batch, const Place& token, std::int64_t) {
          std::fill_n(sum_row, dim, 0.0f);
          if (has_key(sample, token)) {
            const Window window = queries_of(sample, token);
            const AxisRun& run = window.axis[2];
            const std::int64_t x_stride = x.strides[3] * run.step * (x_at_tokens ? p.axes[2].stride : 1);
            window.for_each_row([&](const Place& output, std::int64_t, std::int64_t) {
              const std::int64_t slot01 =
                  key_slot(sample.axes[0], sample.spans[0], output[0], token[0]) * p.axes[1].kernel_size +
                  key_slot(sample.axes[1], sample.spans[1], output[1], token[1]);
              for (std::int64_t head = item.head * group; head < (item.head + 1) * group && run.count > 0; ++head) {
                with_storage_type(weights.type, [&](auto storage) {
                  Place at = output;
                  for (std::int64_t t = 0; t < run.count; ++t, at[2] += run.step) {
                    const std::int64_t slot =
                        slot01 * p.axes[2].kernel_size + key_slot(sample.axes[2], sample.spans[2], at[2], token[2]);
                    const char* address = row_of(weights, batch, at, head) + slot * bytes;
                    weights_row[t] = to_float(*reinterpret_cast<const decltype(storage)*>(address));
                  }
                });
                x_ops.add_rows(weights_row, row_of(x, batch, x_at_tokens ? query_row(p, output) : output, head),
                               x_stride, run.count, dim, sum_row);
              }
            });
            for (std::int64_t c = 0; c < dim; ++c) sum_row[c] *= scale;
          }
          sum_ops.store(sum_row, dim, row_of(sum, batch, token, item.head));
        });
  });
}

}  // namespace

void qk(const AttentionInputs& inputs, const Tensor& logits) {
  window_products(inputs, inputs.query, true, inputs.key, inputs.problem.head_dim,
                  static_cast<float>(inputs.problem.scale), -std::numeric_limits<float>::infinity(), logits);
}

void qk_backward_query(const AttentionInputs& inputs, const Tensor& dlogits, const Tensor& dq, float* drpb) {
  window_sums(inputs, dlogits, inputs.key, inputs.problem.head_dim, static_cast<float>(inputs.problem.scale), dq, true,
              drpb);
}

void qk_backward_key(const AttentionInputs& inputs, const Tensor& dlogits, const Tensor& dk) {
  inverse_window_sums(inputs, dlogits, inputs.query, true, inputs.problem.head_dim,
                      static_cast<float>(inputs.problem.scale), dk);
}

void av(const AttentionInputs& inputs, const Tensor& attn, const Tensor& out) {
  window_sums(inputs, attn, inputs.value, inputs.problem.value_dim, 1.0f, out, false, nullptr);
}

void av_backward_attn(const AttentionInputs& inputs, const Tensor& dout, const Tensor& dattn) {
  AttentionInputs without_bias = inputs;
  without_bias.rpb = nullptr;
  window_products(without_bias, dout, false, inputs.value, inputs.problem.value_dim, 1.0f, 0.0f, dattn);
}

void av_backward_value(const AttentionInputs& inputs, const Tensor& attn, const Tensor& dout, const Tensor& dv) {
  inverse_window_sums(inputs, attn, dout, false, inputs.problem.value_dim, 1.0f, dv);
}

}  // namespace natten::cpu::generic

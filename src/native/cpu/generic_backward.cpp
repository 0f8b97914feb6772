#include <cmath>

#include "native/cpu/delta.h"
#include "native/cpu/generic.h"
#include "native/cpu/row_ops.h"
#include "native/cpu/scratch.h"
#include "native/cpu/tuning.h"

namespace natten::cpu::generic {

void attention_backward_query(const AttentionInputs& inputs, const SavedForward& saved, const Tensor& dq, float* drpb) {
  const Problem& p = inputs.problem;
  const Grid grid = query_grid(p), outputs = output_grid(p);
  const RowOps query_ops = row_ops(p.query_type), key_ops = row_ops(p.key_type), value_ops = row_ops(p.value_type);
  const RowOps out_ops = row_ops(saved.out.type), dout_ops = row_ops(saved.dout.type), dq_ops = row_ops(dq.type);
  const std::int64_t group = p.heads / p.kv_heads, volume = p.kernel_volume();
  const float scale = static_cast<float>(p.scale);
  const double flops = pair_flops(p, 2 * p.head_dim + p.value_dim);
  const BiasGradient bias_gradient = bias_gradient_of(p, drpb);

  for_each_item(grid, p.heads, run_length(grid, bias_gradient, drpb), flops, [&](const Item& item) {
    Scratch scratch(2 * Scratch::bytes<float>(p.head_dim) + 2 * Scratch::bytes<float>(p.value_dim) +
                    2 * Scratch::bytes<float>(volume));
    float* query = scratch.take<float>(p.head_dim);
    float* sum = scratch.take<float>(p.head_dim);
    float* dout = scratch.take<float>(p.value_dim);
    float* out = scratch.take<float>(p.value_dim);
    float* probabilities = scratch.take<float>(volume);
    float* dlogits = scratch.take<float>(volume);
    const std::int64_t kv_head = item.head / group;
    const float* rpb = inputs.rpb == nullptr ? nullptr : inputs.rpb + item.head * bias_entries(p);
    float* bias_sum = bias_gradient.part(item.head, item.part);

    for_each_position(
        p, inputs.lengths, grid, item, [&](const Sample& sample, std::int64_t batch, const Place& token, std::int64_t) {
          std::fill_n(sum, p.head_dim, 0.0f);
          const Place output = output_of(p, token);
          const std::int64_t flat = outputs.index(batch, output) * p.heads + item.head;
          if (is_query(p, token) && has_query(sample, output) && !is_empty_lse(saved.lse[flat])) {
            const Window window = keys_of(sample, output);
            const std::int64_t count = window.axis[2].count;
            query_ops.load(row_of(inputs.query, batch, token, item.head), p.head_dim, query);
            dout_ops.load(row_of(saved.dout, batch, output, item.head), p.value_dim, dout);
            out_ops.load(row_of(saved.out, batch, output, item.head), p.value_dim, out);
            float delta = saved.dlse == nullptr ? 0.0f : -saved.dlse[flat];
            for (std::int64_t c = 0; c < p.value_dim; ++c) delta += out[c] * dout[c];

            std::int64_t done = 0;
            window.for_each_row([&](const Place& key, std::int64_t t0, std::int64_t t1) {
              key_ops.dot_rows(query, row_of(inputs.key, batch, key, kv_head),
                               inputs.key.strides[3] * window.axis[2].step, count, p.head_dim, probabilities + done);
              value_ops.dot_rows(dout, row_of(inputs.value, batch, key, kv_head),
                                 inputs.value.strides[3] * window.axis[2].step, count, p.value_dim, dlogits + done);
              const float* bias = rpb == nullptr ? nullptr : rpb + window.bias(p, t0, t1);
              for (std::int64_t t = 0; t < count; ++t, ++done) {
                probabilities[done] = scale * probabilities[done] + (bias ? bias[t] : 0.0f);
              }
            });
            exp_row(probabilities, done, saved.lse[flat]);
            for (std::int64_t t = 0; t < done; ++t) dlogits[t] = probabilities[t] * (dlogits[t] - delta);

            const float* weights = dlogits;
            window.for_each_row([&](const Place& key, std::int64_t t0, std::int64_t t1) {
              key_ops.add_rows(weights, row_of(inputs.key, batch, key, kv_head),
                               inputs.key.strides[3] * window.axis[2].step, count, p.head_dim, sum);
              if (bias_sum != nullptr) {
                float* bias = bias_sum + window.bias(p, t0, t1);
                for (std::int64_t t = 0; t < count; ++t) bias[t] += weights[t];
              }
              weights += count;
            });
            for (std::int64_t c = 0; c < p.head_dim; ++c) sum[c] *= scale;
          }
          dq_ops.store(sum, p.head_dim, row_of(dq, batch, token, item.head));
        });
  });
  bias_gradient.add_up();
}

void attention_backward_key_value(const AttentionInputs& inputs, const SavedForward& saved, const Tensor& dk,
                                  const Tensor& dv) {
  const Problem& p = inputs.problem;
  const Grid grid = key_grid(p), outputs = output_grid(p);
  const RowOps query_ops = row_ops(p.query_type), key_ops = row_ops(p.key_type), value_ops = row_ops(p.value_type);
  const RowOps dout_ops = row_ops(saved.dout.type), dk_ops = row_ops(dk.type), dv_ops = row_ops(dv.type);
  const std::int64_t group = p.heads / p.kv_heads;
  const float scale = static_cast<float>(p.scale);
  const double flops = pair_flops(p, 2 * p.head_dim + 2 * p.value_dim);
  const std::vector<float> delta = delta_of(inputs, saved);
  // Queries of one key on the last axis: at a border those of half a window more, and with gna_stride whole blocks.
  const std::int64_t longest = 2 * p.axes[2].kernel_size + 2 * p.axes[2].gna_stride;

  for_each_item(grid, p.kv_heads, tuning::kGenericItem, flops, [&](const Item& item) {
    Scratch scratch(2 * Scratch::bytes<float>(p.head_dim) + 2 * Scratch::bytes<float>(p.value_dim) +
                    2 * Scratch::bytes<float>(longest));
    float* key = scratch.take<float>(p.head_dim);
    float* key_sum = scratch.take<float>(p.head_dim);
    float* value = scratch.take<float>(p.value_dim);
    float* value_sum = scratch.take<float>(p.value_dim);
    float* probabilities = scratch.take<float>(longest);
    float* dlogits = scratch.take<float>(longest);

    for_each_position(
        p, inputs.lengths, grid, item, [&](const Sample& sample, std::int64_t batch, const Place& token, std::int64_t) {
          std::fill_n(key_sum, p.head_dim, 0.0f);
          std::fill_n(value_sum, p.value_dim, 0.0f);
          if (has_key(sample, token)) {
            const Window window = queries_of(sample, token);
            const AxisRun& run = window.axis[2];
            key_ops.load(row_of(inputs.key, batch, token, item.head), p.head_dim, key);
            value_ops.load(row_of(inputs.value, batch, token, item.head), p.value_dim, value);
            const std::int64_t query_stride = inputs.query.strides[3] * p.axes[2].stride * run.step;
            const std::int64_t dout_stride = saved.dout.strides[3] * run.step;
            const std::int64_t query_size = element_size(p.query_type), dout_size = element_size(saved.dout.type);
            for (std::int64_t head = item.head * group; head < (item.head + 1) * group; ++head) {
              window.for_each_row([&](const Place& output, std::int64_t t0, std::int64_t t1) {
                if (run.count == 0) return;
                const char* queries = row_of(inputs.query, batch, query_row(p, output), head);
                const char* douts = row_of(saved.dout, batch, output, head);
                query_ops.dot_rows(key, queries, query_stride, run.count, p.head_dim, probabilities);
                dout_ops.dot_rows(value, douts, dout_stride, run.count, p.value_dim, dlogits);
                const std::int64_t flat = outputs.index(batch, output) * p.heads + head;
                const float* bias =
                    inputs.rpb == nullptr ? nullptr : inputs.rpb + head * bias_entries(p) + window.bias(p, t0, t1);
                for (std::int64_t t = 0; t < run.count; ++t) {
                  probabilities[t] = scale * probabilities[t] + (bias ? bias[t * run.bias_step] : 0.0f) -
                                     saved.lse[flat + t * run.step * p.heads];
                }
                exp_row(probabilities, run.count, 0.0f);
                for (std::int64_t t = 0; t < run.count; ++t) {
                  dlogits[t] = probabilities[t] * (dlogits[t] - delta[flat + t * run.step * p.heads]);
                }
                // A weight of zero would not keep an infinite query out.
                const auto is_empty = [&](std::int64_t t) {
                  return is_empty_lse(saved.lse[flat + t * run.step * p.heads]);
                };
                for (std::int64_t t = 0, end; t < run.count; t = end) {
                  end = t + 1;
                  if (is_empty(t)) continue;
                  while (end < run.count && !is_empty(end)) ++end;
                  dout_ops.add_rows(probabilities + t, douts + t * dout_stride * dout_size, dout_stride, end - t,
                                    p.value_dim, value_sum);
                  query_ops.add_rows(dlogits + t, queries + t * query_stride * query_size, query_stride, end - t,
                                     p.head_dim, key_sum);
                }
              });
            }
            for (std::int64_t c = 0; c < p.head_dim; ++c) key_sum[c] *= scale;
          }
          dk_ops.store(key_sum, p.head_dim, row_of(dk, batch, token, item.head));
          dv_ops.store(value_sum, p.value_dim, row_of(dv, batch, token, item.head));
        });
  });
}

}  // namespace natten::cpu::generic

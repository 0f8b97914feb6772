#include <cmath>

#include "native/cpu/generic.h"
#include "native/cpu/row_ops.h"
#include "native/cpu/scratch.h"
#include "native/cpu/tuning.h"

namespace natten::cpu::generic {

void attention_forward(const AttentionInputs& inputs, const Tensor& out, float* lse) {
  const Problem& p = inputs.problem;
  const Grid grid = output_grid(p);
  const RowOps query_ops = row_ops(p.query_type), key_ops = row_ops(p.key_type), value_ops = row_ops(p.value_type);
  const RowOps out_ops = row_ops(out.type);
  const std::int64_t group = p.heads / p.kv_heads;
  const float scale = static_cast<float>(p.scale);
  const double flops = pair_flops(p, p.head_dim + p.value_dim);

  for_each_item(grid, p.heads, tuning::kGenericItem, flops, [&](const Item& item) {
    Scratch scratch(Scratch::bytes<float>(p.head_dim) + Scratch::bytes<float>(p.value_dim) +
                    Scratch::bytes<float>(p.kernel_volume()));
    float* query = scratch.take<float>(p.head_dim);
    float* sum = scratch.take<float>(p.value_dim);
    float* probabilities = scratch.take<float>(p.kernel_volume());
    const std::int64_t kv_head = item.head / group;
    const float* rpb = inputs.rpb == nullptr ? nullptr : inputs.rpb + item.head * bias_entries(p);

    const auto attend = [&](const Window& window, std::int64_t batch, const Place& output) {
      const std::int64_t count = window.axis[2].count, step = window.axis[2].step;
      query_ops.load(row_of(inputs.query, batch, query_row(p, output), item.head), p.head_dim, query);
      float* logits = probabilities;
      window.for_each_row([&](const Place& token, std::int64_t t0, std::int64_t t1) {
        const auto dot = [&](std::int64_t first, std::int64_t rows, const char* key) {
          key_ops.dot_rows(query, key, inputs.key.strides[3] * step, rows, p.head_dim, logits + first);
        };
        for_each_run(inputs.key, batch, token, kv_head, step, count, dot);
        const float* bias = rpb == nullptr ? nullptr : rpb + window.bias(p, t0, t1);
        for (std::int64_t t = 0; t < count; ++t) logits[t] = scale * logits[t] + (bias ? bias[t] : 0.0f);
        logits += count;
      });
      float max;
      const float total = softmax_row(probabilities, window.size(), &max);
      const float* weights = probabilities;
      if (total != 0.0f) {
        window.for_each_row([&](const Place& token, std::int64_t, std::int64_t) {
          const auto add = [&](std::int64_t first, std::int64_t rows, const char* value) {
            value_ops.add_rows(weights + first, value, inputs.value.strides[3] * step, rows, p.value_dim, sum);
          };
          for_each_run(inputs.value, batch, token, kv_head, step, count, add);
          weights += count;
        });
      }
      const float inverse = total == 0.0f ? 0.0f : 1.0f / total;  // 0: all are -inf
      for (std::int64_t c = 0; c < p.value_dim; ++c) sum[c] *= inverse;
      return max + std::log(total);
    };
    const auto store = [&](const Sample& sample, std::int64_t batch, const Place& output, std::int64_t flat) {
      std::fill_n(sum, p.value_dim, 0.0f);
      lse[flat * p.heads + item.head] = has_query(sample, output) ? attend(keys_of(sample, output), batch, output) : 0;
      out_ops.store(sum, p.value_dim, row_of(out, batch, output, item.head));
    };
    for_each_position(p, inputs.lengths, grid, item, store);
  });
}

}  // namespace natten::cpu::generic

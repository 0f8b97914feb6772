#include "native/cpu/delta.h"

#include "native/cpu/generic.h"
#include "native/cpu/row_ops.h"
#include "native/cpu/scratch.h"
#include "native/cpu/tuning.h"

namespace natten::cpu {

std::vector<float> delta_of(const AttentionInputs& inputs, const SavedForward& saved) {
  const Problem& p = inputs.problem;
  const Grid grid = output_grid(p);
  std::vector<float> delta(grid.size() * p.heads, 0.0f);
  const RowOps out_ops = row_ops(saved.out.type), dout_ops = row_ops(saved.dout.type);
  const double flops = 2.0 * static_cast<double>(grid.size() * p.heads * p.value_dim);

  const auto sum_item = [&](const generic::Item& item) {
    Scratch scratch(Scratch::bytes<float>(p.value_dim));
    float* out = scratch.take<float>(p.value_dim);
    generic::for_each_position(p, inputs.lengths, grid, item,
                               [&](const Sample& sample, std::int64_t batch, const Place& output, std::int64_t flat) {
                                 if (!generic::has_query(sample, output)) return;
                                 for (std::int64_t head = 0; head < p.heads; ++head) {
                                   float& query_delta = delta[flat * p.heads + head];
                                   out_ops.load(row_of(saved.out, batch, output, head), p.value_dim, out);
                                   dout_ops.dot_rows(out, row_of(saved.dout, batch, output, head), 0, 1, p.value_dim,
                                                     &query_delta);
                                   if (saved.dlse != nullptr) query_delta -= saved.dlse[flat * p.heads + head];
                                 }
                               });
  };
  generic::for_each_item(grid, 1, tuning::kGenericItem, flops, sum_item);
  return delta;
}

}  // namespace natten::cpu

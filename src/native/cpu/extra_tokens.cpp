#include "native/cpu/extra_tokens.h"

#include <algorithm>

#include "native/cpu/tensor.h"
#include "native/cpu/thread_pool.h"

namespace natten::cpu {

ExtraTokens::ExtraTokens(const Problem& p, const Tensor& key, const Tensor& value)
    : key_(key),
      value_(value),
      count_(p.extra_tokens),
      dim_(p.head_dim),
      value_dim_(p.value_dim),
      pitch_(whole_lines(dim_)),
      value_pitch_(whole_lines(value_dim_)),
      kv_heads_(p.kv_heads),
      samples_(key.strides[0] == 0 && value.strides[0] == 0 ? std::min<std::int64_t>(p.batch, 1) : p.batch),
      memory_(count_ == 0 ? 0 : samples_ * kv_heads_ * size() + kLine),
      rows_(at_line(memory_.data())) {}

template <class Visit>
void ExtraTokens::for_each_row(Visit&& visit) const {
  const std::int64_t rows = samples_ * kv_heads_ * count_;
  parallel_for(rows, static_cast<double>(rows * (dim_ + value_dim_)), [&](std::int64_t row) {
    const std::int64_t owner = row / count_, sample = owner / kv_heads_, head = owner % kv_heads_, token = row % count_;
    const auto visit_row = [&](const Tensor& tensor, std::int64_t dim, float* floats) {
      with_storage_type(tensor.type, [&](auto storage) {
        visit(reinterpret_cast<decltype(storage)*>(row_of(tensor, sample, {0, 0, token}, head)), dim, floats);
      });
    };
    visit_row(key_, dim_, keys(sample, head) + token * pitch_);
    visit_row(value_, value_dim_, values(sample, head) + token * value_pitch_);
  });
}

void ExtraTokens::load() {
  for_each_row([](const auto* from, std::int64_t dim, float* to) {
    for (std::int64_t c = 0; c < dim; ++c) to[c] = to_float(from[c]);
  });
}

void ExtraTokens::store() const {
  for_each_row([](auto* to, std::int64_t dim, const float* from) {
    for (std::int64_t c = 0; c < dim; ++c) from_float(from[c], to[c]);
  });
}

}  // namespace natten::cpu

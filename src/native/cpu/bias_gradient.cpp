#include "native/cpu/bias_gradient.h"

#include <algorithm>

#include "native/cpu/generic.h"
#include "native/cpu/tuning.h"

namespace natten::cpu {

BiasGradient::BiasGradient(const Problem& problem, const Grid& grid, std::int64_t default_run, float* drpb)
    : drpb_(drpb),
      heads_(problem.heads),
      entries_(generic::bias_entries(problem)),
      run_length_(default_run),
      parts_(0) {
  if (drpb_ == nullptr) return;
  const std::int64_t parts = std::max<std::int64_t>(1, tuning::kBiasGradientParts / heads_);
  run_length_ = std::max(default_run, (grid.size() + parts - 1) / parts);
  parts_ = generic::parts_of(grid, run_length_);
  partial_.resize(heads_ * parts_ * entries_, 0.0f);
}

void BiasGradient::add_up() {
  if (drpb_ == nullptr) return;
  for (std::int64_t head = 0; head < heads_; ++head) {
    float* sum = drpb_ + head * entries_;
    std::fill_n(sum, entries_, 0.0f);
    for (std::int64_t part = 0; part < parts_; ++part) {
      const float* partial = this->part(head, part);
      for (std::int64_t i = 0; i < entries_; ++i) sum[i] += partial[i];
    }
  }
}

}  // namespace natten::cpu

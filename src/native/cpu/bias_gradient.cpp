#include "native/cpu/bias_gradient.h"

#include <algorithm>
#include <atomic>
#include <new>

#include "native/cpu/tuning.h"

namespace natten::cpu {
namespace {

std::atomic<std::int64_t> limit_override{0};

std::int64_t limit() {
  const std::int64_t bytes = limit_override.load(std::memory_order_relaxed);
  return bytes > 0 ? bytes : tuning::kBiasGradientBytes;
}

}  // namespace

void set_bias_gradient_limit(std::int64_t bytes) {
  limit_override.store(bytes, std::memory_order_relaxed);
}

BiasGradient::BiasGradient(float* drpb, std::int64_t owners, std::int64_t entries, std::int64_t wanted)
    : drpb_(drpb), owners_(owners), entries_(entries), parts_(std::max<std::int64_t>(wanted, 1)) {
  if (drpb_ == nullptr) return;
  const std::int64_t bytes = owners * entries * static_cast<std::int64_t>(sizeof(float));
  parts_ = std::min(parts_, 1 + limit() / bytes);
  if (parts_ == 1) return;
  // calloc leaves large blocks to the threads that first write to them.
  partial_.reset(static_cast<float*>(std::calloc(parts_ - 1, bytes)));
  if (partial_ == nullptr) throw std::bad_alloc();
}

void BiasGradient::add_up() const {
  if (drpb_ == nullptr) return;
  const std::int64_t entries = owners_ * entries_;
  for (std::int64_t part = 1; part < parts_; ++part) {
    const float* partial = this->part(0, part);
    for (std::int64_t i = 0; i < entries; ++i) drpb_[i] += partial[i];
  }
}

}  // namespace natten::cpu

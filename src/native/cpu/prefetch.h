// Fetches rows that are needed soon into the cache, a few lines at a time in between of arithmetic. Rows of one head
// lie far apart, where hardware prefetchers do not look: read without this they come at half the rate.
#pragma once

#include <cstdint>
#include <vector>

namespace natten::cpu {

class Prefetcher {
 public:
  /// `count` rows of `bytes` each, `step` bytes apart.
  void add(const char* first, std::int64_t step, std::int64_t count, std::int64_t bytes) {
    if (count <= 0 || bytes <= 0) return;
    runs_.push_back({first, step, count, bytes});
    rows_ += count;
  }

  /// To be called between pieces of the arithmetic. The rows are spread over as many steps as there were between the
  /// last two calls of restart().
  void step() {
    ++steps_;
    for (std::int64_t row = 0; row < rows_per_step_ && next_ < runs_.size(); ++row) fetch_row();
  }

  void restart() {
    runs_.clear();
    next_ = 0;
    rows_ = 0;
    last_steps_ = steps_;
    steps_ = 0;
  }
  /// After the last add().
  void start() { rows_per_step_ = last_steps_ > 0 ? (rows_ + last_steps_ - 1) / last_steps_ : kRowsAtFirst; }

  /// Everything that has not been fetched.
  void finish() {
    while (next_ < runs_.size()) fetch_row();
  }

 private:
  static constexpr std::int64_t kLine = 64;
  static constexpr std::int64_t kRowsAtFirst = 4;
  struct Run {
    const char* row;
    std::int64_t step, count, bytes;
  };

  void fetch_row() {
    Run& run = runs_[next_];
    const auto address = reinterpret_cast<std::uintptr_t>(run.row);
    const std::uintptr_t end = address + static_cast<std::uintptr_t>(run.bytes);
    for (std::uintptr_t line = address / kLine * kLine; line < end; line += kLine) {
      __builtin_prefetch(reinterpret_cast<const char*>(line), 0, 2);
    }
    run.row += run.step;
    if (--run.count == 0) ++next_;
  }

  std::vector<Run> runs_;
  std::size_t next_ = 0;
  std::int64_t rows_ = 0, steps_ = 0, last_steps_ = 0, rows_per_step_ = 0;
};

}  // namespace natten::cpu

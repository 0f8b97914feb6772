// Sizes that matter, each of them by construction: tokens around every vector and tile, every class of channels, every
// kernel up to 127, axes of one token, one head and many. Each with the forward pass, the gradients and the split form,
// several times, with options and storage types drawn at random.
#include "every_target.h"

namespace natten::cpu::testing {
namespace {

class Coverage : public EveryTarget {
 protected:
  /// Runs the problem with random options.
  void run(Problem p) {
    const std::uint64_t seed = seed_;
    Random random(seed);
    p.query_type = p.key_type = p.value_type = random_type(random);
    p.has_rpb = chance(random, 0.3);
    p.has_lengths = chance(random, 0.2);
    for (int a = kAxes - p.rank; a < kAxes; ++a) {
      Axis& axis = p.axes[a];
      axis.is_causal = chance(random, 0.3);
      if (chance(random, 0.2)) axis.dilation = pick(random, 1, axis.length / axis.kernel_size);
      if (chance(random, 0.3)) {
        (chance(random, 0.5) ? axis.stride : axis.gna_stride) = pick(random, 1, axis.kernel_size);
      }
    }
    run_as_is(p);
  }

  void run_as_is(const Problem& p) {
    if (!HasFailure()) EveryTarget::run(seed_, p, {&KernelCase::run_attention, &KernelCase::run_split});
    ++seed_;
  }

 private:
  std::uint64_t seed_ = 0;
};

constexpr std::int64_t kLengths[] = {15, 16, 17, 31, 32, 33};
constexpr std::int64_t kDims[] = {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129, 256, 257};

TEST_P(Coverage, Lengths) {
  for (int rank = 1; rank <= 3; ++rank) {
    for (int axis = kAxes - rank; axis < kAxes; ++axis) {
      for (const std::int64_t length : kLengths) {
        for (const std::int64_t kernel_size : {std::int64_t{1}, std::int64_t{2}, std::int64_t{3}, std::int64_t{4},
                                               std::int64_t{7}, length - 1, length}) {
          Problem p = plain_problem(rank, 1, 6);
          for (int a = kAxes - rank; a < kAxes; ++a) p.axes[a] = {3, 2, 1, 1, 1, false};
          p.axes[axis] = {length, kernel_size, 1, 1, 1, false};
          run(p);
        }
      }
    }
  }
}

TEST_P(Coverage, LengthsOfTwoAxes) {
  for (const std::int64_t height : kLengths) {
    for (const std::int64_t width : kLengths) {
      Problem p = plain_problem(2, 1, 9);
      p.axes[1] = {height, 3, 1, 1, 1, false};
      p.axes[2] = {width, 5, 1, 1, 1, false};
      run(p);
    }
  }
}

// For each design: windows along one axis, short and long, and along two.
TEST_P(Coverage, HeadDims) {
  for (const bool is_value_wider : {false, true}) {
    for (std::size_t i = 0; i < std::size(kDims); ++i) {
      for (const std::int64_t kernel_size : {5, 26, 0}) {
        Problem p = plain_problem(kernel_size == 0 ? 2 : 1, 1, kDims[i]);
        if (is_value_wider) p.value_dim = kDims[(i + 7) % std::size(kDims)];
        p.axes[1] = {kernel_size == 0 ? 4 : 1, kernel_size == 0 ? 2 : 1, 1, 1, 1, false};
        p.axes[2] = {kernel_size == 0 ? 18 : kernel_size + 14, kernel_size == 0 ? 3 : kernel_size, 1, 1, 1, false};
        run(p);
      }
    }
  }
}

TEST_P(Coverage, KernelSizes) {
  for (std::int64_t kernel_size = 1; kernel_size <= 127; ++kernel_size) {
    for (const int axis : {2, 1}) {
      Problem p = plain_problem(axis == 2 ? 1 : 2, 1, 5);
      p.axes[2] = {3, 2, 1, 1, 1, false};
      p.axes[axis] = {kernel_size + kernel_size % 19, kernel_size, 1, 1, 1, false};
      run(p);
    }
  }
}

// Windows that wrap, of nearly the whole axis up to a part of it: a tile's windows together then hold keys twice.
TEST_P(Coverage, CircularAxes) {
  for (const std::int64_t kernel_size : {5, 24, 31, 63, 127}) {
    for (const std::int64_t further : {0, 1, 2, 7, 15, 16, 31}) {
      for (const std::int64_t share : {1, 3}) {
        Problem p = plain_problem(1, further % 2 + 1, further % 3 == 0 ? 33 : 6);
        const std::int64_t places = (kernel_size + further + share - 1) / share * share,
                           dilation = further % 5 == 2 ? 2 : 1;
        p.axes[2] = {places * dilation, kernel_size, 1, dilation, share, false, true};
        p.kv_heads = 1;
        p.has_rpb = further % 2 == 1;
        run_as_is(p);
      }
    }
  }
}

TEST_P(Coverage, SingleTokenAxes) {
  for (int rank = 1; rank <= 3; ++rank) {
    for (int single = 1; single < 1 << rank; ++single) {
      for (int repeat = 0; repeat < 6; ++repeat) {
        Problem p = plain_problem(rank, 2, 8);
        for (int i = 0; i < rank; ++i) {
          const bool is_single = (single >> i & 1) != 0;
          p.axes[kAxes - 1 - i] = {is_single ? 1 : 18, is_single ? 1 : 5, 1, 1, 1, false};
        }
        run(p);
      }
    }
  }
}

TEST_P(Coverage, Heads) {
  static constexpr std::int64_t kHeads[][2] = {{1, 1},  {2, 1},  {2, 2},  {3, 3},   {7, 1},
                                               {16, 4}, {33, 3}, {64, 1}, {64, 64}, {129, 43}};
  for (const auto& [heads, kv_heads] : kHeads) {
    for (int repeat = 0; repeat < 6; ++repeat) {
      Problem p = plain_problem(2, heads, 4);
      p.kv_heads = kv_heads;
      p.axes[1] = {3, 2, 1, 1, 1, false};
      p.axes[2] = {17, 3, 1, 1, 1, false};
      run(p);
    }
  }
}

NATTEN_ON_EVERY_TARGET(Coverage);

}  // namespace
}  // namespace natten::cpu::testing

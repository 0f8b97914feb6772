#include "cases.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "fast/spans.h"

namespace natten::metal_host {

namespace {

using fast::KernelId;

/// Builds a case from left to right: `Builder("name", {{40, 5}}).heads(4, 2).dims(8, 8)`.
class Builder {
 public:
  struct AxisOptions {
    std::int64_t length, kernel_size, stride = 1, dilation = 1, gna_stride = 1;
    bool is_causal = false;
    bool is_circular = false;
  };

  Builder(std::string name, const std::vector<AxisOptions>& axes) {
    case_.name = std::move(name);
    Problem& p = case_.problem;
    p.rank = static_cast<int>(axes.size());
    p.device = DeviceType::gpu;
    p.batch = p.heads = p.kv_heads = 1;
    for (Axis& axis : p.axes) axis = {1, 1, 1, 1, 1, false};
    for (int a = 0; a < p.rank; ++a) {
      const AxisOptions& from = axes[a];
      p.axes[kAxes - p.rank + a] = {from.length,     from.kernel_size, from.stride,     from.dilation,
                                    from.gna_stride, from.is_causal,   from.is_circular};
    }
    dims(8, 8);
  }
  Builder& type(FloatType type) {
    case_.problem.query_type = case_.problem.key_type = case_.problem.value_type = type;
    return *this;
  }
  Builder& types(FloatType query, FloatType key, FloatType value) {
    case_.problem.query_type = query;
    case_.problem.key_type = key;
    case_.problem.value_type = value;
    return *this;
  }
  Builder& batch(std::int64_t batch) {
    case_.problem.batch = batch;
    return *this;
  }
  Builder& heads(std::int64_t heads, std::int64_t kv_heads) {
    case_.problem.heads = heads;
    case_.problem.kv_heads = kv_heads;
    return *this;
  }
  Builder& dims(std::int64_t head_dim, std::int64_t value_dim) {
    case_.problem.head_dim = head_dim;
    case_.problem.value_dim = value_dim;
    case_.problem.scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
    return *this;
  }
  Builder& scale(double scale) {
    case_.problem.scale = scale;
    return *this;
  }
  Builder& rpb() {
    case_.problem.has_rpb = true;
    return *this;
  }
  Builder& masking_rpb() {
    case_.masks = true;
    return rpb();
  }
  /// Lengths of the caller's axes, sample by sample.
  Builder& lengths(const std::vector<std::vector<std::int32_t>>& samples) {
    case_.problem.has_lengths = true;
    case_.problem.batch = static_cast<std::int64_t>(samples.size());
    for (const auto& sample : samples) {
      for (int a = case_.problem.rank; a < kAxes; ++a) case_.lengths.push_back(1);  // trivial leading axes
      case_.lengths.insert(case_.lengths.end(), sample.begin(), sample.end());
    }
    return *this;
  }
  /// Of the caller's axes: query start and rows, key start and rows.
  Builder& spans(const std::vector<AxisSpan>& spans) {
    Problem& p = case_.problem;
    p.spans.emplace();
    for (int a = 0; a < kAxes; ++a) (*p.spans)[a] = whole(p.axes[a]);
    std::copy(spans.begin(), spans.end(), p.spans->end() - p.rank);
    return *this;
  }
  Builder& extra(std::int64_t tokens) {
    case_.problem.extra_tokens = tokens;
    return *this;
  }
  Builder& layout(Layout layout) {
    case_.layout = layout;
    return *this;
  }
  operator Case() const { return case_; }

 private:
  Case case_;
};

}  // namespace

bool wants_every_kernel() {
  return std::getenv("NATTEN_TEST_ALL") != nullptr;
}

std::vector<KernelOf> kernels_of(const Problem& problem) {
  Problem attention = fast::nearest(problem), qk = attention, av = attention;
  attention.op = Op::attention;
  qk.op = Op::qk;
  qk.value_dim = 0;
  qk.extra_tokens = av.extra_tokens = 0;
  av.op = Op::av;
  av.head_dim = 0;
  av.has_rpb = false;
  std::vector<KernelOf> kernels = {
      {KernelId::forward, attention},
      {KernelId::delta, attention},
      {KernelId::backward_query, attention},
      {KernelId::backward_key_value, attention},
      {KernelId::qk, qk},
      {KernelId::qk_backward_query, qk},
      {KernelId::qk_backward_key, qk},
      {KernelId::av, av},
      {KernelId::av_backward_attn, av},
      {KernelId::av_backward_value, av},
  };
  if (problem.has_rpb) kernels.push_back({KernelId::rpb_sum, attention});
  return kernels;
}

std::vector<Case> cases() {
  constexpr FloatType f16 = FloatType::float16, bf16 = FloatType::bfloat16, f32 = FloatType::float32;
  // Axis: length, kernel size, stride, dilation, gna stride, causal, circular.
  return {
      // Every rank in every type, with partial tiles.
      Builder("1d_f32", {{70, 7}}).batch(2).heads(2, 2),
      Builder("1d_f16", {{70, 7}}).batch(2).heads(2, 2).dims(16, 16).type(f16),
      Builder("1d_bf16", {{70, 7}}).batch(2).heads(2, 2).dims(16, 16).type(bf16),
      Builder("2d_f32", {{13, 5}, {19, 5}}).batch(2).heads(2, 2),
      Builder("2d_f16", {{13, 5}, {19, 5}}).heads(2, 2).dims(16, 16).type(f16),
      Builder("2d_bf16", {{13, 5}, {19, 5}}).heads(2, 2).dims(16, 16).type(bf16),
      Builder("3d_f32", {{6, 3}, {7, 3}, {9, 3}}).batch(2).heads(2, 2),
      Builder("3d_f16", {{6, 3}, {7, 3}, {9, 3}}).heads(2, 2).dims(16, 16).type(f16),
      Builder("3d_bf16", {{6, 3}, {7, 3}, {9, 3}}).heads(2, 2).dims(16, 16).type(bf16),
      // One feature at a time, and those that interact together.
      Builder("even_kernel", {{33, 6}}),
      Builder("dilated", {{41, 5, 1, 3}}).heads(2, 1).dims(12, 12),
      Builder("causal", {{37, 5, 1, 1, 1, true}}),
      Builder("stride", {{40, 5, 3}}),
      Builder("stride_dilated", {{43, 5, 4, 6}}).heads(2, 2),
      Builder("gna", {{38, 6, 1, 1, 4}}),
      Builder("gna_causal_dilated", {{40, 4, 1, 2, 3, true}}).dims(4, 12),
      Builder("not_square", {{12, 3, 1, 2}, {17, 6, 1, 1, 1, true}}).heads(4, 2).dims(8, 4).type(f16).rpb(),
      Builder("strides_2d", {{14, 5, 2}, {15, 3, 3}}).heads(2, 2).rpb(),
      Builder("gna_2d", {{16, 4, 1, 1, 4}, {17, 6, 1, 1, 2}}).type(bf16),
      Builder("all_3d", {{8, 3, 1, 2}, {7, 4, 2}, {9, 5, 1, 1, 3, true}})
          .heads(2, 1)
          .dims(12, 8)
          .rpb()
          .lengths({{8, 7, 9}, {6, 5, 5}}),
      Builder("grouped_heads", {{30, 5}}).heads(6, 2).dims(8, 8).rpb(),
      Builder("one_kv_head", {{11, 3}, {10, 3}}).heads(4, 1).dims(8, 8).type(f16),
      Builder("rpb_1d", {{29, 8}}).heads(2, 2).type(f16).rpb(),
      Builder("rpb_3d", {{5, 3}, {6, 3}, {7, 5}}).heads(2, 2).rpb(),
      Builder("scale", {{20, 5}}).scale(-1.5),
      // Variable lengths, among them two that are illegal and give zeros.
      Builder("lengths_1d", {{40, 7}}).heads(2, 2).lengths({{40}, {7}, {23}, {6}, {41}}),
      Builder("lengths_2d", {{13, 3, 2, 2}, {12, 5, 1, 1, 1, true}})
          .type(f16)
          .rpb()
          .lengths({{13, 12}, {6, 5}, {9, 11}}),
      Builder("lengths_3d", {{5, 3}, {6, 3}, {7, 3}}).type(bf16).lengths({{5, 6, 7}, {3, 4, 5}, {5, 2, 7}}),
      // Logits of -inf, and queries that have no others.
      Builder("masked_1d", {{70, 7}}).batch(2).heads(2, 1).masking_rpb(),
      Builder("masked_causal_f16", {{33, 6, 1, 1, 1, true}}).heads(3, 3).dims(16, 16).type(f16).masking_rpb(),
      Builder("masked_2d", {{9, 3}, {12, 5, 2}}).heads(2, 2).masking_rpb().lengths({{9, 12}, {5, 7}}),
      // Sizes at the edges.
      Builder("kernel_1", {{9, 1}}),
      Builder("whole_axis", {{17, 17}}).heads(2, 2),
      Builder("tiny", {{3, 3}}).dims(1, 1),
      Builder("odd_dims", {{21, 5}}).dims(5, 3),
      Builder("odd_dims_f16", {{7, 3}, {9, 3}}).heads(2, 1).dims(7, 9).type(f16),
      Builder("dims_256", {{20, 5}}).dims(256, 256),
      Builder("dims_192_128", {{20, 5}}).dims(192, 128).type(bf16),
      Builder("dims_256_f16", {{9, 3}, {12, 5, 1, 1, 1, true}}).heads(2, 1).dims(256, 256).type(f16).rpb(),
      Builder("dims_160_248_bf16", {{5, 3}, {6, 3}, {7, 4}}).dims(160, 248).type(bf16).lengths({{5, 6, 7}, {3, 4, 5}}),
      Builder("dims_131_70_f16", {{40, 9, 2, 3}}).heads(2, 2).dims(131, 70).type(f16).rpb(),
      Builder("dims_136_f32", {{14, 4}, {9, 3}}).dims(48, 136).heads(2, 1).layout(Layout::channels_first),
      Builder("dims_64_f16", {{10, 3}, {12, 3}}).dims(64, 64).type(f16),
      Builder("dims_12_24_bf16", {{9, 3}, {11, 4}}).dims(12, 24).heads(4, 2).type(bf16).rpb(),
      Builder("dims_40_f16", {{50, 9, 1, 2}}).dims(40, 40).type(f16),
      Builder("dims_80_96_f16", {{7, 3}, {9, 5, 1, 1, 1, true}}).dims(80, 96).type(f16),
      Builder("dims_128_f32", {{40, 8}}).dims(128, 128),
      Builder("long_kernel", {{200, 64}}).dims(32, 32),
      Builder("long_axis", {{300, 31}}).dims(32, 32).type(f16),
      Builder("wide_2d", {{28, 13}, {30, 13}}).dims(16, 16).type(f16),
      Builder("wide_3d", {{8, 5}, {9, 7}, {10, 7}}).type(f16),
      // Arrays as callers may have them, and types that differ.
      Builder("heads_first", {{13, 5}, {15, 3}}).batch(2).heads(3, 3).type(f16).layout(Layout::heads_first),
      Builder("channels_first", {{31, 5}}).batch(2).heads(2, 2).layout(Layout::channels_first),
      Builder("same_batch", {{5, 3}, {6, 3}, {7, 3}}).batch(3).heads(2, 1).layout(Layout::same_batch),
      Builder("mixed_types", {{25, 5}}).heads(2, 2).types(f16, f32, bf16),
      // Parts of axes: query start and rows, key start and rows. With keys that no window holds, at borders and far
      // from them, and with dilation groups that have no query.
      Builder("span_middle", {{100, 7}}).heads(2, 1).rpb().spans({{40, 23, 33, 40}}),
      Builder("span_start_f16", {{90, 8}}).dims(16, 16).type(f16).spans({{0, 37, 0, 60}}),
      Builder("span_end_2d", {{30, 5, 1, 2}, {26, 4, 1, 1, 2}})
          .heads(2, 2)
          .type(bf16)
          .dims(16, 16)
          .rpb()
          .spans({{19, 11, 14, 16}, {20, 6, 17, 9}}),
      Builder("span_stride", {{90, 5, 3, 2}, {17, 5, 4}}).heads(2, 1).rpb().spans({{37, 20, 30, 31}, {2, 13, 0, 17}}),
      Builder("span_of_groups", {{200, 3, 1, 31}}).dims(16, 16).type(f16).spans({{100, 5, 69, 68}}),
      Builder("span_3d", {{9, 3}, {8, 3, 1, 2}, {12, 4, 1, 1, 4}})
          .type(f16)
          .heads(4, 2)
          .spans({{3, 3, 2, 5}, {1, 6, 0, 8}, {5, 7, 2, 10}}),
      Builder("span_lengths", {{40, 5}, {20, 4, 1, 1, 1, true}})
          .heads(2, 1)
          .rpb()
          .lengths({{40, 20}, {22, 12}, {17, 20}, {4, 20}})
          .spans({{10, 12, 8, 16}, {11, 6, 7, 12}}),
      Builder("step", {{1000, 64, 1, 1, 1, true}})
          .batch(2)
          .heads(4, 2)
          .dims(16, 16)
          .type(f16)
          .spans({{999, 1, 936, 64}}),
      Builder("step_dilated", {{999, 16, 1, 4, 1, true}}).rpb().spans({{997, 2, 937, 62}}),
      Builder("step_video", {{20, 5, 1, 1, 1, true}, {2, 2}, {6, 3, 3}})
          .heads(4, 2)
          .dims(24, 20)
          .rpb()
          .spans({{19, 1, 15, 5}, {0, 2, 0, 2}, {0, 6, 0, 6}}),
      Builder("step_lengths", {{300, 200, 1, 1, 1, true}})
          .batch(3)
          .dims(40, 136)
          .type(bf16)
          .lengths({{300}, {298}, {200}})
          .spans({{297, 2, 98, 201}}),
      Builder("step_wide", {{2000, 512, 1, 1, 1, true}})
          .heads(2, 2)
          .dims(128, 128)
          .type(f16)
          .spans({{1999, 1, 1488, 512}}),
      Builder("step_d512", {{60, 40, 1, 1, 1, true}}).dims(512, 512).spans({{59, 1, 20, 40}}),
      Builder("step_circular", {{90, 60, 1, 1, 3, false, true}}).heads(2, 2).rpb().spans({{88, 2, 55, 66}}),
      // Windows that go around: as addresses, or with a halo of keys.
      Builder("circular", {{40, 7, 1, 1, 1, false, true}}).batch(2).heads(2, 1).rpb(),
      Builder("circular_f16", {{40, 8, 1, 2, 1, false, true}}).heads(2, 2).dims(16, 16).type(f16).rpb(),
      Builder("circular_all_of_it", {{15, 15, 1, 1, 3, false, true}}).dims(16, 16).type(bf16),
      Builder("circular_2d", {{14, 5, 2, 1, 1, false, true}, {18, 6, 1, 3, 3, false, true}})
          .heads(2, 1)
          .dims(16, 16)
          .type(f16)
          .rpb(),
      Builder("circular_3d", {{6, 3}, {10, 5, 3, 2, 1, false, true}, {9, 4, 1, 1, 1, true}}).heads(2, 2).rpb(),
      Builder("circular_lengths", {{24, 5, 1, 2, 2, false, true}, {11, 3, 2}})
          .rpb()
          .lengths({{24, 11}, {12, 7}, {16, 3}, {0, 11}}),
      Builder("circular_halo", {{50, 7, 1, 1, 1, false, true}}).dims(16, 16).type(f16).rpb().spans({{0, 9, -3, 15}}),
      Builder("circular_halo_strided", {{60, 6, 4, 3, 1, false, true}}).rpb().spans({{41, 19, 30, 40}}),
      Builder("circular_turned", {{30, 9, 2, 1, 1, false, true}, {20, 4, 1, 2, 2, false, true}})
          .heads(2, 1)
          .dims(16, 16)
          .type(bf16)
          .rpb()
          .spans({{3, 25, -7, 30}, {0, 20, 6, 20}}),
      // Tokens that every query attends: less than a block of them, several chunks, one; in every kind of sweep.
      Builder("extra_1d", {{70, 7}}).batch(2).heads(2, 2).extra(3),
      Builder("extra_1d_f16", {{70, 7}}).batch(2).heads(4, 2).dims(16, 24).type(f16).extra(37),
      Builder("extra_2d_bf16", {{13, 5}, {19, 5}}).heads(2, 1).dims(40, 16).type(bf16).extra(300),
      Builder("extra_all", {{8, 3, 1, 2}, {7, 4, 2}, {9, 5, 1, 1, 3, true}})
          .heads(2, 1)
          .dims(12, 8)
          .rpb()
          .lengths({{8, 7, 9}, {6, 5, 5}, {9, 7, 9}})
          .extra(5),
      Builder("extra_rpb_f16", {{9, 3}, {12, 5, 2}}).heads(4, 2).dims(16, 16).type(f16).rpb().extra(70),
      Builder("extra_masked", {{70, 7}}).batch(2).heads(2, 1).masking_rpb().extra(2),
      Builder("extra_circular", {{14, 5, 2, 1, 1, false, true}, {18, 6, 1, 3, 3, false, true}})
          .heads(2, 1)
          .dims(16, 16)
          .type(f16)
          .extra(19),
      Builder("extra_span", {{30, 5, 1, 2}, {26, 4, 1, 1, 2}})
          .heads(2, 2)
          .dims(16, 8)
          .spans({{19, 11, 14, 16}, {20, 6, 17, 9}})
          .extra(11),
      Builder("extra_wide", {{9, 3}, {11, 4}}).dims(160, 136).type(f16).extra(33),
      Builder("extra_step", {{20, 5, 1, 1, 1, true}, {2, 2}, {6, 3, 3}})
          .heads(4, 2)
          .dims(24, 20)
          .rpb()
          .spans({{19, 1, 15, 5}, {0, 2, 0, 2}, {0, 6, 0, 6}})
          .extra(130),
      Builder("extra_heads_first", {{13, 5}, {15, 3}})
          .batch(2)
          .heads(3, 3)
          .type(f16)
          .layout(Layout::heads_first)
          .extra(9),
      Builder("extra_same_batch", {{31, 5}}).batch(3).heads(2, 2).layout(Layout::same_batch).extra(1),
      // Causal windows of which most keys never exist.
      Builder("causal_longer", {{21, 50, 1, 1, 1, true}}).dims(16, 16).type(f16),
      Builder("causal_longer_2d", {{4, 9, 1, 3, 2, true}, {13, 5}}).heads(2, 2).rpb(),
  };
}

std::vector<Case> warpgroup_cases() {
  constexpr FloatType f16 = FloatType::float16, bf16 = FloatType::bfloat16;
  return {
      Builder("boxes_1d", {{400, 150}}).heads(2, 1).dims(64, 64).type(f16),
      Builder("boxes_causal", {{300, 130, 1, 1, 1, true}}).dims(32, 48).type(bf16).lengths({{300}, {140}}),
      Builder("boxes_gna", {{512, 192, 1, 1, 256}}).dims(64, 64).type(f16),  // where nothing is masked
      Builder("boxes_2d", {{40, 9}, {20, 7}}).dims(64, 64).type(f16).scale(-0.2),
      Builder("boxes_dilated", {{36, 5, 2}, {44, 7, 1, 2}}).heads(2, 1).dims(32, 32).type(bf16),
      Builder("boxes_3d", {{10, 5}, {12, 5}, {14, 7}}).dims(64, 64).type(bf16),
      Builder("boxes_in_turns", {{300, 140}}).dims(128, 128).type(f16),
      // Queries in shared memory; in the third a warp copies more rows at once than are its own.
      Builder("boxes_long", {{300, 150}}).heads(2, 1).dims(256, 256).type(f16),
      Builder("boxes_long_2d", {{40, 9}, {20, 7, 1, 2}}).dims(192, 160).type(bf16).scale(-0.2),
      Builder("boxes_long_thin", {{300, 150}}).dims(144, 16).type(f16),
      Builder("boxes_long_strides", {{70, 6, 5, 3}, {40, 5, 2}}).dims(144, 48).type(f16),
      // Parts of axes, at borders and far from them, of single rows, and where whole axes would mask nothing.
      Builder("boxes_span_middle", {{300, 90}}).heads(4, 2).dims(64, 64).type(f16).spans({{100, 120, 50, 230}}),
      Builder("boxes_span_borders", {{40, 9}, {30, 7, 1, 2}})
          .dims(32, 48)
          .type(bf16)
          .spans({{0, 11, 0, 20}, {17, 13, 8, 22}}),
      Builder("boxes_span_row", {{9, 5}, {12, 5, 1, 1, 1, true}, {14, 4, 2}})
          .heads(2, 1)
          .dims(64, 64)
          .type(f16)
          .spans({{4, 1, 2, 5}, {3, 9, 0, 12}, {5, 6, 2, 12}}),
      Builder("boxes_span_gna", {{256, 128, 1, 1, 128}}).dims(64, 128).type(f16).spans({{37, 150, 0, 256}}),
      Builder("boxes_span_lengths", {{60, 9}, {40, 7, 1, 1, 1, true}})
          .dims(64, 64)
          .type(f16)
          .lengths({{60, 40}, {33, 20}, {60, 5}})
          .spans({{20, 20, 10, 40}, {10, 20, 3, 28}}),
      Builder("boxes_span_of_strides", {{70, 6, 5, 3}, {40, 5, 2}})
          .dims(80, 96)
          .type(bf16)
          .spans({{21, 30, 10, 50}, {7, 25, 4, 33}}),
      // Windows that go around: one turn, tiles that meet a row several times, seams where queries lie closer.
      Builder("boxes_circular", {{200, 70, 1, 1, 1, false, true}}).heads(4, 2).dims(64, 64).type(f16),
      Builder("boxes_circular_turns", {{20, 20, 1, 1, 4, false, true}, {24, 7, 1, 2, 1, false, true}})
          .dims(32, 48)
          .type(bf16),
      Builder("boxes_circular_3d", {{8, 5, 1, 1, 1, false, true}, {9, 3, 2, 3, 1, false, true}, {10, 5, 1, 1, 1, true}})
          .batch(2)
          .dims(80, 80)
          .type(f16),
      Builder("boxes_circular_gna", {{256, 128, 1, 1, 128, false, true}}).dims(64, 64).type(f16),
      Builder("boxes_circular_seam", {{40, 8, 3, 1, 1, false, true}}).heads(2, 1).dims(128, 128).type(f16),
      Builder("boxes_circular_lengths", {{48, 9, 1, 2, 2, false, true}, {21, 5, 1, 1, 1, false, true}})
          .dims(64, 64)
          .type(bf16)
          .scale(-0.3)
          .lengths({{48, 21}, {24, 10}, {20, 21}}),
      Builder("boxes_circular_span", {{60, 9, 2, 1, 1, false, true}, {40, 4, 1, 2, 2, false, true}})
          .heads(2, 1)
          .dims(64, 64)
          .type(f16)
          .spans({{3, 55, -7, 60}, {0, 40, 6, 40}}),
      // Biases: of one axis with heads that share keys, of three, at borders and with what stretches windows.
      Builder("boxes_bias_1d", {{300, 90, 1, 2}}).heads(4, 2).dims(64, 48).type(f16).rpb(),
      Builder("boxes_bias_2d", {{40, 9}, {20, 7}}).batch(2).heads(2, 1).dims(32, 32).type(bf16).rpb().scale(-0.2),
      Builder("boxes_bias_3d", {{7, 5}, {12, 3, 1, 2}, {10, 7}}).dims(64, 64).type(f16).rpb(),
      Builder("boxes_bias_causal", {{21, 6, 1, 1, 1, true}, {44, 7, 1, 2, 3}}).dims(72, 128).type(bf16).rpb().extra(70),
      Builder("boxes_bias_long", {{40, 12, 2, 1, 3}, {20, 6, 3}}).dims(192, 144).type(f16).rpb(),
      Builder("boxes_bias_masks", {{24, 7}, {20, 6}}).heads(3, 3).dims(64, 64).type(f16).masking_rpb(),
      Builder("boxes_bias_lengths", {{60, 9}, {40, 8}})
          .heads(2, 1)
          .dims(64, 64)
          .type(bf16)
          .rpb()
          .lengths({{60, 40}, {33, 20}, {60, 5}}),
      Builder("boxes_bias_circular", {{20, 20, 1, 1, 4, false, true}, {24, 7, 1, 2, 1, false, true}})
          .dims(96, 64)
          .type(f16)
          .rpb(),
      Builder("boxes_bias_span", {{9, 5}, {60, 9, 1, 1, 1, true}, {14, 4, 2}})
          .heads(2, 1)
          .dims(64, 64)
          .type(bf16)
          .rpb()
          .spans({{4, 3, 2, 7}, {3, 50, 0, 53}, {5, 6, 2, 12}}),
      Builder("boxes_circular_span_lengths", {{60, 7, 1, 1, 1, false, true}, {12, 5, 1, 1, 1, false, true}})
          .dims(32, 32)
          .type(f16)
          .lengths({{60, 12}, {48, 12}, {55, 9}})
          .spans({{10, 30, 5, 40}, {0, 12, 0, 12}}),
  };
}

}  // namespace natten::metal_host

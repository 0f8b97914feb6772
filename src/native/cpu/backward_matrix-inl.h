// The backward pass of bfloat16 on a matrix unit: all gradients of a task, from boxes of queries and keys as in the
// forward pass. Included once per SIMD target.
#if defined(NATTEN_NATIVE_CPU_BACKWARD_MATRIX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NATTEN_NATIVE_CPU_BACKWARD_MATRIX_INL_H_
#undef NATTEN_NATIVE_CPU_BACKWARD_MATRIX_INL_H_
#else
#define NATTEN_NATIVE_CPU_BACKWARD_MATRIX_INL_H_
#endif

#include <algorithm>
#include <limits>
#include <vector>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "native/cpu/backward.h"
#include "native/cpu/matrix_memory-inl.h"
#include "native/cpu/tile_extra-inl.h"
#include "native/cpu/tile_rows-inl.h"
#include "native/cpu/tile_softmax-inl.h"
#include "native/cpu/tuning.h"

#if HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace natten::cpu::HWY_NAMESPACE {

/// As BackwardSweep, P and dS rounded to bfloat16 for the gradients: dS = P (dP - delta), dq = scale dS K,
/// dk = scale dS^T Q, dv = P^T dout.
class MatrixBackward final : MatrixMemory {
 public:
  MatrixBackward(const backward::Pass& pass, const Task& task)
      : MatrixMemory(
            pass.inputs, task, pass.wanted(), kAxes - 1,
            {{&pass.inputs.key, pass.inputs.problem.head_dim}, {&pass.inputs.value, pass.inputs.problem.value_dim}},
            {&pass.inputs.key, pass.inputs.problem.head_dim}, sums_of(pass.gradients, pass.inputs.problem)),
        pass_(pass),
        scale_(static_cast<float>(p_.scale)),
        is_streamed_(p_.batch * p_.key_tokens() * p_.heads * dim_ * 2 >= tuning::kStreamBytes) {}

  /// False, with the task undone, where something is not finite, or it would take too much memory.
  bool run() {
    if (size_of(part_[0].keys) <= 0 || size_of(part_[1].keys) <= 0 || size_of(part_[2].keys) <= 0) return true;
    if (slide_axis() == 1 && size_of(part_[0].queries) > 1) return false;
    plan_memory();
    Operand* const operands[] = {&query_, &dout_};
    const std::int64_t dims[] = {dim_, value_dim_};
    const std::int64_t pitch = round_up(dim_, kMatrixTile), value_pitch = round_up(value_dim_, kMatrixTile);
    const auto take = [&](Scratch& scratch) {
      take_memory(scratch);
      for (int i = 0; i < 2; ++i) operands[i]->take(scratch, dims[i]);
      for (float*& scores : scores_) scores = scratch.take<float>(kVectors * kTileSize);
      for (char*& halfs : halfs_) halfs = scratch.take<char>(kVectors * kMatrixTile * 64);
      dquery_ = scratch.take<float>(kMatrixTile * pitch);
      for (float*& rows : out_rows_) rows = scratch.take<float>(kMatrixTile * value_pitch);
      lse_ = scratch.take<float>(kMatrixTile);
      delta_ = scratch.take<float>(kMatrixTile);
      if (pass_.extra.count() == 0) return;
      for (int i = 0; i < 2; ++i) {
        float_rows_[i] = scratch.take<float>(kMatrixTile * operands[i]->row);
        float_columns_[i] = scratch.take<float>(kMatrixTile * operands[i]->row);
      }
      dquery_t_ = scratch.take<float>(kMatrixTile * query_.row);
      extra_memory_ = scratch.take<float>(ExtraGradients::size());
    };
    if (Scratch::bytes_of(take) > kMatrixScratchBytes) return false;
    const Scratch memory(take);
    clear_memory();
    for (const Operand* operand : operands) std::fill_n(operand->pairs, kMatrixTile * operand->columns * 64, char{0});
    for (char* halfs : halfs_) std::fill_n(halfs, kVectors * kMatrixTile * 64, char{0});

    const MatrixRegisters registers(unit_);
    stored_ = slabs_start();
    for_each_band([&](const Span& q0s, const Span& q1s) {
      if (!is_finite_) return;
      const MatrixBand band = band_of(q0s, q1s);
      if (size_of(band.keys[0]) <= 0 || size_of(band.keys[1]) <= 0 || !pack(band)) return;
      for (const MatrixColumns& columns : columns_) {
        list_pairs(band, columns);
        const std::int64_t first = region_.task.kv_heads.start * heads_;
        for (std::int64_t head = first; head < first + heads_ && pairs_ > 0; ++head) run_tile(head, band, columns);
      }
    });
    if (is_finite_) store_slabs(slabs_end());
    if (is_streamed_) hwy::FlushStream();
    return is_finite_;
  }

 private:
  /// Queries, or gradients of results, of a tile.
  struct Operand {
    std::int64_t row, columns;
    std::uint16_t* raw;         ///< [query][channel]
    std::uint16_t* transposed;  ///< [channel / 2][query][channel % 2]
    char* pairs;                ///< [query / 2][channel][query % 2], and as many zeros

    void take(Scratch& scratch, std::int64_t dim) {
      row = round_up(dim, kMatrixStep);
      columns = columns_of(dim);
      raw = scratch.take<std::uint16_t>(kMatrixTile * row);
      transposed = scratch.take<std::uint16_t>(kMatrixTile * row);
      pairs = scratch.take<char>(kMatrixTile * columns * 64);
    }
    void arrange() const {
      transpose_in<false>(reinterpret_cast<const float*>(raw), row / 2, row / 2, 1.0f,
                          reinterpret_cast<float*>(transposed), kMatrixTile);
      const hn::Rebind<std::uint32_t, TileTag> d32;
      const hn::Rebind<std::uint16_t, TileTag> d16;
      for (std::int64_t q = 0; q < kMatrixTile; q += 2) {
        for (std::int64_t t = 0; t < columns; ++t) {
          const std::uint16_t* from = raw + q * row + t * kMatrixTile;
          const auto first = hn::PromoteTo(d32, hn::LoadU(d16, from)),
                     second = hn::PromoteTo(d32, hn::LoadU(d16, from + row));
          hn::Store(hn::Or(first, hn::ShiftLeft<16>(second)), d32,
                    reinterpret_cast<std::uint32_t*>(pairs + (q / 2 * columns + t) * 64));
        }
      }
    }
  };

  static std::vector<Packed> sums_of(const Gradients& gradients, const Problem& p) {
    if (!gradients.key) return {};
    return {{&*gradients.key, p.head_dim}, {&*gradients.value, p.value_dim}};
  }

  void run_tile(std::int64_t head, const MatrixBand& band, const MatrixColumns& columns) {
    if (!load_tile(head, band, columns)) return;
    const bool has_extra = pass_.gradients.query.has_value() && pass_.extra.count() > 0;
    if (has_extra) add_extra(head, band, columns);
    const std::int64_t kv_head = head / heads_;
    const Operand* const operands[] = {&query_, &dout_};
    for (std::int64_t first = 0; first < pairs_; first += tuning::kMatrixChunk) {
      const std::int64_t count = std::min<std::int64_t>(pairs_ - first, tuning::kMatrixChunk);
      for (int i = 0; i < 2; ++i) multiply_rows(i, kv_head, first, count, operands[i]->transposed, scores_[i]);
      finish_scores(first, count);
      if (pass_.gradients.query.has_value()) {
        first == 0 && !has_extra ? multiply_pairs<false>(kv_head, first, count, dquery_)
                                 : multiply_pairs<true>(kv_head, first, count, dquery_);
      }
      for (std::size_t i = 0; i < sums_over_queries_.size(); ++i) {  // dk, dv
        const Packed& sums = sums_over_queries_[i];
        const Operand& operand = *operands[i];
        multiply<true>(unit_, {halfs_[i], tile_offsets_.data(), &kFirst, 64, operand.pairs, line_offsets_.data(),
                               &kFirst, operand.columns * 64, 2 * count, operand.columns, 1,
                               reinterpret_cast<float*>(sums.memory), sums.offsets.data() + 2 * first, sums.pitch});
      }
    }
    if (pass_.gradients.query.has_value()) store_queries(head, band, columns);
  }

  /// False where something is not finite. Queries without a logit but -inf, and lanes without a query, get weights of
  /// 0.
  bool load_tile(std::int64_t head, const MatrixBand& band, const MatrixColumns& columns) {
    const TileTag d;
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    const std::int64_t pitch = round_up(value_dim_, kMatrixTile);
    hn::Store(hn::Set(d, kInfinity), d, lse_);
    hn::Store(hn::Zero(d), d, delta_);
    for (const Operand* operand : {&query_, &dout_})
      std::fill_n(operand->raw, kMatrixTile * operand->row, std::uint16_t{0});
    for_each_row(band, [&](std::int64_t lane, std::int64_t q0, std::int64_t q1) {
      const TensorRows dout = region_.out_rows(pass_.saved.dout, head, q0, q1, columns.query);
      copy_rows(region_.query_rows(inputs_.query, head, q0, q1, columns.query), columns.count, dim_, query_.row,
                query_.raw + lane * query_.row, query_.row);
      copy_rows(dout, columns.count, value_dim_, dout_.row, dout_.raw + lane * dout_.row, dout_.row);
      load_rows(dout, columns.count, value_dim_, out_rows_[0], pitch);
      load_rows(region_.out_rows(pass_.saved.out, head, q0, q1, columns.query), columns.count, value_dim_, out_rows_[1],
                pitch);
      region_.for_each_entry(p_, head, q0, q1, columns.query, columns.count, [&](int i, std::int64_t entry) {
        if (pass_.saved.lse[entry] == -kInfinity) {
          std::fill_n(query_.raw + (lane + i) * query_.row, query_.row, std::uint16_t{0});
          std::fill_n(dout_.raw + (lane + i) * dout_.row, dout_.row, std::uint16_t{0});
          return;
        }
        auto sum = hn::Zero(d);
        for (std::int64_t c = i * pitch; c < (i + 1) * pitch; c += kLanes) {
          sum = hn::MulAdd(hn::Load(d, out_rows_[0] + c), hn::Load(d, out_rows_[1] + c), sum);
        }
        lse_[lane + i] = pass_.saved.lse[entry] * kLog2E;
        delta_[lane + i] =
            hn::GetLane(hn::SumOfLanes(d, sum)) - (pass_.saved.dlse == nullptr ? 0.0f : pass_.saved.dlse[entry]);
      });
    });
    for (const Operand* operand : {&query_, &dout_}) {
      check(operand->raw, kMatrixTile * operand->row);
      operand->arrange();
    }
    return is_finite_;
  }

  /// Whether some bfloat16 are finite, a multiple of 32 of them. The exponent of one that is not carries over.
  HWY_INLINE void check(const std::uint16_t* from, std::int64_t count) {
    const hn::Repartition<std::uint16_t, TileTag> d;
    auto carry = hn::Zero(d);
    for (std::int64_t c = 0; c < count; c += 2 * kLanes) {
      carry = hn::Or(carry, hn::Add(hn::And(hn::LoadU(d, from + c), hn::Set(d, 0x7f80)), hn::Set(d, 0x0080)));
    }
    is_finite_ &= hn::AllTrue(d, hn::Eq(hn::And(carry, hn::Set(d, 0x8000)), hn::Zero(d)));
  }

  /// What the tile's gradients have of extra tokens, as float32: the first terms of dquery_, and these tokens' own.
  void add_extra(std::int64_t head, const MatrixBand& band, const MatrixColumns& columns) {
    const TileTag d;
    const Operand* const operands[] = {&query_, &dout_};
    const float factors[] = {scale_ * kLog2E, 1.0f};
    const std::int64_t dims[] = {dim_, value_dim_};
    for (int i = 0; i < 2; ++i) {
      const std::int64_t row = operands[i]->row, pitch = round_up(dims[i], kLanes);
      load_rows(reinterpret_cast<const BFloat*>(operands[i]->raw), row, kMatrixTile, dims[i], float_rows_[i], pitch);
      transpose_in(float_rows_[i], pitch, pitch, factors[i], float_columns_[i], kLanes);
    }
    const std::int64_t pitch = round_up(dim_, kLanes);
    scale_row(float_rows_[0], kMatrixTile * pitch, scale_);
    alignas(64) float is_owned[kMatrixTile] = {};
    for_each_row(band, [&](std::int64_t lane, std::int64_t q0, std::int64_t q1) {
      if (!contains(part_[0].owned_queries, q0) || !contains(part_[1].owned_queries, q1)) return;
      for (int i = 0; i < columns.count; ++i) {
        is_owned[lane + i] = contains(part_[2].owned_queries, columns.query + i) ? 1.0f : 0.0f;
      }
    });
    std::fill_n(dquery_t_, kMatrixTile * pitch, 0.0f);
    ExtraGradients{pass_.extra,   region_.task.plan->batch, head / heads_, dim_, value_dim_,
                   extra_memory_, region_.task.dextra}
        .add(float_columns_[0], float_columns_[1], float_rows_[0], float_rows_[1], lse_, delta_,
             hn::Gt(hn::Load(d, is_owned), hn::Zero(d)), dquery_t_);
    transpose_out(dquery_t_, pitch, 1.0f, dquery_, pitch);
  }

  /// From logits and dP of some pairs to P and dS, as rows of keys and as rows of queries.
  void finish_scores(std::int64_t first, std::int64_t count) {
    const TileTag d;
    const hn::Rebind<std::uint16_t, TileTag> d16;
    const hn::Rebind<std::int32_t, TileTag> d32;
    const auto scale = hn::Set(d, scale_ * kLog2E), lse = hn::Load(d, lse_), delta = hn::Load(d, delta_);
    const auto half = hn::Set(d32, 0x8000);
    const auto store_half = [&](TileVec x, char* to) __attribute__((always_inline)) {
      const auto bits =
          hn::ShiftRight<16>(hn::BitCast(hn::Rebind<std::uint32_t, TileTag>(), hn::Add(hn::BitCast(d32, x), half)));
      hn::Store(hn::DemoteTo(d16, hn::BitCast(d32, bits)), d16, reinterpret_cast<std::uint16_t*>(to));
    };
    for (std::int64_t pair = 0; pair < count; ++pair) {
      NATTEN_UNROLL
      for (int key = 0; key < kMatrixTile; ++key) {
        const auto dlogit = [&](int i) __attribute__((always_inline)) {
          const std::int64_t vector = 2 * pair + i, at = vector * kTileSize + key * kLanes;
          const auto mask = mask_of(2 * first + vector, key);
          const auto logit = hn::MulSub(hn::Load(d, scores_[0] + at), scale, lse);
          const auto weight = hn::IfThenElseZero(mask, exp2_float(logit));
          const auto result = hn::IfThenElseZero(mask, hn::Mul(weight, hn::Sub(hn::Load(d, scores_[1] + at), delta)));
          store_half(result, halfs_[0] + (vector * kMatrixTile + key) * 64);
          store_half(weight, halfs_[1] + (vector * kMatrixTile + key) * 64);
          return result;
        };
        const auto dlogit0 = dlogit(0), dlogit1 = dlogit(1);
        store_pairs(dlogit0, dlogit1, pair_buffer_ + key * kMatrixTile);
      }
      store_weights(pair);
    }
  }

  void store_queries(std::int64_t head, const MatrixBand& band, const MatrixColumns& columns) {
    const std::int64_t pitch = query_.columns * kMatrixTile;
    const Span owned{std::max(columns.query, part_[2].owned_queries.start),
                     std::min(columns.query + columns.count, part_[2].owned_queries.end)};
    if (size_of(owned) <= 0) return;
    for_each_row(band, [&](std::int64_t lane, std::int64_t q0, std::int64_t q1) {
      if (!contains(part_[0].owned_queries, q0) || !contains(part_[1].owned_queries, q1)) return;
      float* rows = dquery_ + (lane + owned.start - columns.query) * pitch;
      scale_row(rows, size_of(owned) * pitch, scale_);
      store_rows(rows, pitch, size_of(owned), dim_,
                 region_.query_rows(*pass_.gradients.query, head, q0, q1, owned.start), is_streamed_);
    });
  }

  void store_sums(std::int64_t k0, std::int64_t k1, std::int64_t place) override {
    const Span& owned = part_[2].owned_keys;
    for (std::size_t i = 0; i < sums_over_queries_.size(); ++i) {
      const Packed& sums = sums_over_queries_[i];
      const std::int64_t pitch = sums.pitch / 4;
      float* rows = reinterpret_cast<float*>(sums.memory) + (place + owned.start - part_[2].keys.start) * pitch;
      if (i == 0) scale_row(rows, size_of(owned) * pitch, scale_);
      store_rows(rows, pitch, size_of(owned), sums.dim,
                 region_.key_rows(*sums.tensor, region_.task.kv_heads.start, k0, k1, owned.start), is_streamed_);
    }
  }

  const backward::Pass& pass_;
  const float scale_;
  const bool is_streamed_;  ///< results are too large to stay in a cache
  Operand query_, dout_;
  float* scores_[2];  ///< tiles [key][query] of logits and dP
  char* halfs_[2];    ///< of dS and P, rows of 32 queries, half of them zero
  float *dquery_, *out_rows_[2], *lse_, *delta_;
  // Where there are extra tokens: queries and dout as rows and as columns, and what these tokens need besides.
  float *float_rows_[2], *float_columns_[2], *dquery_t_, *extra_memory_;
};

}  // namespace natten::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET == HWY_AVX3
#endif  // NATTEN_NATIVE_CPU_BACKWARD_MATRIX_INL_H_

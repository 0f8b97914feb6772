// Neighborhood attention by its definition, in double and by brute force: what CPU kernels and emulated GPU kernels are
// compared with. It shares no code with the library; windows come from the definition, not from
// src/definition/window.h.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "definition/problem.h"

namespace natten::oracle {

using Values = std::vector<double>;  ///< dense, canonical layout (problem.h)

struct Slot {
  std::int64_t key, slot, bias;  ///< token, slot of the split form, entry of the position bias
};
/// The keys of the query at token `query` of an axis that has `length` tokens in the sample, word by word from the
/// definition.
std::vector<Slot> keys_of(const Axis& axis, std::int64_t length, std::int64_t query);

/// Arrays of one call. Those that an operation does not have are empty.
struct Arrays {
  Values query, key, value, rpb;
  Values extra_key, extra_value;
  Values attn;                        ///< Op::av
  Values out, lse, delta;             ///< as given to the backward
  Values dout, dlse, dlogits;         ///< cotangents; without dlse it is 0
  Values partials;                    ///< of the gradient of rpb, [parts, like rpb]
  std::vector<std::int32_t> lengths;  ///< [B, 3]
};

struct Gradients {
  Values query, key, value, rpb, attn;
  Values extra_key, extra_value;
};

class Reference {
 public:
  Reference(const Problem& problem, const Arrays& arrays);

  Values out() const;
  Values lse() const;
  Values delta() const;  ///< rowsum(out * dout) - dlse, of the given arrays
  /// Of the fused form, from the given out and lse, like the kernels: the rounding of a stored half is no error of
  /// theirs.
  Gradients attention_gradients() const;

  Values logits() const;
  Gradients logits_gradients() const;
  Values weighted() const;  ///< attn times value
  Gradients weighted_gradients() const;

  /// Whether a row (over the canonical axes) of query, or of key, is not padding; likewise of results.
  bool is_query_token(std::int64_t batch, std::int64_t row) const;
  bool is_key(std::int64_t batch, std::int64_t row) const;
  bool is_query(std::int64_t batch, std::int64_t query) const;
  /// Whether the slot of a query holds a key.
  bool is_filled(std::int64_t batch, std::int64_t query, std::int64_t slot) const;

 private:
  struct Pair {
    std::int64_t key, slot, bias;  ///< flat row, flat slot, flat entry of one head's table
  };
  struct Row {               ///< one query of one sample
    std::int64_t token = 0;  ///< flat row of query
    bool inside = false;
    std::vector<Pair> pairs;
  };

  template <class Visit>
  void for_each_row(Visit visit) const;  // visit(batch, query, head, row)
  double dot(const Values& a, std::int64_t row_a, const Values& b, std::int64_t row_b, std::int64_t channels) const;
  double logit(const Row& row, const Pair& pair, std::int64_t batch, std::int64_t head) const;
  double extra_logit(const Row& row, std::int64_t token, std::int64_t batch, std::int64_t head) const;
  std::int64_t query_row(std::int64_t batch, std::int64_t token, std::int64_t head) const;
  std::int64_t key_row(std::int64_t batch, std::int64_t token, std::int64_t head) const;
  std::int64_t extra_row(std::int64_t batch, std::int64_t token, std::int64_t head) const;
  std::int64_t out_row(std::int64_t batch, std::int64_t query, std::int64_t head) const;
  bool is_inside(std::int64_t batch, std::int64_t row, bool keys) const;
  std::array<std::int64_t, 3> sample_lengths(std::int64_t batch) const;
  bool is_legal(std::int64_t batch) const;
  std::int64_t bias_entries() const;

  const Problem& p_;
  const Arrays& a_;
  std::vector<std::vector<Row>> rows_;  ///< [batch][query]
};

}  // namespace natten::oracle

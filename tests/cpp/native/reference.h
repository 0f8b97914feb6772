// Neighborhood attention by brute force in float64, written from its definition and sharing no code with the kernels:
// not even window.h.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/problem.h"

namespace natten::cpu::testing {

using Values = std::vector<double>;  ///< a dense array, shapes as in problem.h

struct Reference {
  Problem problem;
  Values query, key, value;
  Values rpb;                         ///< empty: none
  std::vector<std::int32_t> lengths;  ///< empty: none

  void attention(Values& out, Values& lse) const;
  /// From saved `out` and `lse`, like the kernels, so that the rounding of a stored half `out` is no error of theirs.
  void attention_backward(const Values& out, const Values& lse, const Values& dout, const Values& dlse, Values& dq,
                          Values& dk, Values& dv, Values& drpb) const;
  void qk(Values& logits) const;
  void qk_backward(const Values& dlogits, Values& dq, Values& dk, Values& drpb) const;
  void av(const Values& attn, Values& out) const;
  void av_backward(const Values& attn, const Values& dout, Values& dattn, Values& dv) const;

 private:
  struct Key {
    std::int64_t row;   ///< of key and value: ((b * L0 + t0) * L1 + t1) * L2 + t2, times kv_heads, plus kv head
    std::int64_t slot;  ///< in the kernel
    std::int64_t bias;  ///< in the table of all heads
  };
  struct Query {
    std::int64_t row;     ///< of query
    std::int64_t output;  ///< of out, lse, logits
    std::vector<Key> keys;
  };
  void for_each_query(const std::function<void(const Query&)>& visit) const;
};

}  // namespace natten::cpu::testing

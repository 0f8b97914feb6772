// Entry points of the CPU kernels. Free of MLX, so that they can be tested under ThreadSanitizer and emulated Arm.
// Every function blocks until done, splits its work over `ThreadPool`, writes every element of its outputs, reads
// nothing outside its inputs, and throws std::bad_alloc when scratch memory cannot be had. Results have the same bits
// for any number of threads. Shapes: problem.h. Sums are float32 whatever the storage types.
#pragma once

#include <cstdint>
#include <optional>

#include "definition/problem.h"

namespace natten::cpu {

/// A strided array [B, A0, A1, A2, H, C]; strides in elements, the last axis dense (stride 1). Broadcasts have stride
/// 0.
struct Tensor {
  void* data = nullptr;
  std::int64_t strides[5] = {};  ///< of B, A0, A1, A2, H
  FloatType type = FloatType::float32;

  /// Of keys in pieces (Problem::pieces, steps of decoding), whose strides of A2 are the same: `data` has rows [first,
  /// end) of an axis.
  struct Piece {
    void* data = nullptr;
    std::int64_t strides[5] = {};
  };
  int cut_axis = -1;
  std::int64_t first = 0, end = 0;
  Piece before{}, after{};
};

/// Inputs of every attention kernel. rpb is dense float32 [Hq, 2K0-1, 2K1-1, 2K2-1] or null; lengths is dense int32
/// [B, 3] or null. A sample whose lengths are illegal (not least_length() <= L_b <= L on every axis) gives zeros.
struct AttentionInputs {
  Problem problem;
  Tensor query, key, value;
  const float* rpb = nullptr;
  const std::int32_t* lengths = nullptr;
  Tensor extra_key{}, extra_value{};  ///< of problem.extra_tokens
};

/// out [B, O0, O1, O2, Hq, Dv], lse dense float32 [B, O0, O1, O2, Hq].
void attention_forward(const AttentionInputs& inputs, const Tensor& out, float* lse);

/// What the backward pass reads besides the inputs; lse and dlse dense float32 [B, O0, O1, O2, Hq].
struct SavedForward {
  Tensor out;
  const float* lse = nullptr;
  Tensor dout;
  const float* dlse = nullptr;  ///< null: zero
};

/// Those that are wanted. query, key and value like the inputs, rpb dense float32 or null; those of key and value come
/// together; extra, of extra_key and of extra_value, with all others, or null.
struct Gradients {
  std::optional<Tensor> query{};
  float* rpb = nullptr;
  std::optional<Tensor> key{}, value{};
  const Tensor* extra = nullptr;
};
/// One sweep computes all that are wanted, and the logits once.
void attention_backward(const AttentionInputs& inputs, const SavedForward& saved, const Gradients& gradients);

// Split form. logits, attn and their gradients are [B, O0, O1, O2, Hq, K0*K1*K2]; docs/concepts.md says which key is in
// which slot. Empty slots of `logits` are -inf, of `dattn` 0, and the values of `attn` and `dlogits` there are ignored.
void qk(const AttentionInputs& inputs, const Tensor& logits);
void qk_backward_query(const AttentionInputs& inputs, const Tensor& dlogits, const Tensor& dq, float* drpb);
void qk_backward_key(const AttentionInputs& inputs, const Tensor& dlogits, const Tensor& dk);
void av(const AttentionInputs& inputs, const Tensor& attn, const Tensor& out);
void av_backward_attn(const AttentionInputs& inputs, const Tensor& dout, const Tensor& dattn);
void av_backward_value(const AttentionInputs& inputs, const Tensor& attn, const Tensor& dout, const Tensor& dv);

}  // namespace natten::cpu

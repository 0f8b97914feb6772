// The CPU kernels as MLX primitives.
#pragma once

#include <memory>
#include <vector>

#include "definition/problem.h"
#include "mlx/array.h"
#include "mlx/primitives.h"

namespace natten::cpu {

namespace mx = mlx::core;

enum class Kernel {
  attention_forward,             ///< (query, key, value, rpb?, lengths?) -> out, lse
  attention_backward_query,      ///< (.., out, lse, dout, dlse) -> dq [, drpb]
  attention_backward_key_value,  ///< (.., out, lse, dout, dlse) -> dk, dv
  attention_backward,            ///< (.., out, lse, dout, dlse) -> dq [, drpb], dk, dv
  qk,                            ///< (query, key, rpb?, lengths?) -> logits
  qk_backward_query,             ///< (.., dlogits) -> dq [, drpb]
  qk_backward_key,               ///< (.., dlogits) -> dk
  av,                            ///< (attn, value, lengths?) -> out
  av_backward_attn,              ///< (.., dout) -> dattn
  av_backward_value,             ///< (.., dout) -> dv
};

/// The outputs of one kernel. Inputs are canonical arrays in the order above, in any layout.
std::vector<mx::array> run_kernel(Kernel kernel, const Problem& problem, std::vector<mx::array> inputs, mx::Stream s);

}  // namespace natten::cpu

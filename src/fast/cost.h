// What a kernel costs, computed from its plan: for `explain`, and for comparing designs without a GPU.
#pragma once

#include <string>

#include "fast/kernel_source.h"

namespace natten::fast {

/// Full lengths are assumed where samples may be shorter.
struct Cost {
  KernelId kernel = KernelId::forward;
  double loaded = 0;        ///< bytes from device memory or caches, each counted once for every tile that loads it
  double stored = 0;        ///< bytes
  double compulsory = 0;    ///< bytes of all inputs and outputs, once
  double useful_flops = 0;  ///< multiplications and additions of the products, of pairs that attend each other
  double flops = 0;         ///< executed, with overhang, neighbours that share a thread, and padded batches

  double traffic() const { return (loaded + stored) / compulsory; }
  double waste() const { return flops / useful_flops; }
};

Cost cost(const Problem& problem, KernelId kernel, Platform platform);

/// One line.
std::string describe(const Cost& cost);

}  // namespace natten::fast

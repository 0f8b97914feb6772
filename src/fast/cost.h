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
  double useful_pairs = 0;  ///< queries times the keys that they attend, over heads and samples
  double pairs = 0;       ///< computed: also for positions past the end, for what only a neighbour in the thread or in
                          ///< the simdgroup meets, and to fill batches; on matrix units at most so many
  double flops = 0;       ///< multiplications and additions of the products of these pairs
  double unit_flops = 0;  ///< those that matrix units do, channels up to the multiple that they take included
  double threadgroup_reads = 0;  ///< bytes of streamed rows that threads, or matrix units, read of threadgroup memory

  double traffic() const { return (loaded + stored) / compulsory; }
  double waste() const { return pairs / useful_pairs; }
};

Cost cost(const Problem& problem, KernelId kernel, Target target);

/// One line.
std::string describe(const Cost& cost);

}  // namespace natten::fast

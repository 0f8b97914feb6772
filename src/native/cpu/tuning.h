// Every tuning number of the CPU kernels, each with the measurement that chose it. Percentages are of one core's FMA
// peak, measured in the same run.
#pragma once

namespace natten::cpu::tuning {

/// Loops below this many floating-point operations run on the calling thread.
inline constexpr double kSerialFlops = 4e6;

/// Queries (or keys) of one work item of the generic kernels.
inline constexpr int kGenericItem = 64;

/// Work items over which the gradient of the position bias is summed separately, all heads together.
inline constexpr int kBiasGradientParts = 64;

}  // namespace natten::cpu::tuning

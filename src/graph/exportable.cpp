#include "graph/exportable.h"

#include <stdexcept>

#include "mlx/ops.h"
#include "natten/tiers.h"

namespace natten {

namespace {

thread_local int depth = 0;

// MLX does not export the question. Its broadcasts take the other arrays as inputs in such a trace, to ask their
// shapes.
bool is_shapeless_trace() {
  const mx::Device cpu = mx::Device::cpu;
  return mx::broadcast_arrays({mx::zeros({2, 1}, cpu), mx::zeros({1, 2}, cpu)}, cpu)[0].inputs().size() > 1;
}

}  // namespace

void Exportable::enter() {
  ++depth;
}

void Exportable::leave() {
  --depth;
}

bool is_exporting() {
  return depth > 0;
}

void check_export_has_shapes() {
  if (!is_shapeless_trace()) return;
  throw std::invalid_argument(
      "[exportable] the windows of a call belong to its shapes: export it without shapeless=True");
}

}  // namespace natten

// Graphs that mx::export_function can write to a file (natten::Exportable).
#pragma once

namespace natten {

/// Whether this thread builds such a graph: it may hold MLX's own primitives only, without custom derivatives.
bool is_exporting();

/// Throws std::invalid_argument in a trace for any shape (shapeless=True), which such a graph could not refuse later.
void check_export_has_shapes();

}  // namespace natten

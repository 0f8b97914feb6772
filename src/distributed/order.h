// One order of communication on all ranks. Evaluation is lazy, and MLX orders independent nodes by the graph around
// them, which may differ between ranks; so each node of a group comes after the one made before it.
#pragma once

#include <vector>

#include "mlx/array.h"
#include "mlx/distributed/distributed.h"

namespace natten::distributed {

namespace mx = mlx::core;

/// The node after which the next communication of `group` in this thread must come, none or one. `inputs` are what it
/// communicates: they tell the trace (of compile, vmap) that it is made in, which must not refer to nodes outside it.
std::vector<mx::array> previous(const mx::distributed::Group& group, const std::vector<mx::array>& inputs);

/// Makes `done` the node that `previous` gives next. `inputs` as before.
void set_previous(const mx::distributed::Group& group, const std::vector<mx::array>& inputs, const mx::array& done);

/// Forgets the nodes of this thread, and with them the graphs that they keep. At the end of a program whose graphs hold
/// functions of another language, before that language's runtime goes.
void forget_order();

}  // namespace natten::distributed

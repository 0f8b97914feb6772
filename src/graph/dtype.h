// Types and shapes of MLX arrays, in the words of a Problem and of messages.
#pragma once

#include <string>

#include "definition/problem.h"
#include "mlx/array.h"
#include "mlx/dtype.h"

namespace natten {

namespace mx = mlx::core;

std::string to_string(const mx::Shape& shape);
/// Name of a dtype as MLX prints it.
std::string to_string(mx::Dtype dtype);
FloatType float_type(mx::Dtype dtype);
mx::Dtype to_dtype(FloatType type);

}  // namespace natten

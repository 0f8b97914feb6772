#include "graph/dtype.h"

#include <sstream>

#include "mlx/utils.h"

namespace natten {

std::string to_string(const mx::Shape& shape) {
  std::string result = "(";
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    result += (axis ? ", " : "") + std::to_string(shape[axis]);
  }
  return result + (shape.size() == 1 ? ",)" : ")");
}

std::string to_string(mx::Dtype dtype) {
  std::ostringstream text;
  text << dtype;
  return text.str();
}

FloatType float_type(mx::Dtype dtype) {
  if (dtype == mx::float16) return FloatType::float16;
  if (dtype == mx::bfloat16) return FloatType::bfloat16;
  return dtype == mx::float64 ? FloatType::float64 : FloatType::float32;
}

mx::Dtype to_dtype(FloatType type) {
  const mx::Dtype types[] = {mx::float16, mx::bfloat16, mx::float32, mx::float64};  // in the order of FloatType
  return types[static_cast<int>(type)];
}

}  // namespace natten

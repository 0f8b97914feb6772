#include "graph/dtype.h"

namespace natten {

std::string to_string(const mx::Shape& shape) {
  std::string result = "(";
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    result += (axis ? ", " : "") + std::to_string(shape[axis]);
  }
  return result + (shape.size() == 1 ? ",)" : ")");
}

std::string to_string(mx::Dtype dtype) {
  switch (dtype.val()) {
    case mx::Dtype::Val::bool_:
      return "bool";
    case mx::Dtype::Val::uint8:
      return "uint8";
    case mx::Dtype::Val::uint16:
      return "uint16";
    case mx::Dtype::Val::uint32:
      return "uint32";
    case mx::Dtype::Val::uint64:
      return "uint64";
    case mx::Dtype::Val::int8:
      return "int8";
    case mx::Dtype::Val::int16:
      return "int16";
    case mx::Dtype::Val::int32:
      return "int32";
    case mx::Dtype::Val::int64:
      return "int64";
    case mx::Dtype::Val::float16:
      return "float16";
    case mx::Dtype::Val::float32:
      return "float32";
    case mx::Dtype::Val::float64:
      return "float64";
    case mx::Dtype::Val::bfloat16:
      return "bfloat16";
    case mx::Dtype::Val::complex64:
      return "complex64";
  }
  return "unknown";
}

FloatType float_type(mx::Dtype dtype) {
  if (dtype == mx::float16) return FloatType::float16;
  if (dtype == mx::bfloat16) return FloatType::bfloat16;
  return dtype == mx::float64 ? FloatType::float64 : FloatType::float32;
}

mx::Dtype to_dtype(FloatType type) {
  switch (type) {
    case FloatType::float16:
      return mx::float16;
    case FloatType::bfloat16:
      return mx::bfloat16;
    case FloatType::float64:
      return mx::float64;
    default:
      return mx::float32;
  }
}

}  // namespace natten

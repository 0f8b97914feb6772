#include "arguments.h"

#include <nanobind/stl/string.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

namespace natten::bindings {

namespace {

std::string type_of(nb::handle object) {
  return nb::cast<std::string>(nb::object(object.type().attr("__name__")));
}

bool is_bool(nb::handle object) {
  if (PyLong_CheckExact(object.ptr())) return false;  // soon said of the most frequent arguments
  // numpy.bool_ up to numpy 1, numpy.bool from 2 on; both compare equal to a Python bool.
  return PyBool_Check(object.ptr()) || (type_of(object).rfind("bool", 0) == 0 && nb::hasattr(object, "__array__"));
}

bool to_bool(const Caller& caller, const char* name, nb::handle object) {
  if (!is_bool(object)) {
    fail(caller, std::string(name) + " values must be bool, got " + text_of(object) + " (" + type_of(object) + ")");
  }
  return PyObject_IsTrue(object.ptr()) == 1;
}

bool is_sequence(nb::handle object) {
  if (!PySequence_Check(object.ptr()) || PyUnicode_Check(object.ptr()) || PyBytes_Check(object.ptr())) return false;
  if (PySequence_Size(object.ptr()) >= 0) return true;
  PyErr_Clear();  // of an array without axes
  return false;
}

// What is no scalar must be a sequence of them.
template <class T, class Convert>
std::vector<T> to_values(const Caller& caller, const char* name, const char* type, nb::handle object, Convert convert) {
  if (!is_sequence(object)) {
    fail(caller, std::string(name) + " values must be " + type + " or a sequence of " + type + ", got " +
                     text_of(object) + " (" + type_of(object) + ")");
  }
  std::vector<T> values;
  for (nb::handle item : nb::borrow(object)) values.push_back(convert(item));
  return values;
}

// A scalar is what `is_scalar` says.
template <class T, class Convert>
PerAxis<T> to_per_axis(const Caller& caller, const char* name, const char* type, nb::handle object, bool is_scalar,
                       Convert convert) {
  if (is_scalar) return PerAxis<T>(convert(object));
  return PerAxis<T>(to_values<T>(caller, name, type, object, convert));
}

// A numpy array with axes answers to __index__ only when it has one element; it is a sequence all the same.
bool is_integer_scalar(nb::handle object) {
  return is_bool(object) || (PyIndex_Check(object.ptr()) && !is_sequence(object));
}

}  // namespace

std::string text_of(nb::handle object) {
  constexpr std::size_t kLongest = 100;
  std::string text;
  try {
    text = nb::cast<std::string>(nb::repr(object));
  } catch (const nb::python_error&) {
    return "a value that is not known in a trace";  // what else has no repr
  }
  std::size_t end = std::min(text.size(), kLongest);
  while (end < text.size() && (text[end] & 0xC0) == 0x80) --end;  // not inside a character of UTF-8
  return end < text.size() ? text.substr(0, end) + "..." : text;
}

const mx::array& to_array(const Caller& caller, const char* name, nb::handle object) {
  if (!nb::isinstance<mx::array>(object)) {
    fail(caller, std::string(name) + " must be an mlx.core.array, got " + type_of(object));
  }
  return *nb::inst_ptr<mx::array>(object);
}

std::optional<mx::array> to_optional_array(const Caller& caller, const char* name, nb::handle object) {
  return object.is_none() ? std::nullopt : std::optional<mx::array>(to_array(caller, name, object));
}

std::int64_t to_integer(const Caller& caller, const char* name, nb::handle object) {
  if (is_bool(object) || !PyIndex_Check(object.ptr())) {
    fail(caller, std::string(name) + " values must be int, got " + text_of(object) + " (" + type_of(object) + ")");
  }
  const nb::object index = nb::steal(PyNumber_Index(object.ptr()));
  if (!index.is_valid()) {
    PyErr_Clear();
    fail(caller, std::string(name) + " values must be int, got " + text_of(object) + " (" + type_of(object) + ")");
  }
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
  if (overflow < 0) fail(caller, std::string(name) + " values must be positive, got " + text_of(object));
  if (overflow > 0) fail(caller, std::string(name) + " values must be int of at most 64 bits, got " + text_of(object));
  return value;
}

std::vector<mx::array> to_arrays(const Caller& caller, const char* name, nb::handle object) {
  if (!is_sequence(object)) {
    fail(caller, std::string(name) + " must be a sequence of mlx.core.array, got " + type_of(object));
  }
  std::vector<mx::array> arrays;
  for (nb::handle item : nb::borrow(object)) arrays.push_back(to_array(caller, name, item));
  return arrays;
}

PerAxis<std::int64_t> to_integers(const Caller& caller, const char* name, nb::handle object) {
  return to_per_axis<std::int64_t>(caller, name, "int", object, is_integer_scalar(object),
                                   [&](nb::handle item) { return to_integer(caller, name, item); });
}

PerAxis<bool> to_bools(const Caller& caller, const char* name, nb::handle object) {
  return to_per_axis<bool>(caller, name, "bool", object, is_bool(object),
                           [&](nb::handle item) { return to_bool(caller, name, item); });
}

Neighborhood to_neighborhood(const Caller& caller, nb::handle kernel_size, nb::handle stride, nb::handle dilation,
                             nb::handle is_causal, nb::handle gna_stride, nb::handle is_circular) {
  return {to_integers(caller, "kernel_size", kernel_size), to_integers(caller, "stride", stride),
          to_integers(caller, "dilation", dilation),       to_bools(caller, "is_causal", is_causal),
          to_integers(caller, "gna_stride", gna_stride),   to_bools(caller, "is_circular", is_circular)};
}

std::optional<PerAxis<std::int64_t>> to_optional_integers(const Caller& caller, const char* name, nb::handle object) {
  return object.is_none() ? std::nullopt : std::optional(to_integers(caller, name, object));
}

bool to_flag(const Caller& caller, const char* name, nb::handle object) {
  if (!is_bool(object)) {
    fail(caller, std::string(name) + " must be bool, got " + text_of(object) + " (" + type_of(object) + ")");
  }
  return PyObject_IsTrue(object.ptr()) == 1;
}

std::optional<double> to_number(nb::handle object) {
  if (is_bool(object)) return std::nullopt;
  const double value = PyFloat_AsDouble(object.ptr());
  if (value != -1.0 || !PyErr_Occurred()) return value;
  PyErr_Clear();
  return std::nullopt;
}

std::optional<Scale> to_scale(const Caller& caller, nb::handle object) {
  if (object.is_none()) return std::nullopt;
  if (nb::isinstance<mx::array>(object)) return Scale(*nb::inst_ptr<mx::array>(object));
  const std::optional<double> value = to_number(object);
  if (!value) {
    fail(caller,
         "scale must be a number, an mlx.core.array or None, got " + text_of(object) + " (" + type_of(object) + ")");
  }
  return Scale(*value);
}

mx::StreamOrDevice to_stream_or_device(const Caller& caller, nb::handle object) {
  if (object.is_none()) return {};
  if (nb::isinstance<mx::Stream>(object)) return nb::cast<mx::Stream>(object);
  if (nb::isinstance<mx::Device>(object)) return nb::cast<mx::Device>(object);
  if (nb::isinstance<mx::Device::DeviceType>(object)) return nb::cast<mx::Device::DeviceType>(object);
  if (nb::isinstance<mx::ThreadLocalStream>(object)) return nb::cast<mx::ThreadLocalStream>(object);
  fail(caller, "stream must be None, an mlx.core.Stream or an mlx.core.Device, got " + type_of(object));
}

mx::Dtype to_dtype(const Caller& caller, nb::handle object) {
  if (object.is_none()) return mx::float32;
  if (nb::isinstance<mx::Dtype>(object)) return nb::cast<mx::Dtype>(object);
  fail(caller, "dtype must be an mlx.core.Dtype such as mlx.core.float16, got " + text_of(object) + " (" +
                   type_of(object) + ")");
}

mx::Shape to_shape(const Caller& caller, const char* name, nb::handle object) {
  const auto to_dimension = [&](nb::handle item) { return to_integer(caller, name, item); };
  const std::vector<std::int64_t> values = is_integer_scalar(object)
                                               ? std::vector{to_dimension(object)}
                                               : to_values<std::int64_t>(caller, name, "int", object, to_dimension);
  mx::Shape shape;
  for (const std::int64_t value : values) {
    if (value < 0 || value > std::numeric_limits<mx::ShapeElem>::max()) {
      fail(caller, std::string(name) + " must hold dimensions from 0 to 2^31 - 1, got " + text_of(object));
    }
    shape.push_back(static_cast<mx::ShapeElem>(value));
  }
  return shape;
}

}  // namespace natten::bindings

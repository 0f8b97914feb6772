#include "distributed/agreement.h"

#include <algorithm>
#include <bit>

#include "distributed/ring_collectives.h"
#include "mlx/transforms.h"

namespace natten::distributed {

namespace {

constexpr std::size_t kMostAxes = 8;

}  // namespace

std::string Arguments::text_of(const Field& field, const std::int64_t* numbers) {
  const auto count = std::min(static_cast<std::size_t>(numbers[0]), field.capacity);
  std::string text;
  for (std::size_t i = 0; i < count; ++i) {
    const std::int64_t number = numbers[1 + i];
    text += i > 0 ? ", " : "";
    text += field.kind == Kind::dtype    ? to_string(mx::Dtype(static_cast<mx::Dtype::Val>(number), 0))
            : field.kind == Kind::number ? std::to_string(std::bit_cast<double>(number))
                                         : std::to_string(number);
  }
  return count == 0 ? "none" : count == 1 ? text : "(" + text + ")";
}

// A count, then so many numbers.
void Arguments::add(const std::string& name, const std::vector<std::int64_t>& values, std::size_t capacity) {
  fields_.push_back({name, numbers_.size(), capacity});
  numbers_.push_back(static_cast<std::int64_t>(values.size()));
  for (std::size_t i = 0; i < capacity; ++i) numbers_.push_back(i < values.size() ? values[i] : 0);
}

void Arguments::add_number(const std::string& name, std::optional<double> value) {
  add(name, value ? std::vector{std::bit_cast<std::int64_t>(*value)} : std::vector<std::int64_t>{}, 1);
  fields_.back().kind = Kind::number;
}

void Arguments::add_array(const std::string& name, const std::optional<Spec>& array, int free_axis) {
  std::vector<std::int64_t> shape, type;
  if (array) {
    shape.assign(array->shape.begin(), array->shape.end());
    if (free_axis >= 0 && free_axis < static_cast<int>(shape.size())) shape[free_axis] = -1;  // ranks may differ
    type = {static_cast<std::int64_t>(mx::Dtype::Val(array->dtype))};
  }
  add("the shape of " + name, shape, kMostAxes);
  add("the dtype of " + name, type, 1);
  fields_.back().kind = Kind::dtype;
}

std::vector<std::int64_t> agree(const Caller& caller, const Arguments& arguments, std::int64_t rows, const Group& group,
                                mx::StreamOrDevice s) {
  std::vector<std::int64_t> own = arguments.numbers_;
  own.push_back(rows);
  const int count = static_cast<int>(own.size()), ranks = group.size();
  mx::array all = all_gather(mx::array(own.data(), {1, count}, mx::int64), group, mx::to_stream(s));
  mx::eval(all);
  const auto row = [&](int rank) { return all.data<std::int64_t>() + static_cast<std::ptrdiff_t>(rank) * count; };
  for (const Arguments::Field& field : arguments.fields_) {
    for (int rank = 1; rank < ranks; ++rank) {
      const std::int64_t *first = row(0) + field.start, *other = row(rank) + field.start;
      if (std::equal(first, first + field.capacity + 1, other)) continue;
      fail(caller, "all ranks must share " + field.name + ", got " + Arguments::text_of(field, first) +
                       " on rank 0 and " + Arguments::text_of(field, other) + " on rank " + std::to_string(rank));
    }
  }
  std::vector<std::int64_t> result;
  for (int rank = 0; rank < ranks; ++rank) result.push_back(row(rank)[count - 1]);
  return result;
}

}  // namespace natten::distributed

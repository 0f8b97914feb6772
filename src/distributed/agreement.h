// Arguments that all ranks of a call must share, compared before any message depends on them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "distributed/transport.h"
#include "ops/validate.h"

namespace natten::distributed {

/// What one rank was called with, as integers that every rank lays out alike.
class Arguments {
 public:
  void add(const std::string& name, const std::vector<std::int64_t>& values, std::size_t capacity);
  void add_number(const std::string& name, std::optional<double> value);
  void add_array(const std::string& name, const std::optional<Spec>& array, int free_axis = -1);

 private:
  friend std::vector<std::int64_t> agree(const Caller&, const Arguments&, std::int64_t, const Group&,
                                         mx::StreamOrDevice);
  enum class Kind : std::uint8_t { integers, number, dtype };
  struct Field {
    std::string name;
    std::size_t start, capacity;
    Kind kind = Kind::integers;
  };
  static std::string text_of(const Field& field, const std::int64_t* numbers);
  std::vector<Field> fields_;
  std::vector<std::int64_t> numbers_;
};

/// The rows that each rank holds. One gather, which waits for it: throws std::invalid_argument on every rank where they
/// do not share an argument.
std::vector<std::int64_t> agree(const Caller& caller, const Arguments& arguments, std::int64_t rows, const Group& group,
                                mx::StreamOrDevice s);

}  // namespace natten::distributed

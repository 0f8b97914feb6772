// FNV-1a: names things by their contents. Not against those who mean harm, and too short to be the only proof.
#pragma once

#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>

namespace natten::fast {

/// In hexadecimal digits.
inline std::string hash_of(std::string_view text) {
  std::uint64_t hash = 14695981039346656037u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  char digits[16];
  return {digits, std::to_chars(digits, digits + sizeof digits, hash, 16).ptr};
}

}  // namespace natten::fast

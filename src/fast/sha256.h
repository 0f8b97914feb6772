// SHA-256 (FIPS 180-4), to name files by their contents and to notice damage.
#pragma once

#include <string>
#include <string_view>

namespace natten::fast {

/// 64 hexadecimal digits.
std::string sha256(std::string_view bytes);

}  // namespace natten::fast

// Memory of large results of the compiled tier, kept from one call to the next: MLX's CPU allocator keeps nothing, and
// a block that malloc maps afresh costs a page fault for every 4 KiB.
#pragma once

#include <cstddef>

#include "mlx/allocator.h"

namespace natten {

/// Like mx::allocator::malloc, for an array's set_data(). Blocks of a MiB and more come back when the array dies, and
/// are advised for huge pages. Throws std::bad_alloc.
mlx::core::allocator::Data allocate_result(std::size_t bytes);

/// mx::allocator::malloc, whose memory MLX may donate. Gives back what is kept where memory is short; throws
/// std::bad_alloc.
mlx::core::allocator::Data allocate_owned(std::size_t bytes);

std::size_t result_cache_bytes();
void clear_result_cache();

/// Bytes that are kept at most: NATTEN_CACHE_LIMIT, otherwise an eighth of the machine's (or its container's) memory.
/// Throws std::invalid_argument for a bad NATTEN_CACHE_LIMIT.
std::size_t result_cache_limit();

}  // namespace natten

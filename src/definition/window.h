// Window arithmetic of neighborhood attention: which keys a query attends, and which queries attend a key.
//
// This is its only definition. Host C++, SIMD kernels, the Metal and CUDA kernels compiled at run time and the pure
// tier (whose positions are lazily evaluated MLX arrays) all include this file, so it holds templates over the
// integer type and uses nothing from the standard library.
//
// Letters as in the literature: an axis of L tokens with dilation d splits into d groups; token i is in group
// i mod d, at place i / d of it, and a group has n = ceil((L - group) / d) places. Inside a group there is no dilation,
// and every function below works in places. Definition: Neighborhood Attention (arXiv 2204.07143), dilation (arXiv
// 2209.15001), gna_stride: Generalized Neighborhood Attention (arXiv 2504.16922).
#pragma once

// Run-time compilers (Metal, NVRTC) define NATTEN_FN in their prelude.
#ifndef NATTEN_FN
#if defined(__CUDACC__)
#define NATTEN_FN __host__ __device__ inline
#else
#define NATTEN_FN constexpr inline
#endif
#endif

namespace natten {

/// One axis of a neighborhood. `Int` is a signed integer type.
template <class Int>
struct BasicAxis {
  Int length;       ///< tokens on the axis, L >= 1
  Int kernel_size;  ///< K >= 1; K * dilation <= length, on a causal axis any
  Int stride;       ///< query stride: only queries 0, s, 2s, ... are computed, 1 <= s <= K
  Int dilation;     ///< d >= 1
  Int gna_stride;   ///< queries that share their leader's window, 1 <= u <= K
  bool is_causal;   ///< keys after the query are not attended
  /// Windows wrap around instead of being shifted inside. Not causal; d divides L and u divides n = L / d.
  bool is_circular = false;
};

/// Half-open range of places, `[start, end)`.
template <class Pos>
struct Range {
  Pos start;
  Pos end;
};

// Integer operations of which `Pos` types that are not integers provide overloads.
template <class T>
NATTEN_FN T floor_div(T a, T b) {
  return a / b;  // operands are never negative here
}
template <class T>
NATTEN_FN T lesser(T a, T b) {
  return b < a ? b : a;
}
template <class T>
NATTEN_FN T greater(T a, T b) {
  return a < b ? b : a;
}

/// Number of computed queries on an axis: ceil(length / stride).
template <class Int>
NATTEN_FN Int output_length(Int length, Int stride) {
  return floor_div(length + stride - Int(1), stride);
}

/// The fewest tokens that an axis with these windows may have.
template <class Int>
NATTEN_FN Int least_length(BasicAxis<Int> axis) {
  return axis.is_causal ? Int(1) : axis.kernel_size * axis.dilation;
}

/// Number of places of dilation group `group`: ceil((length - group) / dilation).
template <class Pos>
NATTEN_FN Pos group_length(Pos length, Pos dilation, Pos group) {
  return floor_div(length - group + dilation - Pos(1), dilation);
}

/// Keys of the query at `place`, in a group of `n` places. Never empty; holds the query itself.
/// Exactly K keys when the axis is not causal, at most K when it is. On a circular axis the range is unwrapped: place j
/// of it is place j modulo n, from -n / 2 to below 3n / 2.
template <class Pos, class Int>
NATTEN_FN Range<Pos> window(BasicAxis<Int> axis, Pos place, Pos n) {
  const Pos width = Pos(axis.kernel_size);  // not `kernel`: a keyword in Metal
  const Pos share = Pos(axis.gna_stride);
  const Pos block = floor_div(place, share) * share;
  if (axis.is_causal) {
    const Pos leader = lesser(block + share - Pos(1), n - Pos(1));
    return Range<Pos>{greater(leader - width + Pos(1), Pos(0)), place + Pos(1)};
  }
  if (axis.is_circular) {  // the leader lies inside: u divides n
    const Pos first = block + Pos(axis.gna_stride / 2 - axis.kernel_size / 2);
    return Range<Pos>{first, first + width};
  }
  const Pos leader = lesser(block + Pos(axis.gna_stride / 2), n - Pos(1));
  const Pos start = lesser(greater(leader - Pos(axis.kernel_size / 2), Pos(0)), n - width);
  return Range<Pos>{start, start + width};
}

/// Queries whose window holds the key at `place`, for query stride 1. Contiguous and never empty.
/// With a query stride s, those of them count whose absolute index is a multiple of s. On a circular axis `place` may
/// be any place of an unwrapped window, and the range, of at most n places, is unwrapped the same way: the window of
/// query p + m * n holds `place` where that of query p holds place - m * n.
template <class Int>
NATTEN_FN Range<Int> attending_queries(BasicAxis<Int> axis, Int place, Int n) {
  const Int width = axis.kernel_size;
  const Int share = axis.gna_stride;
  if (axis.is_causal) {
    return Range<Int>{place, place + width >= n ? n : floor_div(place + width, share) * share};
  }
  const Int left = width / 2;
  const Int right = width / 2 + width % 2 - 1;
  if (axis.is_circular) {
    const Int turns = 2 * n;  // a multiple of u that keeps the dividends positive
    const Int first = floor_div(place - right - share / 2 + share - 1 + turns, share) * share;
    return Range<Int>{first - turns, floor_div(place + left - share / 2 + turns, share) * share + share - turns};
  }
  const Int offset = share - share / 2 - 1;
  return Range<Int>{place >= width ? floor_div(place - right + offset, share) * share : Int(0),
                    place >= n - width ? n : floor_div(place + left + offset + Int(1), share) * share};
}

/// Place of the key in `slot` (0 <= slot < K) of the split form. A causal slot is right-aligned: slot K-1 is the query
/// itself, and it is empty when the result is below `start`, the window's first place.
template <class Pos, class Int>
NATTEN_FN Pos key_in_slot(BasicAxis<Int> axis, Pos place, Pos start, Pos slot) {
  return axis.is_causal ? place - Pos(axis.kernel_size - 1) + slot : start + slot;
}

/// Slot of the key at `key_place`, the inverse of `key_in_slot`.
template <class Pos, class Int>
NATTEN_FN Pos slot_of_key(BasicAxis<Int> axis, Pos place, Pos start, Pos key_place) {
  return axis.is_causal ? key_place - place + Pos(axis.kernel_size - 1) : key_place - start;
}

/// Index on this axis of the relative position bias table, which has 2K - 1 entries.
template <class Pos, class Int>
NATTEN_FN Pos rpb_index(BasicAxis<Int> axis, Pos place, Pos key_place) {
  return key_place - place + Pos(axis.kernel_size - 1);
}

}  // namespace natten

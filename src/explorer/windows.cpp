// The window arithmetic for a page in a browser: one axis at a time, absolute token indices.
//
// scripts/build_explorer compiles this to WebAssembly, without a library; natten_mlx/explorer holds the result.
#include "definition/window.h"

namespace {

constexpr int kMostTokens = 4096;

natten::BasicAxis<int> axis{1, 1, 1, 1, 1, false, false};
int listed[kMostTokens];

int group_of(int token) {
  return token % axis.dilation;
}
int place_of(int token) {
  return token / axis.dilation;
}
int places_of(int token) {
  return natten::group_length(axis.length, axis.dilation, group_of(token));
}

/// Lists the tokens of a range of places in the group of `token`, of which every `stride`-th counts. The range may be
/// unwrapped, on a circular axis.
int list(int token, natten::Range<int> range, int stride) {
  int count = 0;
  for (int place = range.start; place < range.end; ++place) {
    const int found = (place * axis.dilation + group_of(token) + 2 * axis.length) % axis.length;
    if (found % stride == 0) listed[count++] = found;
  }
  return count;
}

}  // namespace

extern "C" {

/// Chooses the axis of the calls that follow. Returns whether such an axis exists; a kernel of 4096 tokens at most.
bool set_axis(int length, int kernel_size, int stride, int dilation, int gna_stride, bool is_causal, bool is_circular) {
  if (length < 1 || length > kMostTokens || kernel_size < 1 || kernel_size > kMostTokens || dilation < 1 ||
      dilation > kMostTokens || stride < 1 || stride > kernel_size || gna_stride < 1 || gna_stride > kernel_size ||
      (stride > 1 && gna_stride > 1)) {
    return false;
  }
  axis = {length, kernel_size, stride, dilation, gna_stride, is_causal, is_circular};
  if (length < natten::least_length(axis)) return false;
  return !is_circular || (!is_causal && length % dilation == 0 && length / dilation % gna_stride == 0);
}

/// Lists the keys of the query at `token`; returns how many.
int keys(int token) {
  return list(token, natten::window(axis, place_of(token), places_of(token)), 1);
}

/// Lists the computed queries that attend the key at `token`; returns how many.
int attending(int token) {
  return list(token, natten::attending_queries(axis, place_of(token), places_of(token)), axis.stride);
}

/// The query whose window `token` shares: the window of a kernel of 1 is its leader alone.
int leader(int token) {
  natten::BasicAxis<int> alone = axis;
  alone.kernel_size = 1;
  const natten::Range<int> range = natten::window(alone, place_of(token), places_of(token));
  return range.start * axis.dilation + group_of(token);
}

/// Where the lists are.
const int* list_address() {
  return listed;
}
}

// What the kernels share whose threads hold keys while the queries that attend them stream past: a gather over the
// inverse window, so every sum has one owner and one order.
namespace natten {

NATTEN_FN int query_place(const NA_THREAD Tile& tile, int a, int query) {
  return tile.groups[a].first_place + query * tile.axes[a].step;
}

/// Stores what is inside the sample, and 0 past its end.
template <int kChannels, int kSlices, class T>
NATTEN_FN void store_tokens(NA_DEVICE T* to, NA_THREAD float (&from)[NA_RUN][kSlices * NA_VECTOR],
                            const NA_THREAD Tile& tile, float factor) {
  NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
    if (!is_stored<false>(tile, r)) continue;
    finish(from[r], is_inside<false>(tile, r), factor);
    store_slices<kChannels, kSlices>(to + dense_row<false>(tile, r) * kChannels, from[r], tile.lane);
  }
}

}  // namespace natten

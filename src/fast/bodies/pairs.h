// A pair of a held item and the j-th streamed position of a batch, of which one is the query and the other the key: its
// entry of the relative position bias table, and its slot in the split form.
namespace natten {

struct Pair {
  int query[3];  ///< places
  int key[3];    ///< places of the query's window, on a circular axis unwrapped
};

template <bool kQueries>
NATTEN_FN Pair pair_of(const NA_THREAD Tile& tile, const NA_THREAD Items& items, Batch batch, int item, int j) {
  const int streamed[3] = {batch.p0, batch.p1, batch.x + j};
  Pair pair;
  NA_UNROLL for (int a = 0; a < 3; ++a) {
    if (kQueries) {
      pair.query[a] = items.place[item][a];
      pair.key[a] = key_place(tile, a, streamed[a]);
      continue;
    }
    const AxisGroup g = tile.groups[a];
    const int query = tile.axes[a].axis.is_circular ? wrapped(streamed[a], g.queries) : streamed[a];
    const int turns = query == streamed[a] ? 0 : (streamed[a] - query) / g.queries;
    pair.query[a] = query_place(tile, a, query);
    pair.key[a] = items.place[item][a] - turns * g.places;
  }
  return pair;
}

/// Entry of a head's bias table, per axis rpb_index().
NATTEN_FN int rpb_entry(const NA_THREAD Tile& tile, Pair pair) {
#if NA_HAS_EXTRA
  if (tile.is_extra) return 0;  // of what is read and dropped
#endif
  int entry = 0;
  NA_UNROLL for (int a = 0; a < 3; ++a) {
    entry = entry * (2 * NA_BY_AXIS(NA_KERNEL_SIZE, a) - 1) + rpb_index(tile.axes[a].axis, pair.query[a], pair.key[a]);
  }
  return entry;
}

/// Slot in the split form's last axis.
NATTEN_FN int pair_slot(const NA_THREAD Tile& tile, Pair pair) {
  int slot = 0;
  NA_UNROLL for (int a = 0; a < 3; ++a) {
    const BasicAxis<int> axis = tile.axes[a].axis;
    const int start = axis.is_causal ? 0 : window(axis, pair.query[a], tile.groups[a].places).start;
    slot = slot * NA_BY_AXIS(NA_KERNEL_SIZE, a) + slot_of_key(axis, pair.query[a], start, pair.key[a]);
  }
  return slot;
}

/// Adds the bias, times `factor`, to the logits of a batch.
template <int kCount, bool kMasked, class P>
NATTEN_FN void add_bias(NA_THREAD float (&logits)[NA_RUN][NA_BATCH], P rpb, const NA_THREAD Tile& tile,
                        const NA_THREAD Items& items, Batch batch, const NA_THREAD Mask& mask, float factor) {
#if NA_HAS_EXTRA
  if (tile.is_extra) return;
#endif
  NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
    const int entry = rpb_entry(tile, pair_of<true>(tile, items, batch, r, 0));
    NA_UNROLL for (int j = 0; j < kCount; ++j) {
      if (meets<kMasked>(mask, r, j)) logits[r][j] += factor * float(rpb[entry + j]);
    }
  }
}

}  // namespace natten

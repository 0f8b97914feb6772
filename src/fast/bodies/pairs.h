// Entries of the relative position bias table, and slots of the split form, of a query and a key.
namespace natten {

/// Entry of a head's bias table, per axis rpb_index().
NATTEN_FN int rpb_entry(const NA_THREAD Tile& tile, int q0, int q1, int q2, int k0, int k1, int k2) {
  const int i0 = rpb_index(tile.axes[0].axis, q0, k0);
  const int i1 = rpb_index(tile.axes[1].axis, q1, k1);
  const int i2 = rpb_index(tile.axes[2].axis, q2, k2);
  return (i0 * (2 * NA_KERNEL_SIZE_1 - 1) + i1) * (2 * NA_KERNEL_SIZE_2 - 1) + i2;
}

NATTEN_FN int slot_on_axis(const NA_THREAD Tile& tile, int a, int query_place, int key_place) {
  const BasicAxis<int> axis = tile.axes[a].axis;
  const int start = axis.is_causal ? 0 : window(axis, query_place, tile.groups[a].places).start;
  return slot_of_key(axis, query_place, start, key_place);
}

/// Slot of a (query, key) pair in the split form's last axis.
NATTEN_FN int pair_slot(const NA_THREAD Tile& tile, int q0, int q1, int q2, int k0, int k1, int k2) {
  return (slot_on_axis(tile, 0, q0, k0) * NA_KERNEL_SIZE_1 + slot_on_axis(tile, 1, q1, k1)) * NA_KERNEL_SIZE_2 +
         slot_on_axis(tile, 2, q2, k2);
}

/// Adds the bias, in powers of two, to the logits of a batch.
template <int kCount, bool kMasked, class P>
NATTEN_FN void add_bias(NA_THREAD float (&logits)[NA_RUN][NA_BATCH], P rpb, const NA_THREAD Tile& tile,
                        const NA_THREAD Items& items, Batch batch, const NA_THREAD Mask& mask, float factor) {
  NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
    const int entry =
        rpb_entry(tile, items.place[r][0], items.place[r][1], items.place[r][2], batch.p0, batch.p1, batch.x);
    NA_UNROLL for (int j = 0; j < kCount; ++j) {
      if (meets<kMasked>(mask, r, j)) logits[r][j] += factor * float(rpb[entry + j]);
    }
  }
}

}  // namespace natten

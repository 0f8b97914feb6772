// The gradient of the relative position bias. Without NA_BIAS_GRADIENT there is none, and all of this is nothing.
namespace natten {

/// Gradient of the bias table, summed over the tiles of a threadgroup, one after the other: a tile's logit gradients
/// are laid out by query and column of the chunk, row by row, and each table entry is then summed by one thread in a
/// fixed order.
struct BiasGradient {
  NA_THREADGROUP float* staged;  ///< [queries of the tile][NA_STAGE_COLUMNS]
  NA_DEVICE float* partial;      ///< this threadgroup's table
  int row;                       ///< of `staged`: the thread's first query; the next is `next` rows on
  int next;

  NATTEN_FN void begin(const NA_THREAD Tile& tile, NA_DEVICE float* partials, NA_THREADGROUP float* scratch) NA_THREAD {
    if (!NA_BIAS_GRADIENT) return;
    staged = scratch;
    partial = partials + (Offset(tile.at.group % tile.at.parts) * tile.at.heads + tile.at.head) * NA_RPB_SIZE;
    row = (tile.coordinate[0] * NA_EXTENT_1 + tile.coordinate[1]) * NA_EXTENT_2 + tile.coordinate[2];
    next = NA_RUN_AXIS == 1 ? NA_EXTENT_2 : 1;
    if (tile.at.group >= tile.at.parts) return;  // not its first tile
    for (int i = tile.at.thread_index; i < NA_RPB_SIZE; i += NA_THREADS) partial[i] = 0.0f;
    barrier_with_device_memory();
  }
  NATTEN_FN void begin_row(const NA_THREAD Tile& tile, Chunk chunk) NA_THREAD {
    if (!NA_BIAS_GRADIENT) return;
#if NA_HAS_EXTRA
    if (tile.is_extra) return;
#endif
    NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
      for (int i = tile.lane; i < chunk.columns; i += NA_LANES) staged[(row + r * next) * NA_STAGE_COLUMNS + i] = 0.0f;
    }
    barrier();
  }
  NATTEN_FN void stage(float gradient, const NA_THREAD Tile& tile, Batch batch, int item, int j) NA_THREAD {
#if NA_HAS_EXTRA
    if (tile.is_extra) return;
#endif
    if (NA_BIAS_GRADIENT && j % NA_LANES == tile.lane && is_inside<true>(tile, item)) {
      staged[(row + item * next) * NA_STAGE_COLUMNS + batch.x + j - batch.first_x] = gradient;
    }
  }
  NATTEN_FN void end_row(const NA_THREAD Tile& tile, Row at, Chunk chunk) NA_THREAD {
    if (!NA_BIAS_GRADIENT) return;
#if NA_HAS_EXTRA
    if (tile.is_extra) return;
#endif
    barrier();
    const AxisGroup g0 = tile.groups[0], g1 = tile.groups[1], g2 = tile.groups[2];
    const int queries = lesser(NA_EXTENT_2, g2.queries - tile.origin[2]);
    const int first_place = g2.first_place + tile.origin[2] * NA_STEP_2;
    const int last_place = first_place + (queries - 1) * NA_STEP_2;
    const int first_key = key_place(tile, 2, chunk.x), last_key = first_key + chunk.columns - 1;
    const int first_entry = greater(rpb_index(tile.axes[2].axis, last_place, first_key), 0);
    const int last_entry = lesser(rpb_index(tile.axes[2].axis, first_place, last_key), 2 * NA_KERNEL_SIZE_2 - 2);
    const int entries = last_entry - first_entry + 1;
    for (int i = tile.at.thread_index; i < NA_EXTENT_0 * NA_EXTENT_1 * entries; i += NA_THREADS) {
      const int line = i / entries;  // a row of queries on axis 2; all others have another place on axis 0 or 1
      const int entry = first_entry + i % entries;
      const int m0 = tile.origin[0] + line / NA_EXTENT_1, m1 = tile.origin[1] + line % NA_EXTENT_1;
      const int entry0 = rpb_index(tile.axes[0].axis, g0.first_place + m0 * NA_STEP_0, key_place(tile, 0, at.p0));
      const int entry1 = rpb_index(tile.axes[1].axis, g1.first_place + m1 * NA_STEP_1, key_place(tile, 1, at.p1));
      if (m0 >= g0.queries || m1 >= g1.queries || entry0 < 0 || entry0 > 2 * NA_KERNEL_SIZE_0 - 2 || entry1 < 0 ||
          entry1 > 2 * NA_KERNEL_SIZE_1 - 2) {
        continue;
      }
      float sum = 0.0f;
      for (int q = 0; q < queries; ++q) {
        const int column = first_place + q * NA_STEP_2 + entry - (NA_KERNEL_SIZE_2 - 1) - first_key;
        if (column >= 0 && column < chunk.columns) sum += staged[(line * NA_EXTENT_2 + q) * NA_STAGE_COLUMNS + column];
      }
      partial[(entry0 * (2 * NA_KERNEL_SIZE_1 - 1) + entry1) * (2 * NA_KERNEL_SIZE_2 - 1) + entry] += sum;
    }
    barrier_with_device_memory();
  }
};

}  // namespace natten

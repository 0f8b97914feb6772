// The main loop of every kernel: the region of a tile streams through threadgroup memory in chunks, and each thread
// takes from a chunk what its positions meet, NA_BATCH neighbours on axis 2 at a time.
namespace natten {

/// Streamed positions (p0, p1, x + j), j < NA_BATCH, or fewer at the end of a window.
struct Batch {
  int p0, p1, x;
  int slot;       ///< row in threadgroup memory of position x; j follows at slot + j
  int last_slot;  ///< of the chunk's row; only the chunk is read
  int first_x;    ///< of the chunk
};

/// Row of threadgroup memory of the j-th position. Outside the chunk any row will do: its result is dropped.
template <bool kMasked>
NATTEN_FN int slot_of(Batch batch, int j) {
  return kMasked ? lesser(batch.slot + j, batch.last_slot) : batch.slot + j;
}

/// Which positions of a batch an item meets, and whether any thread of the simdgroup has an item that meets one: the
/// first and the last rows of a region concern only some items of a run.
struct Mask {
  unsigned bits[NA_RUN];
  bool in_use[NA_RUN];
};

template <bool kMasked>
NATTEN_FN bool meets(const NA_THREAD Mask& mask, int item, int j) {
  return !kMasked || ((mask.bits[item] >> j) & 1u) != 0;
}

template <bool kMasked>
NATTEN_FN bool is_in_use(const NA_THREAD Mask& mask, int item) {
  return !kMasked || mask.in_use[item];
}

template <int kCount>
NATTEN_FN float dot(const NA_THREAD float (&a)[kCount], const NA_THREAD float (&b)[kCount]) {
  float sum = 0.0f;
  NA_UNROLL for (int i = 0; i < kCount; ++i) sum += a[i] * b[i];
  return sum;
}

template <int kCount>
NATTEN_FN void add_scaled(NA_THREAD float (&sum)[kCount], float factor, const NA_THREAD float (&x)[kCount]) {
  NA_UNROLL for (int i = 0; i < kCount; ++i) sum[i] += factor * x[i];
}

/// sums[item][j] = dot(held[item], streamed position j), complete on every lane.
template <int kCount, bool kMasked, int kHeld, class Stream>
NATTEN_FN void dot_batch(NA_THREAD float (&sums)[NA_RUN][NA_BATCH], const NA_THREAD float (&held)[NA_RUN][kHeld],
                         const NA_THREAD Stream& stream, Batch batch, const NA_THREAD Mask& mask, int lane) {
  NA_UNROLL for (int j = 0; j < kCount; ++j) {
    float x[kHeld];
    stream.read(x, slot_of<kMasked>(batch, j), lane);
    NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
      sums[r][j] = 0.0f;
      if (is_in_use<kMasked>(mask, r)) sums[r][j] = dot(held[r], x);
    }
  }
  NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
    if (!is_in_use<kMasked>(mask, r)) continue;
    NA_UNROLL for (int j = 0; j < kCount; ++j) sums[r][j] = sum_lanes(sums[r][j]);
  }
}

/// sums[item] += weights[item][j] * streamed position j, over what the item meets: a NaN elsewhere must not enter.
template <int kCount, bool kMasked, int kHeld, class Stream>
NATTEN_FN void add_batch(NA_THREAD float (&sums)[NA_RUN][kHeld], const NA_THREAD float (&weights)[NA_RUN][NA_BATCH],
                         const NA_THREAD Stream& stream, Batch batch, const NA_THREAD Mask& mask, int lane) {
  NA_UNROLL for (int j = 0; j < kCount; ++j) {
    float x[kHeld];
    stream.read(x, slot_of<kMasked>(batch, j), lane);
    NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
      if (meets<kMasked>(mask, r, j)) add_scaled(sums[r], weights[r][j], x);
    }
  }
}

template <class Body>
NATTEN_FN void sweep_row(NA_THREAD Body& body, const NA_THREAD Tile& tile, const NA_THREAD Items& items, Chunk chunk,
                         int row) {
  const Row at = row_of(tile, chunk.row + row);
  // On axis 2 an item meets [start, end); ranges only ever move right from item to item.
  const int x_end = chunk.x + chunk.columns;
  unsigned on_row = 0;
  NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
    const Range<int> on0 = items.met[r][0], on1 = items.met[r][1];
    const bool on = at.p0 >= on0.start && at.p0 < on0.end && at.p1 >= on1.start && at.p1 < on1.end;
    on_row |= on ? 1u << r : 0u;
  }
  const int start = greater(items.met[0][2].start, chunk.x);
  const int end = on_row != 0 ? lesser(items.met[NA_RUN - 1][2].end, x_end) : start;
  const int common_start = greater(items.met[NA_RUN - 1][2].start, chunk.x);
  const int common_end = on_row == (1u << NA_RUN) - 1 ? lesser(items.met[0][2].end, x_end) : start;
  const int first_slot = row * chunk.columns;
  Batch batch = {at.p0, at.p1, opaque(start), first_slot, first_slot + chunk.columns - 1, chunk.x};
  body.begin_row(tile, chunk);
  constexpr int kTail = NA_RUN_AXIS == 1 ? NA_KERNEL_SIZE_2 % NA_BATCH : 0;  // of a whole window
  // Threads of a simdgroup take every step together, because they exchange sums.
  for (; any_lane(batch.x < end); batch.x += NA_BATCH) {
    Mask mask;
    batch.slot = first_slot + batch.x - chunk.x;
    if (all_lanes(batch.x >= common_start && batch.x + NA_BATCH <= common_end)) {
      body.template batch<NA_BATCH, false>(tile, items, batch, mask);
    } else if (kTail > 0 && all_lanes(batch.x >= common_start && batch.x + kTail == end && end == common_end)) {
      body.template batch<(kTail > 0 ? kTail : NA_BATCH), false>(tile, items, batch, mask);
    } else {
      NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
        mask.bits[r] = 0;
        NA_UNROLL for (int j = 0; j < NA_BATCH; ++j) {
          const int x = batch.x + j;
          const bool on = x >= items.met[r][2].start && x < lesser(items.met[r][2].end, x_end);
          mask.bits[r] |= on && ((on_row >> r) & 1u) != 0 ? 1u << j : 0u;
        }
        mask.in_use[r] = any_lane(mask.bits[r] != 0);
      }
      body.template batch<NA_BATCH, true>(tile, items, batch, mask);
    }
  }
  body.end_row(tile, at, chunk);
}

/// Body: load(tile, chunk), batch<kCount, kMasked>(tile, items, batch, mask), begin_row(...), end_row(...).
template <class Body>
NATTEN_FN void sweep(NA_THREAD Body& body, const NA_THREAD Tile& tile, const NA_THREAD Items& items) {
  const Range<int> columns = tile.region[2];
  const int width = lesser(columns.end - columns.start, NA_CHUNK);
  const int rows = (tile.region[0].end - tile.region[0].start) * (tile.region[1].end - tile.region[1].start);
  const int rows_at_once = NA_CHUNK / width;
  for (int row = 0; row < rows; row += rows_at_once) {
    for (int x = columns.start; x < columns.end; x += width) {
      const Chunk chunk = {row, lesser(rows_at_once, rows - row), x, lesser(width, columns.end - x)};
      barrier();  // all have read the previous chunk
      body.load(tile, chunk);
      wait_for_copies();
      barrier();
      for (int i = 0; i < chunk.rows; ++i) sweep_row(body, tile, items, chunk, i);
    }
  }
}

#if NA_HAS_EXTRA
/// The extra tokens, through the views of the streams.
template <class Body, class ViewA, class ViewB, class TensorA, class TensorB>
NATTEN_FN void sweep_extra(NA_THREAD Body& body, NA_THREAD ViewA& from_a, NA_THREAD ViewB& from_b, TensorA a, TensorB b,
                           const NA_THREAD Tile& tile, const NA_THREAD Items& items, int head) {
  const ViewA window_a = from_a;
  const ViewB window_b = from_b;
  const Tile extra = extra_tile(tile, a.extra_count);
  from_a = extra_view(a, tile, head);
  from_b = extra_view(b, tile, head);
  const Items every = extra_items(items, extra);
  sweep(body, extra, every);
  from_a = window_a;
  from_b = window_b;
}
#endif

}  // namespace natten

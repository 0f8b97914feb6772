// Arrays in device memory, read in place through their strides, and their copies in threadgroup memory.
// A lane of a position holds the channel vectors lane, lane + NA_LANES, ... (NA_A_HELD or NA_B_HELD channels in all);
// channels past the end are 0.
namespace natten {

/// [batch, axis 0, axis 1, axis 2, head, channel]; P is a pointer, whose address space MLX chooses.
template <class P>
struct Tensor {
  P data;
  Offset stride[6];
#if NA_HAS_EXTRA
  P extra;
  Offset extra_stride[6];
  int extra_count;
#endif
};

/// From MLX's strides, of which there may be fewer.
template <class P, class S>
NATTEN_FN Tensor<P> tensor(P data, S strides, int rank) {
  Tensor<P> t;
  t.data = data;
  NA_UNROLL for (int i = 0; i < 6; ++i) t.stride[i] = i < rank ? Offset(strides[i]) : 0;
  return t;
}

/// What positions of a dilation group index: rows of key; of query; of results.
enum class Indexed { keys, query_tokens, queries };

/// One head of one dilation group of a tensor.
template <class P>
struct View {
  P data;
  Offset step[3];  ///< from position to position
  int period[3];   ///< on a circular axis: positions before they repeat
  Offset channel;
  bool vectors;  ///< NA_VECTOR channels can be read at once
};

/// What NA_VECTOR elements that are read at once have to be aligned to.
NATTEN_FN int vector_bytes(int size) {
  return NA_VECTOR * size < 16 ? NA_VECTOR * size : 16;
}

template <class P>
NATTEN_FN View<P> view(Tensor<P> t, Indexed indexed, const NA_THREAD Tile& tile, int head) {
  View<P> v;
  Offset first = tile.at.batch * t.stride[0] + head * t.stride[4];
  Offset multiples = 0;
  NA_UNROLL for (int a = 0; a < 3; ++a) {
    const AxisConstants c = tile.axes[a];
    const AxisGroup g = tile.groups[a];
    const bool tokens = indexed == Indexed::query_tokens;
    const int stride = tokens ? c.axis.stride : 1;
    const int query_row = tokens ? tile.at.spans.rows[a].query_row : 0;
    first += (indexed == Indexed::keys ? g.first_key : query_row + g.first_query * stride) * t.stride[a + 1];
    v.period[a] = indexed == Indexed::keys ? g.places : g.queries;
    // Where there is one position its stride means nothing: MLX gives 1 to the axes that it inserts.
    const int positions = indexed == Indexed::keys ? g.keys : g.queries;
    v.step[a] = positions > 1 ? (indexed == Indexed::keys ? c.axis.dilation : c.classes * stride) * t.stride[a + 1] : 0;
    multiples |= v.step[a];
  }
  v.data = t.data + first;
  v.channel = t.stride[5];
  const int size = sizeof(*t.data), bytes = vector_bytes(size);
  v.vectors = v.channel == 1 && multiples * size % bytes == 0 && is_aligned(v.data, bytes);
  return v;
}

/// Where a position of a circular axis lies in the first turn, 0 <= position < 4 * period. Without branches: after a
/// loop here an assembler would take what follows for divergent.
NATTEN_FN int without_turns(int position, int period) {
  position -= position >= 2 * period ? 2 * period : 0;
  return position - (position >= period ? period : 0);
}
/// The same from -3 * period on.
NATTEN_FN int wrapped(int position, int period) {
  position += position < 0 ? 2 * period : 0;
  return without_turns(position + (position < 0 ? period : 0), period);
}

template <class P>
NATTEN_FN Offset offset_of(View<P> v, int p0, int p1, int p2) {
  if (NA_IS_CIRCULAR_0) p0 = wrapped(p0, v.period[0]);
  if (NA_IS_CIRCULAR_1) p1 = wrapped(p1, v.period[1]);
  if (NA_IS_CIRCULAR_2) p2 = wrapped(p2, v.period[2]);
  return p0 * v.step[0] + p1 * v.step[1] + p2 * v.step[2];
}

template <class P>
NATTEN_FN Offset offset_of(View<P> v, const NA_THREAD int* position) {
  return offset_of(v, position[0], position[1], position[2]);
}

template <class P>
NATTEN_FN float number_at(View<P> v, const NA_THREAD int* position) {
  return float(v.data[offset_of(v, position)]);
}

/// This lane's channels of the row at an offset.
template <int kChannels, int kHeld, class P>
NATTEN_FN void load_row(NA_THREAD float (&to)[kHeld], View<P> v, Offset offset, int lane) {
  constexpr bool kVectors = kChannels % NA_VECTOR == 0;
  NA_UNROLL for (int i = 0; i < kHeld; i += NA_VECTOR) {
    const int channel = lane * NA_VECTOR + i * NA_LANES;
    if (kVectors && v.vectors && channel < kChannels) {
      load_device<NA_VECTOR>(&to[i], v.data + offset + channel);
    } else {
      NA_UNROLL for (int e = 0; e < NA_VECTOR; ++e) {
        to[i + e] = channel + e < kChannels ? float(v.data[offset + (channel + e) * v.channel]) : 0.0f;
      }
    }
  }
}

/// This lane's channels of the items, times `factor`.
template <int kChannels, int kHeld, class P>
NATTEN_FN void load_items(NA_THREAD float (&to)[NA_RUN][kHeld], View<P> v, const NA_THREAD Items& items, int lane,
                          float factor) {
  NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
    load_row<kChannels>(to[r], v, offset_of(v, items.position[r]), lane);
    NA_UNROLL for (int i = 0; i < kHeld; ++i) to[r][i] *= factor;
  }
}

/// The reverse, into a row of a dense array, of vectors of kVector channels.
template <int kChannels, int kVector, int kHeld, class T>
NATTEN_FN void store_row(NA_DEVICE T* to, const NA_THREAD float (&from)[kHeld], int lane) {
  NA_UNROLL for (int i = 0; i < kHeld; i += kVector) {
    const int channel = lane * kVector + i * NA_LANES;
    if (kChannels % kVector == 0) {
      if (channel < kChannels) store_device<kVector>(to + channel, &from[i]);
    } else {
      NA_UNROLL for (int e = 0; e < kVector; ++e) {
        if (channel + e < kChannels) to[channel + e] = from_float<T>(from[i + e]);
      }
    }
  }
}

/// Rows of query, by axis, of a computed one and of those around it that a stride skips.
struct QueryRows {
  int own[3], start[3], end[3];
};
NATTEN_FN QueryRows query_rows_of(const NA_THREAD Tile& tile, int item) {
  QueryRows rows;
  NA_UNROLL for (int a = 0; a < 3; ++a) {
    const AxisRows all = tile.at.spans.rows[a];
    const int index = index_of<true>(tile, item, a), stride = tile.axes[a].axis.stride;
    rows.own[a] = all.query_row + index * stride;
    rows.start[a] = all.query_row > 0 && index == 0 ? 0 : rows.own[a];
    rows.end[a] = lesser(rows.own[a] + stride, all.query_rows);
  }
  return rows;
}
/// Row of a dense array like query, [B, axes, heads].
NATTEN_FN Offset token_row(const NA_THREAD Tile& tile, int t0, int t1, int t2) {
  const int token[3] = {t0, t1, t2};
  Offset row = tile.at.batch;
  NA_UNROLL for (int a = 0; a < 3; ++a) row = row * tile.at.spans.rows[a].query_rows + token[a];
  return row * tile.at.heads + tile.at.head;
}

/// Stores the items in the dense array of their kind, times `factor`; what lies past the end of a sample becomes 0,
/// whatever was computed for it. kSpread: queries in an array like query, with 0 in the rows that a stride skips.
template <bool kQueries, bool kSpread, int kChannels, int kVector = NA_VECTOR, int kHeld, class T>
NATTEN_FN void store_items(NA_DEVICE T* to, NA_THREAD float (&from)[NA_RUN][kHeld], const NA_THREAD Tile& tile,
                           float factor) {
  NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
    if (!is_stored<kQueries>(tile, r)) continue;
    const bool inside = is_inside<kQueries>(tile, r);
    NA_UNROLL for (int i = 0; i < kHeld; ++i) from[r][i] = inside ? factor * from[r][i] : 0.0f;
    if (!kSpread) {
      store_row<kChannels, kVector>(to + dense_row<kQueries>(tile, r) * kChannels, from[r], tile.lane);
      continue;
    }
    const QueryRows rows = query_rows_of(tile, r);
    for (int t0 = rows.start[0]; t0 < rows.end[0]; ++t0) {
      for (int t1 = rows.start[1]; t1 < rows.end[1]; ++t1) {
        for (int t2 = rows.start[2]; t2 < rows.end[2]; ++t2) {
          NA_DEVICE T* const target = to + token_row(tile, t0, t1, t2) * kChannels;
          if (t0 == rows.own[0] && t1 == rows.own[1] && t2 == rows.own[2]) {
            store_row<kChannels, kVector>(target, from[r], tile.lane);
          } else {
            for (int c = tile.lane; c < kChannels; c += NA_LANES) target[c] = from_float<T>(0.0f);
          }
        }
      }
    }
  }
}

/// Ends the softmax of queries: `sums` of values by weights 2^(logit - maximum), and `sum` of the weights.
template <int kVector = NA_VECTOR, int kHeld, class T>
NATTEN_FN void store_softmax(NA_DEVICE T* out, NA_DEVICE float* lse, NA_THREAD float (&sums)[NA_RUN][kHeld],
                             const NA_THREAD float (&maximum)[NA_RUN], const NA_THREAD float (&sum)[NA_RUN],
                             const NA_THREAD Tile& tile) {
  NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
    const bool is_empty = sum[r] == 0.0f;  // every logit is -inf
    const float factor = 1.0f / sum[r];
    NA_UNROLL for (int i = 0; i < kHeld; ++i) sums[r][i] = is_empty ? 0.0f : sums[r][i] * factor;
    if (tile.lane != 0 || !is_stored<true>(tile, r)) continue;
    const float in_powers_of_two = is_empty ? -NA_INFINITY : maximum[r] + log2_of(sum[r]);
    lse[dense_row<true>(tile, r)] = is_inside<true>(tile, r) ? in_powers_of_two * NA_LN_2 : 0.0f;
  }
  store_items<true, false, NA_B_CHANNELS, kVector>(out, sums, tile, 1.0f);
}

/// A part of the region that streams past: `rows` rows of (axis 0, axis 1), counted from `row`, and `columns` positions
/// of axis 2 from `x`.
struct Chunk {
  int row, rows, x, columns;
};

struct Row {
  int p0, p1;
};

NATTEN_FN Row row_of(const NA_THREAD Tile& tile, int row) {
  const int rows = tile.region[1].end - tile.region[1].start;
  return Row{tile.region[0].start + row / rows, tile.region[1].start + row % rows};
}

/// An array that streams past, and its chunk in threadgroup memory.
template <class P, class T, int kChannels, int kHeld, int kPitch>
struct Stream {
  View<P> from;
  NA_THREADGROUP T* rows;

  /// Copies a chunk, each position's vectors by neighbouring threads.
  NATTEN_FN void load(const NA_THREAD Tile& tile, Chunk chunk) NA_THREAD {
    constexpr bool kVectors = kChannels % NA_VECTOR == 0;
    constexpr int kCount = kHeld / NA_VECTOR * NA_LANES;
    constexpr int kLanes = kCount < NA_THREADS ? kCount : NA_THREADS;
    constexpr int kAtOnce = NA_THREADS / kLanes;
    int i = tile.at.thread_index / kLanes;
    if (i >= kAtOnce) return;
    const bool vectors = kVectors && from.vectors;
    Row row = row_of(tile, chunk.row + i / chunk.columns);
    int column = i % chunk.columns;
    for (; i < chunk.rows * chunk.columns; i += kAtOnce) {
      const Offset offset = offset_of(from, row.p0, row.p1, chunk.x + column);
      for (int v = tile.at.thread_index % kLanes; v < kCount; v += kLanes) {
        const int channel = v * NA_VECTOR;
        NA_THREADGROUP T* const target = rows + i * kPitch + channel;
        if (vectors && channel < kChannels) {
          copy_to_tile<NA_VECTOR>(target, from.data + offset + channel);
        } else {
          NA_UNROLL for (int e = 0; e < NA_VECTOR; ++e) {
            target[e] = channel + e < kChannels ? T(from.data[offset + (channel + e) * from.channel]) : T(0.0f);
          }
        }
      }
      column += kAtOnce;
      while (column >= chunk.columns) {
        column -= chunk.columns;
        if (++row.p1 == tile.region[1].end) {
          row.p1 = tile.region[1].start;
          ++row.p0;
        }
      }
    }
  }

  /// This lane's channels of a row.
  NATTEN_FN void read(NA_THREAD float (&to)[kHeld], int slot, int lane) const NA_THREAD {
    NA_UNROLL for (int i = 0; i < kHeld; i += NA_VECTOR) {
      load_tile<NA_VECTOR>(to + i, rows + slot * kPitch + lane * NA_VECTOR + i * NA_LANES);
    }
  }
};

/// A alone, or with B of which there may be another number and type of channels.
template <class P>
using StreamA = Stream<P, NA_A_TYPE, NA_A_CHANNELS, NA_A_HELD, NA_A_PITCH>;
template <class P>
using StreamB = Stream<P, NA_B_TYPE, NA_B_CHANNELS, NA_B_HELD, NA_B_PITCH>;

/// A query's lse and delta as the backward takes them, in powers of two. That of a query all of whose logits are -inf
/// is -inf, and becomes what makes its weights and gradients 0.
NATTEN_FN float backward_lse(float lse) {
  return lse == -NA_INFINITY ? NA_INFINITY : NA_LOG2_E * lse;
}
NATTEN_FN float backward_delta(float delta, float lse) {
  return lse == -NA_INFINITY ? 0.0f : delta;
}

/// Both of each streamed query: lses, and NA_CHUNK further on deltas.
template <class LseP, class DeltaP>
NATTEN_FN void load_chunk_scalars(NA_THREADGROUP float* to, View<LseP> lse, View<DeltaP> delta,
                                  const NA_THREAD Tile& tile, Chunk chunk) {
  for (int i = tile.at.thread_index; i < chunk.rows * chunk.columns; i += NA_THREADS) {
    const Row row = row_of(tile, chunk.row + i / chunk.columns);
    const int x = chunk.x + i % chunk.columns;
    const float lse_of_query = lse.data[offset_of(lse, row.p0, row.p1, x)];
    to[i] = backward_lse(lse_of_query);
    to[NA_CHUNK + i] = backward_delta(delta.data[offset_of(delta, row.p0, row.p1, x)], lse_of_query);
  }
}

}  // namespace natten

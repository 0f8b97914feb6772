// Arrays in device memory, read in place through their strides, and their copies in threadgroup memory.
// A lane of a position holds the channel vectors lane, lane + NA_LANES, ...; channels past the end are 0.
namespace natten {

/// [batch, axis 0, axis 1, axis 2, head, channel]; P is a pointer, whose address space MLX chooses.
template <class P>
struct Tensor {
  P data;
  Offset stride[6];
};

template <class P>
NATTEN_FN Tensor<P> tensor(P data, Offset s0, Offset s1, Offset s2, Offset s3, Offset s4, Offset s5) {
  Tensor<P> t;
  t.data = data;
  t.stride[0] = s0;
  t.stride[1] = s1;
  t.stride[2] = s2;
  t.stride[3] = s3;
  t.stride[4] = s4;
  t.stride[5] = s5;
  return t;
}

/// What positions of a dilation group index: tokens by place; tokens by query; computed queries by query.
enum class Indexed { keys, query_tokens, queries };

/// One head of one dilation group of a tensor.
template <class P>
struct View {
  P data;
  Offset step[3];  ///< from position to position
  Offset channel;
  bool vectors;  ///< NA_VECTOR channels can be read at once
};

template <class P>
NATTEN_FN View<P> view(Tensor<P> t, Indexed indexed, const NA_THREAD Tile& tile, int head) {
  View<P> v;
  Offset first = tile.at.batch * t.stride[0] + head * t.stride[4];
  Offset multiples = 0;
  NA_UNROLL for (int a = 0; a < 3; ++a) {
    const AxisConstants c = tile.axes[a];
    const AxisGroup g = tile.groups[a];
    const int stride = indexed == Indexed::query_tokens ? c.axis.stride : 1;
    first += (indexed == Indexed::keys ? g.group : g.first_query * stride) * t.stride[a + 1];
    v.step[a] = (indexed == Indexed::keys ? c.axis.dilation : c.classes * stride) * t.stride[a + 1];
    multiples |= v.step[a];
  }
  v.data = t.data + first;
  v.channel = t.stride[5];
  const Offset size = sizeof(*t.data);
  const Offset bytes = NA_VECTOR * size < 16 ? NA_VECTOR * size : 16;
  v.vectors = v.channel == 1 && (Offset(v.data) | multiples * size) % bytes == 0;
  return v;
}

template <class P>
NATTEN_FN Offset offset_of(View<P> v, int p0, int p1, int p2) {
  return p0 * v.step[0] + p1 * v.step[1] + p2 * v.step[2];
}

template <class P>
NATTEN_FN float number_at(View<P> v, const NA_THREAD int* position) {
  return float(v.data[offset_of(v, position[0], position[1], position[2])]);
}

/// Vector accesses exist only if they are legal for the number of channels, and the array is not one of the tiny ones
/// that Metal keeps in constant memory.
template <bool kVectors>
struct Access;

template <>
struct Access<true> {
  template <class T>
  static NATTEN_FN void load(NA_THREAD float* to, const NA_DEVICE T* from) {
    load_device<NA_VECTOR>(to, from);
  }
  template <class S, class T>
  static NATTEN_FN void copy(NA_THREADGROUP S* to, const NA_DEVICE T* from) {
    copy_to_tile<NA_VECTOR>(to, from);
  }
};

template <>
struct Access<false> {
  template <class P>
  static NATTEN_FN void load(NA_THREAD float*, P) {}
  template <class S, class P>
  static NATTEN_FN void copy(NA_THREADGROUP S*, P) {}
};

/// This lane's channels of a position, times `factor`.
template <int kChannels, int kSlices, class P>
NATTEN_FN void load_slices(NA_THREAD float* to, View<P> v, const NA_THREAD int* position, int lane, float factor) {
  const Offset offset = offset_of(v, position[0], position[1], position[2]);
  constexpr bool kVectors = NA_VECTOR_ACCESS && kChannels % NA_VECTOR == 0;
  NA_UNROLL for (int i = 0; i < kSlices; ++i) {
    const int channel = (lane + i * NA_LANES) * NA_VECTOR;
    if (kVectors && v.vectors && channel < kChannels) {
      Access<kVectors>::load(to + i * NA_VECTOR, v.data + offset + channel);
    } else {
      NA_UNROLL for (int e = 0; e < NA_VECTOR; ++e) {
        to[i * NA_VECTOR + e] = channel + e < kChannels ? float(v.data[offset + (channel + e) * v.channel]) : 0.0f;
      }
    }
    NA_UNROLL for (int e = 0; e < NA_VECTOR; ++e) to[i * NA_VECTOR + e] *= factor;
  }
}

/// The reverse, into a dense array.
template <int kChannels, int kSlices, class T>
NATTEN_FN void store_slices(NA_DEVICE T* to, const NA_THREAD float* from, int lane) {
  NA_UNROLL for (int i = 0; i < kSlices; ++i) {
    const int channel = (lane + i * NA_LANES) * NA_VECTOR;
    if (kChannels % NA_VECTOR == 0) {
      if (channel < kChannels) store_device<NA_VECTOR>(to + channel, from + i * NA_VECTOR);
    } else {
      NA_UNROLL for (int e = 0; e < NA_VECTOR; ++e) {
        if (channel + e < kChannels) to[channel + e] = from_float<T>(from[i * NA_VECTOR + e]);
      }
    }
  }
}

/// A part of the region that streams past: `rows` rows of (axis 0, axis 1), counted from `row`, and `columns` positions
/// of axis 2 from `x`.
struct Chunk {
  int row;
  int rows;
  int x;
  int columns;
};

struct Row {
  int p0;
  int p1;
};

NATTEN_FN Row row_of(const NA_THREAD Tile& tile, int row) {
  const int rows = tile.region[1].end - tile.region[1].start;
  Row r;
  r.p0 = tile.region[0].start + row / rows;
  r.p1 = tile.region[1].start + row % rows;
  return r;
}

/// Copies a chunk to threadgroup memory, each position's vectors by neighbouring threads.
template <int kChannels, int kSlices, int kPitch, class S, class P>
NATTEN_FN void load_chunk(NA_THREADGROUP S* to, View<P> from, const NA_THREAD Tile& tile, Chunk chunk) {
  constexpr bool kVectors = NA_VECTOR_ACCESS && kChannels % NA_VECTOR == 0;
  constexpr int kCount = kSlices * NA_LANES;
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
      NA_THREADGROUP S* const target = to + i * kPitch + channel;
      if (vectors && channel < kChannels) {
        Access<kVectors>::copy(target, from.data + offset + channel);
      } else {
        NA_UNROLL for (int e = 0; e < NA_VECTOR; ++e) {
          target[e] = channel + e < kChannels ? S(from.data[offset + (channel + e) * from.channel]) : S(0.0f);
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

/// The arrays that stream past: A alone, or with B of which there may be another number and type of channels.
template <class P>
struct StreamA {
  View<P> from;
  NA_THREADGROUP NA_A_TYPE* rows;

  NATTEN_FN void load(const NA_THREAD Tile& tile, Chunk chunk) {
    load_chunk<NA_A_CHANNELS, NA_A_SLICES, NA_A_PITCH>(rows, from, tile, chunk);
  }
};
template <class P>
struct StreamB {
  View<P> from;
  NA_THREADGROUP NA_B_TYPE* rows;

  NATTEN_FN void load(const NA_THREAD Tile& tile, Chunk chunk) {
    load_chunk<NA_B_CHANNELS, NA_B_SLICES, NA_B_PITCH>(rows, from, tile, chunk);
  }
};

/// One number per position, for the streamed queries of the backward.
template <class P>
NATTEN_FN void load_chunk_scalars(NA_THREADGROUP float* to, View<P> from, const NA_THREAD Tile& tile, Chunk chunk,
                                  float factor) {
  for (int i = tile.at.thread_index; i < chunk.rows * chunk.columns; i += NA_THREADS) {
    const Row row = row_of(tile, chunk.row + i / chunk.columns);
    to[i] = factor * from.data[offset_of(from, row.p0, row.p1, chunk.x + i % chunk.columns)];
  }
}

}  // namespace natten

// Tokens that every query attends besides its window. They stream past as a region of their own, one row of which all
// items meet all, without mask and bias.
namespace natten {

/// `extra` is [batch, 1, 1, token, head, channel].
template <class P>
NATTEN_FN Tensor<P> with_extra(Tensor<P> t, Tensor<P> extra, int count) {
  t.extra = extra.data;
  t.extra_count = count;
  NA_UNROLL for (int i = 0; i < 6; ++i) t.extra_stride[i] = extra.stride[i];
  return t;
}

template <class P>
NATTEN_FN View<P> extra_view(Tensor<P> t, const NA_THREAD Tile& tile, int head) {
  View<P> v;
  v.data = t.extra + (tile.at.batch * t.extra_stride[0] + head * t.extra_stride[4]);
  v.channel = t.extra_stride[5];
  NA_UNROLL for (int a = 0; a < 3; ++a) {
    v.step[a] = a == 2 && t.extra_count > 1 ? t.extra_stride[3] : 0;
    v.period[a] = a == 2 ? t.extra_count : 1;
  }
  const int size = sizeof(*t.extra), bytes = vector_bytes(size);
  v.vectors = v.channel == 1 && v.step[2] * size % bytes == 0 && is_aligned(v.data, bytes);
  return v;
}

/// The tile as one that meets `count` of them.
NATTEN_FN Tile extra_tile(Tile tile, int count) {
  tile.is_extra = true;
  NA_UNROLL for (int a = 0; a < 3; ++a) tile.region[a] = Range<int>{0, a == 2 ? count : 1};
  return tile;
}
NATTEN_FN Items extra_items(Items items, const NA_THREAD Tile& tile) {
  NA_UNROLL for (int r = 0; r < NA_RUN; ++r) {
    NA_UNROLL for (int a = 0; a < 3; ++a) items.met[r][a] = tile.region[a];
  }
  return items;
}

}  // namespace natten

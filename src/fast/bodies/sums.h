// Two kernels without tiles, of one sum per output, each by a few neighbouring threads in a fixed order.
namespace natten {

/// delta = rowsum(out * dout) - dlse, one number per computed query, which the gradients read.
template <class Out, class Dout, class Dlse>
NATTEN_FN void attention_delta(Out out, Dout dout, Dlse dlse, NA_DEVICE float* delta, Extent size, int batches,
                               int heads, Offset thread_index) {
  // The host sees to it that threads can be counted in 32 bits.
  const int row = int(thread_index) / NA_LANES, lane = int(thread_index) % NA_LANES;
  const int rows = batches * size.v[0] * size.v[1] * size.v[2] * heads;
  int rest = row < rows ? row : 0;
  Offset from_out = 0, from_dout = 0, from_dlse = 0;
  NA_UNROLL for (int i = 4; i >= 0; --i) {  // head, axes, batch
    const int length = i == 4 ? heads : i == 0 ? batches : size.v[i == 0 || i == 4 ? 0 : i - 1];
    const Offset at = rest % length;
    rest /= length;
    from_out += at * out.stride[i];
    from_dout += at * dout.stride[i];
    from_dlse += at * dlse.stride[i];
  }
  // Vectors where both rows allow it; the order of the sum is that of single elements all the same.
  const bool vectors = NA_A_CHANNELS % NA_VECTOR == 0 && out.stride[5] == 1 && dout.stride[5] == 1 &&
                       is_aligned(out.data + from_out, vector_bytes(sizeof(*out.data))) &&
                       is_aligned(dout.data + from_dout, vector_bytes(sizeof(*dout.data)));
  float sum = 0.0f;
  for (int c = NA_VECTOR * lane; c < NA_A_CHANNELS; c += NA_VECTOR * NA_LANES) {
    float a[NA_VECTOR], b[NA_VECTOR];
    if (vectors) {
      load_device<NA_VECTOR>(a, out.data + from_out + c);
      load_device<NA_VECTOR>(b, dout.data + from_dout + c);
    } else {
      NA_UNROLL for (int e = 0; e < NA_VECTOR; ++e) {
        const bool exists = c + e < NA_A_CHANNELS;
        a[e] = exists ? float(out.data[from_out + (c + e) * out.stride[5]]) : 0.0f;
        b[e] = exists ? float(dout.data[from_dout + (c + e) * dout.stride[5]]) : 0.0f;
      }
    }
    NA_UNROLL for (int e = 0; e < NA_VECTOR; ++e) sum += a[e] * b[e];
  }
  NA_UNROLL for (int distance = 1; distance < NA_LANES; distance *= 2) sum += exchange(sum, distance);
  if (row < rows && lane == 0) delta[row] = sum - float(dlse.data[from_dlse]);
}

/// Sum of the tiles' gradients of the relative position bias table, a simdgroup per entry.
template <class P>
NATTEN_FN void sum_bias_gradients(P partials, NA_DEVICE float* sums, int tiles, int entries, Offset thread_index) {
  const Offset entry = thread_index / 32;
  float sum = 0.0f;
  if (entry < entries) {
    for (int tile = int(thread_index % 32); tile < tiles; tile += 32) sum += partials[tile * Offset(entries) + entry];
  }
  NA_UNROLL for (int distance = 1; distance < 32; distance *= 2) sum += exchange(sum, distance);
  if (entry < entries && thread_index % 32 == 0) sums[entry] = sum;
}

}  // namespace natten

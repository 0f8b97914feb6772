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
  float sum = 0.0f;
  for (int c = lane; c < NA_A_CHANNELS; c += NA_LANES) {
    sum += float(out.data[from_out + c * out.stride[5]]) * float(dout.data[from_dout + c * dout.stride[5]]);
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

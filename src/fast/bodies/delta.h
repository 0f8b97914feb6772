// delta = rowsum(out * dout) - dlse, one number per computed query, which the gradients of key and value read.
namespace natten {

template <class OutP, class DoutP, class DlseP>
NATTEN_FN void attention_delta(Tensor<OutP> out, Tensor<DoutP> dout, Tensor<DlseP> dlse, NA_DEVICE float* delta,
                               Extent size, int batches, int heads, Offset thread_index) {
  const Offset row = thread_index / NA_LANES;
  const int lane = int(thread_index % NA_LANES);
  const Offset rows = Offset(batches) * size.v[0] * size.v[1] * size.v[2] * heads;
  int at[5] = {0, 0, 0, 0, 0};  // batch, axes, head
  Offset rest = row < rows ? row : 0;
  at[4] = int(rest % heads);
  rest /= heads;
  for (int a = 2; a >= 0; --a) {
    at[a + 1] = int(rest % size.v[a]);
    rest /= size.v[a];
  }
  at[0] = int(rest);
  Offset from_out = 0, from_dout = 0, from_dlse = 0;
  for (int i = 0; i < 5; ++i) {
    from_out += at[i] * out.stride[i];
    from_dout += at[i] * dout.stride[i];
    from_dlse += at[i] * dlse.stride[i];
  }
  float sum = 0.0f;
  for (int c = lane; c < NA_A_CHANNELS; c += NA_LANES) {
    sum += float(out.data[from_out + c * out.stride[5]]) * float(dout.data[from_dout + c * dout.stride[5]]);
  }
  NA_UNROLL for (int distance = 1; distance < NA_LANES; distance *= 2) sum += exchange(sum, distance);
  if (row < rows && lane == 0) delta[row] = sum - float(dlse.data[from_dlse]);
}

}  // namespace natten

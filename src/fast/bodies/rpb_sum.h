// Sum of the tiles' gradients of the relative position bias table: a simdgroup per entry, in a fixed order.
namespace natten {

NATTEN_FN void sum_bias_gradients(const NA_DEVICE float* partials, NA_DEVICE float* sums, int tiles, int entries,
                                  Offset thread_index) {
  const Offset entry = thread_index / 32;
  float sum = 0.0f;
  if (entry < entries) {
    for (int tile = int(thread_index % 32); tile < tiles; tile += 32) sum += partials[tile * Offset(entries) + entry];
  }
  NA_UNROLL for (int distance = 1; distance < 32; distance *= 2) sum += exchange(sum, distance);
  if (entry < entries && thread_index % 32 == 0) sums[entry] = sum;
}

}  // namespace natten

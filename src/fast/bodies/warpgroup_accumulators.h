// A thread's values of a 64xblock product, laid out as those of mma.m16n8k16 (matrix.h): kept in their place beside
// products under way, made operands of the next product, stored.
namespace natten {

/// Keeps what computes x, which is not negative, before the waits that follow: assemblers move arithmetic across a wait
/// for products, which puts it after them instead of beside them, but not a store.
NATTEN_FN void hold_back(float x, unsigned address) {
  store_negative(x, address);
}
template <int kBlocks>
NATTEN_FN void hold_back(const float (&x)[kBlocks][4], unsigned address) {
  int signs = 0;
  NA_UNROLL for (int j = 0; j < kBlocks; ++j) {
    NA_UNROLL for (int e = 0; e < 4; ++e) signs |= __float_as_int(x[j][e]);
  }
  store_negative(signs, address);
}
/// Keeps the compiler from touching accumulators while products are under way.
template <int kBlocks>
NATTEN_FN void pin(float (&c)[kBlocks][4]) {
  NA_UNROLL for (int j = 0; j < kBlocks; ++j) {
    NA_UNROLL for (int e = 0; e < 4; ++e) pin(c[j][e]);
  }
}

NATTEN_FN float half_of(unsigned pair, int e) {
  const unsigned short bits = (unsigned short)(e == 0 ? pair & 0xffff : pair >> 16);
  NA_A_TYPE x;
  *reinterpret_cast<unsigned short*>(&x) = bits;
  return float(x);
}

/// A 64xblock product's values as the left operand of the next.
NATTEN_FN void pack(unsigned (&to)[NA_BLOCK / 16][4], const float (&from)[NA_BLOCK / 8][4]) {
  NA_UNROLL for (int i = 0; i < NA_BLOCK / 16; ++i) {
    NA_UNROLL for (int h = 0; h < 4; ++h) {
      to[i][h] = rounded_pair<NA_A_TYPE>(from[2 * i + h / 2][h % 2 * 2], from[2 * i + h / 2][h % 2 * 2 + 1]);
    }
  }
}

NATTEN_FN void swap_words(unsigned& low, unsigned& high, int lane, int distance) {
  const bool upper = (lane & distance) != 0;
  const unsigned got = __shfl_xor_sync(0xffffffffu, upper ? low : high, distance);
  (upper ? low : high) = got;
}

/// Row r of the thread's sums, times `factor`, to a row of kChannels, a multiple of 8, of a dense array; 0 where it is
/// not `inside`. Called by all of the warp.
template <int kChannels, int kBlocks, class T>
NATTEN_FN void store_sums(T* to, const float (&from)[kBlocks][4], int r, float factor, bool stored, bool inside) {
  const int lane = hardware_lane() % 4;
  NA_UNROLL for (int g = 0; g < kBlocks; g += 4) {
    unsigned w[4];
    NA_UNROLL for (int j = 0; j < 4; ++j) {
      const int block = g + j < kBlocks ? g + j : 0;
      w[j] = inside ? rounded_pair<T>(from[block][2 * r] * factor, from[block][2 * r + 1] * factor) : 0u;
    }
    // Transposed among the four lanes of a row, which so get 16 bytes each.
    swap_words(w[0], w[1], lane, 1);
    swap_words(w[2], w[3], lane, 1);
    swap_words(w[0], w[2], lane, 2);
    swap_words(w[1], w[3], lane, 2);
    if (stored && g + lane < kChannels / 8) {
      *reinterpret_cast<uint4*>(to + 8 * (g + lane)) = make_uint4(w[0], w[1], w[2], w[3]);
    }
  }
}

}  // namespace natten

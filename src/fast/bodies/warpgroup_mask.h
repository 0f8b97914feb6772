// Which pairs of a block do not meet (NA_MASK): a comparison where the region is one row, else a product.
namespace natten {

/// Of logits, to powers of two; below it the penalties of pairs that do not meet are not penalties.
constexpr float kLeastFactor = 1e-6f;

/// Penalties of a block for one warpgroup: 16 channels a row, in two planes of 16 bytes a row.
constexpr int kPenaltyBytes = NA_BLOCK * 32;
NATTEN_FN unsigned long long penalty_descriptor(unsigned address) {
  return (unsigned long long)(address >> 4 & 0x3fff) | (unsigned long long)(NA_BLOCK * 16 >> 4) << 16 |
         (unsigned long long)(128 >> 4) << 32;
}

// The mask as a product: a position has a one in the channel of its own coordinate on each axis, a streamed position a
// penalty in the channels of the coordinates by which it is not met. So the matrix units add a penalty to the logits of
// pairs that do not meet, and exactly 0 to the others.
#define NA_MASK_CHANNELS(a) NA_BY_AXIS(NA_MASK_CHANNELS, a)
NATTEN_FN int first_mask_channel(int a) {
  return a == 0 ? 0 : a == 1 ? NA_MASK_CHANNELS_0 : NA_MASK_CHANNELS_0 + NA_MASK_CHANNELS_1;
}

/// Words of the penalty table of an axis: one pair of channels of one coordinate each, on the split axis by warpgroup.
NATTEN_FN constexpr int table_words(int a) {
  return (a == NA_SPLIT_AXIS ? NA_WARPGROUPS : 1) * NA_BY_AXIS(NA_REACH, a) * (NA_MASK_CHANNELS(a) / 2);
}
NATTEN_FN constexpr int table_start(int a) {
  return a == 0 ? 0 : a == 1 ? table_words(0) : table_words(0) + table_words(1);
}
constexpr int kTableWords = table_words(0) + table_words(1) + table_words(2);

template <bool kQueries>
NATTEN_FN void fill_penalty_table(unsigned* table, const Tile& tile, const FlatRegion& f, int thread) {
  NA_UNROLL for (int a = 0; a < 3; ++a) {
    constexpr int kPairs[3] = {NA_MASK_CHANNELS_0 / 2, NA_MASK_CHANNELS_1 / 2, NA_MASK_CHANNELS_2 / 2};
    if (kPairs[a] == 0) continue;
    const int pairs = kPairs[a] > 0 ? kPairs[a] : 1;
    const int groups = a == NA_SPLIT_AXIS ? NA_WARPGROUPS : 1;
    const int reach = NA_BY_AXIS(NA_REACH, a);
    for (int i = thread; i < groups * reach * pairs; i += NA_PRODUCERS) {
      const int pair = i % pairs, c = i / pairs % reach, group = i / pairs / reach;
      unsigned word = 0;
      NA_UNROLL for (int e = 0; e < 2; ++e) {
        const int at = lesser(2 * pair + e, warpgroup_extent(a) - 1);
        const int position =
            lesser(tile.origin[a] + group * warpgroup_extent(a) + at, positions_in<kQueries>(tile.groups[a]) - 1);
        const Range<int> met = met_by<kQueries>(tile.axes[a], tile.groups[a], position);
        const int key = c + tile.region[a].start;
        if (key < met.start || key >= met.end) word |= unsigned(NA_PENALTY) << 16 * e;
      }
      table[table_start(a) + i] = word;
    }
  }
}

/// Penalties of a position of the region for all warpgroups. Asked for before anything is stored, so that they come
/// together.
NATTEN_FN void load_penalties(unsigned (&words)[NA_WARPGROUPS][8], const unsigned* table, const int (&c)[3],
                              bool exists) {
  NA_UNROLL for (int w = 0; w < NA_WARPGROUPS; ++w) {
    NA_UNROLL for (int i = 0; i < 8; ++i) words[w][i] = 0;
    NA_UNROLL for (int a = 0; a < 3; ++a) {
      const int pairs = NA_MASK_CHANNELS(a) / 2;
      const unsigned* const from =
          table + table_start(a) + ((a == NA_SPLIT_AXIS ? w * NA_BY_AXIS(NA_REACH, a) : 0) + c[a]) * pairs;
      NA_UNROLL for (int i = 0; i < pairs; ++i) {
        const unsigned word = from[i];
        words[w][first_mask_channel(a) / 2 + i] = exists ? word : unsigned(NA_PENALTY) * 0x10001u;
      }
    }
  }
}
NATTEN_FN void store_penalties(unsigned char* to, const unsigned (&words)[8], int row) {
  *reinterpret_cast<uint4*>(to + row * 16) = make_uint4(words[0], words[1], words[2], words[3]);
  *reinterpret_cast<uint4*>(to + NA_BLOCK * 16 + row * 16) = make_uint4(words[4], words[5], words[6], words[7]);
}

/// The thread's two rows of ones, negative where the scale is: then the penalties must be positive.
NATTEN_FN void load_ones(unsigned (&to)[4], bool negative) {
  const int lane = hardware_lane() % 4;
  int coordinate[2][3];
  NA_UNROLL for (int r = 0; r < 2; ++r) box_coordinates(coordinate[r], position_of_thread(), r);
  NA_UNROLL for (int h = 0; h < 2; ++h) {
    NA_UNROLL for (int r = 0; r < 2; ++r) {
      unsigned word = 0;
      NA_UNROLL for (int e = 0; e < 2; ++e) {
        const int channel = 8 * h + 2 * lane + e;
        bool one = false;
        NA_UNROLL for (int a = 0; a < 3; ++a) {
          one = one || (NA_MASK_CHANNELS(a) > 0 && channel == first_mask_channel(a) + coordinate[r][a]);
        }
        if (one) word |= unsigned(NA_ONE) << 16 * e;
      }
      to[2 * h + r] = negative ? word ^ 0x80008000u : word;
    }
  }
  NA_UNROLL for (int h = 0; h < 4; ++h) asm volatile("" : "+r"(to[h]));  // now, not among products
}

/// Where the region is one row, or additional tokens, a comparison masks the blocks that not all meet.
template <bool kExtra>
NATTEN_FN void mask_row(float (&logits)[NA_BLOCK / 8][4], int block, const Blocks& blocks) {
  if (!kExtra && NA_MASK != kMaskRow) return;
  const int first = block * NA_BLOCK;
  if (first >= blocks.all.start && first + NA_BLOCK <= blocks.all.end) return;
  NA_UNROLL for (int i = 0; i < NA_BLOCK / 8; ++i) {
    NA_UNROLL for (int e = 0; e < 4; ++e) {
      const int n = first + 8 * i + hardware_lane() % 4 * 2 + e % 2;
      if (n < blocks.row[e / 2].start || n >= blocks.row[e / 2].end) logits[i][e] = -NA_INFINITY;
    }
  }
}

}  // namespace natten

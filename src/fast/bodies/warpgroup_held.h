// The 64 rows that a consumer warpgroup holds as left operands of its products: in registers, or where these do not
// suffice in shared memory.
namespace natten {

/// Rows of a tile on their way to shared memory, 16 by each warp of their warpgroup.
template <bool kQueries>
struct RowsToHold {
  static constexpr int kOfWarp = 16;
  int position[3];  ///< of the row that the lane knows
  int warpgroup, warp;

  NATTEN_FN RowsToHold(const Tile& tile, int warpgroup) : warpgroup(warpgroup), warp(threadIdx.x % 128 / 32) {
    const int lane = hardware_lane() % kOfWarp;
    box_coordinates(position, 8 * warp + lane % 8, lane / 8);
    position[NA_SPLIT_AXIS] += warpgroup * warpgroup_extent(NA_SPLIT_AXIS);
    NA_UNROLL for (int a = 0; a < 3; ++a) {
      position[a] = lesser(tile.origin[a] + position[a], positions_in<kQueries>(tile.groups[a]) - 1);
    }
    named_barrier(3 + warpgroup, 128);  // products with what was held before are done
  }
  template <int kChannels, class P>
  NATTEN_FN void copy(const Stages& stages, const Tile& tile, View<P> from, int to) const {
    const Source<kChannels, P, kHeldRows> source(from);
    source.template copy<kOfWarp>(stages.address, stages.base, to, source.distance_of(position), position,
                                  kOfWarp * warp, kOfWarp);
  }
  NATTEN_FN void finish() const {
    wait_for_copies();
    publish_to_units();
    named_barrier(3 + warpgroup, 128);
  }
  /// Changes the signs of the warp's rows, between copy() and finish().
  template <int kChannels>
  NATTEN_FN void negate(const Stages& stages, int at) const {
    typedef Panels<padded_channels(kChannels), kHeldRows> Layout;
    wait_for_copies();
    __syncwarp();
    for (int panel = 0; panel < Layout::kBytes / Layout::kPanelBytes; ++panel) {
      unsigned* const rows = reinterpret_cast<unsigned*>(stages.base + at + panel * Layout::kPanelBytes +
                                                         kOfWarp * warp * Layout::kRowBytes);
      for (int i = hardware_lane(); i < kOfWarp * Layout::kRowBytes / 4; i += 32) rows[i] ^= 0x80008000u;
    }
  }
};

/// Begins the product of held rows with a stage's rows, which are its columns.
template <int kWidth, bool kInRegisters, class Rows>
NATTEN_FN void multiply_by_held(float (&c)[NA_BLOCK / 8][4], const Rows& registers, unsigned held, unsigned stage) {
  typedef Panels<kWidth> Layout;
  typedef Panels<kWidth, kHeldRows> HeldLayout;
  pin(c);
  begin_products();
  const unsigned long long right = Layout::across(stage);
  NA_UNROLL for (int s = 0; s < kWidth / 16; ++s) {
    if constexpr (kInRegisters) {
      multiply_block(c, registers.v[s], right + Layout::across_step(s), s > 0);
    } else {
      multiply_block_shared(c, HeldLayout::across(held) + HeldLayout::across_step(s), right + Layout::across_step(s),
                            s > 0);
    }
  }
}

}  // namespace natten

// The ring of NA_STAGES stages in shared memory, which producers fill and consumers give back, and how rows lie in one.
namespace natten {

/// Channels of a row of an array with those of zeros up to the multiple of 16 that matrix units take.
NATTEN_FN constexpr int padded_channels(int channels) {
  return (channels + 15) / 16 * 16;
}

// Shared memory of a stage: rows of kPanel channels side by side in panels, 16-byte pieces swizzled by row such that
// both directions of reading are free of bank conflicts. A descriptor names it to the matrix units.
template <int kChannels, int kRows = NA_BLOCK>
struct Panels {
  static constexpr int kWidth = kChannels % 64 == 0 ? 64 : kChannels % 32 == 0 ? 32 : 16;
  static constexpr int kRowBytes = kWidth * 2;
  static constexpr int kPieces = kWidth / 8;  ///< of 16 bytes in a row of a panel
  static constexpr int kPanelBytes = kRows * kRowBytes;
  static constexpr int kBytes = kRows * kChannels * 2;
  static constexpr unsigned long long kSwizzle = kWidth == 64 ? 1 : kWidth == 32 ? 2 : 3;

  NATTEN_FN static int turn(int row) { return row / (8 / kPieces) % kPieces; }
  NATTEN_FN static unsigned place(int row, int piece) {
    return unsigned(piece / kPieces * kPanelBytes + row * kRowBytes + (piece % kPieces ^ turn(row)) * 16);
  }
  NATTEN_FN static unsigned long long descriptor(unsigned address, unsigned leading) {
    return (unsigned long long)(address >> 4 & 0x3fff) | (unsigned long long)(leading >> 4) << 16 |
           (unsigned long long)(8 * kRowBytes >> 4) << 32 | kSwizzle << 62;
  }
  // Of the first 16 channels or rows; what is added for others: a chain of one addition, for uniform registers are
  // slow.
  /// Rows as columns of the right operand.
  NATTEN_FN static unsigned long long across(unsigned stage) { return descriptor(stage, 16); }
  NATTEN_FN static constexpr int across_step(int step) {
    return (step * 16 / kWidth * kPanelBytes + step * 16 % kWidth * 2) >> 4;
  }
  /// Rows as rows of it.
  NATTEN_FN static unsigned long long along(unsigned stage) { return descriptor(stage, kPanelBytes); }
  NATTEN_FN static constexpr int along_step(int step) { return step * 16 * kRowBytes >> 4; }
};

/// Place in the ring of stages.
struct Ring {
  int stage;
  unsigned phase;
  NATTEN_FN void advance() {
    if (++stage == NA_STAGES) {
      stage = 0;
      phase ^= 1;
    }
  }
};

constexpr int kHeldRows = 64;  ///< of a warpgroup

/// Everything in shared memory: stages, held rows where they are not in registers, penalties, numbers of streamed
/// positions (two planes, and one of bias offsets), the table of penalties, barriers, tables of the bias and of sums of
/// its gradient.
struct Stages {
  static constexpr int kA = Panels<NA_A_WIDTH>::kBytes, kB = Panels<NA_B_WIDTH>::kBytes;
  // Of a warpgroup: rows of A, and where two arrays are held in shared memory of B.
  static constexpr int kHeldA = NA_HOLD_SHARED > 0 ? Panels<NA_A_WIDTH, kHeldRows>::kBytes : 0;
  static constexpr int kHeld = kHeldA + (NA_HOLD_SHARED > 1 ? Panels<NA_B_WIDTH, kHeldRows>::kBytes : 0);
  static constexpr int kPenalties = NA_MASK == kMaskUnits ? NA_WARPGROUPS * kPenaltyBytes : 0;
  static constexpr int kNumbers = (NA_NUMBERS + NA_HAS_RPB) * NA_BLOCK * 4;
  static constexpr int kTable = NA_MASK == kMaskUnits ? (kTableWords * 4 + 7) / 8 * 8 : 0;
  static constexpr int kPenaltiesAt = NA_STAGES * (kA + kB) + NA_WARPGROUPS * kHeld;
  static constexpr int kNumbersAt = kPenaltiesAt + NA_STAGES * kPenalties;
  static constexpr int kTableAt = kNumbersAt + NA_STAGES * kNumbers;
  static constexpr int kSumsAt = kTableAt + kTable + 4 * NA_STAGES * 8;
  static constexpr int kSums = NA_BIAS_GRADIENT ? NA_WARPGROUPS * 64 * NA_STAGE_COLUMNS * 4 : 0;
  unsigned char* base;
  unsigned address;

  NATTEN_FN static int a(int stage) { return stage * kA; }
  NATTEN_FN static int b(int stage) { return NA_STAGES * kA + stage * kB; }
  NATTEN_FN static int held(int warpgroup) { return NA_STAGES * (kA + kB) + warpgroup * kHeld; }
  NATTEN_FN static int penalties(int stage, int warpgroup) {
    return kPenaltiesAt + stage * kPenalties + warpgroup * kPenaltyBytes;
  }
  NATTEN_FN static int numbers(int stage) { return kNumbersAt + stage * kNumbers; }
  NATTEN_FN static int offsets(int stage) { return numbers(stage) + NA_NUMBERS * NA_BLOCK * 4; }
  NATTEN_FN float* sums() const { return reinterpret_cast<float*>(base + kSumsAt); }
  NATTEN_FN float* bias() const { return reinterpret_cast<float*>(base + kSumsAt + kSums); }
  NATTEN_FN unsigned* table() const { return reinterpret_cast<unsigned*>(base + kTableAt); }
  NATTEN_FN unsigned barrier(int which, int stage) const {
    return address + kTableAt + kTable + (which * NA_STAGES + stage) * 8;
  }
  NATTEN_FN unsigned full_a(int stage) const { return barrier(0, stage); }
  NATTEN_FN unsigned full_b(int stage) const { return barrier(1, stage); }
  NATTEN_FN unsigned empty_a(int stage) const { return barrier(2, stage); }
  NATTEN_FN unsigned empty_b(int stage) const { return barrier(3, stage); }
};

NATTEN_FN Stages stages_at(unsigned char* memory) {
  const unsigned address = shared_address(memory), up = (1024 - address % 1024) % 1024;
  return Stages{memory + up, address + up};
}

/// Called by all threads, before a __syncthreads().
NATTEN_FN void start_stages(const Stages& stages) {
  if (threadIdx.x == 0) {
    for (int s = 0; s < NA_STAGES; ++s) {
      start_barrier(stages.full_a(s), NA_PRODUCERS + NA_PRODUCERS / 32);
      start_barrier(stages.full_b(s), NA_PRODUCERS + NA_PRODUCERS / 32);
      start_barrier(stages.empty_a(s), 4 * NA_WARPGROUPS);
      start_barrier(stages.empty_b(s), 4 * NA_WARPGROUPS);
    }
    publish_barriers();
  }
}

/// A warp's word that it is done with a stage.
NATTEN_FN void release(unsigned barrier) {
  __syncwarp();
  if (hardware_lane() == 0) arrive(barrier);
}
/// A producer's word that its part of a stage is there: its copies when they are done, and what its warp stored.
NATTEN_FN void fill(unsigned barrier) {
  arrive_after_copies(barrier);
  release(barrier);
}
/// A consumer's wait until a stage is full.
NATTEN_FN void wait_until_full(unsigned barrier, unsigned phase) {
  wait_for(barrier, phase);
  publish_to_units();  // what copies of other threads wrote
}
NATTEN_FN void skip_blocks(const Stages& stages, Ring& ring, int count) {
  for (int i = 0; i < count; ++i) {
    wait_for(stages.full_a(ring.stage), ring.phase);
    release(stages.empty_a(ring.stage));
    wait_for(stages.full_b(ring.stage), ring.phase);
    release(stages.empty_b(ring.stage));
    ring.advance();
  }
}

}  // namespace natten

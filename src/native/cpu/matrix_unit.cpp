#include "native/cpu/matrix_unit.h"

#include <stdexcept>

// Any GCC or clang for x86-64 that C++20 needs knows these instructions.
#if defined(__x86_64__) && defined(__linux__)
#define NATTEN_HAS_MATRIX_UNITS 1
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#define NATTEN_HAS_MATRIX_UNITS 0
#endif

namespace natten::cpu {

#if NATTEN_HAS_MATRIX_UNITS
namespace {

#define NATTEN_AMX __attribute__((target("amx-tile,amx-bf16")))
#define NATTEN_DOT __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

/// State components that the system saves for this thread (XCR0).
std::uint64_t saved_state() {
  unsigned a, b, c, d;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c >> 27 & 1) == 0) return 0;
  __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
  return (static_cast<std::uint64_t>(d) << 32) | a;
}

bool detect_dot() {
  unsigned a, b, c, d;
  constexpr std::uint64_t kAvx512State = 0xe6;
  return (saved_state() & kAvx512State) == kAvx512State && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 &&
         (a >> 5 & 1) != 0;
}

bool detect_amx() {
  unsigned a, b, c, d;
  constexpr std::uint64_t kTileState = 0x60000;
  if ((saved_state() & kTileState) != kTileState || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  if ((d >> 22 & 1) == 0 || (d >> 24 & 1) == 0) return false;  // AMX-BF16, AMX-TILE
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

/// What LDTILECFG reads: eight registers of 16 rows of 64 bytes.
struct alignas(64) TileConfiguration {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

NATTEN_AMX void configure_tiles() {
  static constexpr TileConfiguration kConfiguration;
  _tile_loadconfig(&kConfiguration);
}

NATTEN_AMX void release_tiles() {
  _tile_release();
}

/// Tiles of sums that share an operand: of `kCount` tiles of columns, or with `kRows` of rows. Registers 0 to 3 are
/// sums, 4 is the shared operand, 5 to 7 the others. A product takes 52 cycles, a new one can start after 16: so four
/// at a time.
template <int kCount, bool kRows, bool kAdd>
NATTEN_AMX void multiply_amx(const MatrixProduct& p, std::int64_t row, std::int64_t column) {
  const std::int64_t *a_tiles = p.a_tiles + row, *b_tiles = p.b_tiles + column;
  char* const first = reinterpret_cast<char*>(p.sums) + column * 64;
  char* sums[kCount];
#pragma GCC unroll 4
  for (int i = 0; i < kCount; ++i) sums[i] = kRows ? first + p.sums_tiles[row + i] : first + p.sums_tiles[row] + i * 64;
  if constexpr (kAdd) {
    _tile_loadd(0, sums[0], p.sums_row);
    if constexpr (kCount > 1) _tile_loadd(1, sums[1], p.sums_row);
    if constexpr (kCount > 2) _tile_loadd(2, sums[2], p.sums_row);
    if constexpr (kCount > 3) _tile_loadd(3, sums[3], p.sums_row);
  } else {
    _tile_zero(0);
    if constexpr (kCount > 1) _tile_zero(1);
    if constexpr (kCount > 2) _tile_zero(2);
    if constexpr (kCount > 3) _tile_zero(3);
  }
#define NATTEN_MULTIPLY(sum, other)                \
  if constexpr (kRows) {                           \
    _tile_loadd(other, a + a_tiles[sum], p.a_row); \
    _tile_dpbf16ps(sum, other, 4);                 \
  } else {                                         \
    _tile_loadd(other, b + b_tiles[sum], p.b_row); \
    _tile_dpbf16ps(sum, 4, other);                 \
  }
  for (std::int64_t step = 0; step < p.steps; ++step) {
    const char *a = p.a + p.a_steps[step], *b = p.b + p.b_steps[step];
    if constexpr (kRows) {
      _tile_loadd(4, b + b_tiles[0], p.b_row);
    } else {
      _tile_loadd(4, a + a_tiles[0], p.a_row);
    }
    NATTEN_MULTIPLY(0, 5)
    if constexpr (kCount > 1) {
      NATTEN_MULTIPLY(1, 6)
    }
    if constexpr (kCount > 2) {
      NATTEN_MULTIPLY(2, 7)
    }
    if constexpr (kCount > 3) {
      NATTEN_MULTIPLY(3, 5)
    }
  }
#undef NATTEN_MULTIPLY
  _tile_stored(0, sums[0], p.sums_row);
  if constexpr (kCount > 1) _tile_stored(1, sums[1], p.sums_row);
  if constexpr (kCount > 2) _tile_stored(2, sums[2], p.sums_row);
  if constexpr (kCount > 3) _tile_stored(3, sums[3], p.sums_row);
}

template <bool kAdd>
void multiply_amx(const MatrixProduct& p) {
  using Function = void (*)(const MatrixProduct&, std::int64_t, std::int64_t);
  static constexpr Function kFunctions[2][4] = {{multiply_amx<1, false, kAdd>, multiply_amx<2, false, kAdd>,
                                                 multiply_amx<3, false, kAdd>, multiply_amx<4, false, kAdd>},
                                                {multiply_amx<1, true, kAdd>, multiply_amx<2, true, kAdd>,
                                                 multiply_amx<3, true, kAdd>, multiply_amx<4, true, kAdd>}};
  const bool by_rows = p.row_tiles > p.column_tiles;
  const std::int64_t tiles = by_rows ? p.row_tiles : p.column_tiles;
  for (std::int64_t other = 0; other < (by_rows ? p.column_tiles : p.row_tiles); ++other) {
    for (std::int64_t tile = 0; tile < tiles;) {
      // Not 4 and 1, but 3 and 2.
      const std::int64_t rest = tiles - tile, count = rest == 5 ? 3 : rest < 4 ? rest : 4;
      const std::int64_t row = by_rows ? tile : other, column = by_rows ? other : tile;
      kFunctions[by_rows][count - 1](p, row, column);
      tile += count;
    }
  }
}

/// One tile: a sum of every row in a register, pairs of `a` are broadcast.
template <bool kAdd>
NATTEN_DOT void multiply_dot(const MatrixProduct& p, std::int64_t row_tile, std::int64_t column_tile) {
  char* sums = reinterpret_cast<char*>(p.sums) + p.sums_tiles[row_tile] + column_tile * 64;
  __m512 total[kMatrixTile];
#pragma GCC unroll 16
  for (int row = 0; row < kMatrixTile; ++row) {
    total[row] = kAdd ? _mm512_load_ps(sums + row * p.sums_row) : _mm512_setzero_ps();
  }
  for (std::int64_t step = 0; step < p.steps; ++step) {
    const char *a = p.a + p.a_tiles[row_tile] + p.a_steps[step], *b = p.b + p.b_tiles[column_tile] + p.b_steps[step];
    for (int pair = 0; pair < kMatrixTile; ++pair, b += p.b_row) {
      const __m512bh operand = (__m512bh)_mm512_loadu_si512(b);
#pragma GCC unroll 16
      for (int row = 0; row < kMatrixTile; ++row) {
        int factor;
        __builtin_memcpy(&factor, a + row * p.a_row + 4 * pair, sizeof(factor));
        total[row] = _mm512_dpbf16_ps(total[row], (__m512bh)_mm512_set1_epi32(factor), operand);
      }
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < kMatrixTile; ++row) _mm512_store_ps(sums + row * p.sums_row, total[row]);
}

}  // namespace

bool has_matrix_unit(MatrixUnit unit) {
  static const bool has_dot = detect_dot(), has_amx = has_dot && detect_amx();
  return unit == MatrixUnit::amx ? has_amx : unit == MatrixUnit::dot ? has_dot : true;
}

MatrixRegisters::MatrixRegisters(MatrixUnit unit) : unit_(unit) {
  if (unit_ == MatrixUnit::amx) configure_tiles();
}

MatrixRegisters::~MatrixRegisters() {
  if (unit_ == MatrixUnit::amx) release_tiles();
}

template <bool kAdd>
void multiply(MatrixUnit unit, const MatrixProduct& product) {
  if (unit == MatrixUnit::amx) return multiply_amx<kAdd>(product);
  for (std::int64_t row = 0; row < product.row_tiles; ++row) {
    for (std::int64_t column = 0; column < product.column_tiles; ++column) multiply_dot<kAdd>(product, row, column);
  }
}

#else

bool has_matrix_unit(MatrixUnit unit) {
  return unit == MatrixUnit::none;
}

MatrixRegisters::MatrixRegisters(MatrixUnit unit) : unit_(unit) {}
MatrixRegisters::~MatrixRegisters() = default;

template <bool kAdd>
void multiply(MatrixUnit, const MatrixProduct&) {
  throw std::logic_error("no matrix unit in this build");
}

#endif

template void multiply<false>(MatrixUnit, const MatrixProduct&);
template void multiply<true>(MatrixUnit, const MatrixProduct&);

}  // namespace natten::cpu

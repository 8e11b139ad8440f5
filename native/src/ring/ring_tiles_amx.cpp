#include "isa/avx512.hpp"
#include "ring/ring_tiles.hpp"

namespace cloister {
namespace {

// The operand of ldtilecfg: of palette 1, all eight tiles in full.
struct alignas(64) TileConfiguration {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfiguration) == 64);

constexpr TileConfiguration kEightTiles{
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// Of two vectors of pairs of bytes, the bytes at even positions.
struct alignas(64) EvenBytes {
  constexpr EvenBytes() {
    for (int i = 0; i < 64; ++i) at[i] = static_cast<uint8_t>(2 * i);
  }
  uint8_t at[64]{};
};
constexpr EvenBytes kEvenBytes;

// The tiles of this thread. GCC's intrinsics do not tell the compiler what memory they read, so
// these do.
class AmxTiles {
 public:
  AmxTiles() { __asm__ volatile("ldtilecfg %0" ::"m"(kEightTiles)); }
  ~AmxTiles() { __asm__ volatile("tilerelease"); }
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;

  static void split(const int16_t* x, uint8_t* low, uint8_t* high) {
    const __m512i first = _mm512_loadu_si512(x), second = _mm512_loadu_si512(x + 32);
    const __m512i even = _mm512_load_si512(kEvenBytes.at);
    const __m512i odd = _mm512_add_epi8(even, _mm512_set1_epi8(1));
    _mm512_storeu_si512(low, _mm512_permutex2var_epi8(first, even, second));
    _mm512_storeu_si512(high, _mm512_permutex2var_epi8(first, odd, second));
  }

  template <int kTile>
  void zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  template <int kTile>
  void load(const void* rows, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(kTile)
                     : "memory");
  }
  template <int kTile>
  void store(void* rows, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(stride), "i"(kTile)
                     : "memory");
  }

  // sum += x w; u and s: the bytes of x, then those of w, are unsigned or signed.
  template <int kSum, int kX, int kW>
  void tdpbuud() {
    __asm__ volatile("tdpbuud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kX), "i"(kW));
  }
  template <int kSum, int kX, int kW>
  void tdpbusd() {
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kX), "i"(kW));
  }
  template <int kSum, int kX, int kW>
  void tdpbsud() {
    __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kX), "i"(kW));
  }
  template <int kSum, int kX, int kW>
  void tdpbssd() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kX), "i"(kW));
  }
};

}  // namespace

void ring_tile_product_amx(const RingTileJob& job) { tile_product<AmxTiles>(job); }

}  // namespace cloister

#if defined(__x86_64__)
// GCC 12 takes the undefined pass-through operand inside its own intrinsics for a bug of ours.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "ring_map_tile.hpp"
#include "transpose_avx512.hpp"

namespace cloister {
namespace {

struct Avx512 {
  using Reg = __m512i;
  static constexpr int kLanes = 16;
  static constexpr int kVectors = 2;
  static constexpr int kPixels1 = 12, kPixels2 = 6;  // 24 accumulators, 2 weights, 6 to spare

  static Reg zero() { return _mm512_setzero_si512(); }
  static Reg broadcast(int32_t pair) { return _mm512_set1_epi32(pair); }
  static Reg load(const void* p) { return _mm512_loadu_si512(p); }
  static void store(void* p, Reg v) { _mm512_storeu_si512(p, v); }
  static Reg load_some(const void* p, int64_t lanes) {
    return _mm512_maskz_loadu_epi32(mask(lanes), p);
  }
  static void store_some(void* p, Reg v, int64_t lanes) {
    _mm512_mask_storeu_epi32(p, mask(lanes), v);
  }
  static Reg add(Reg a, Reg b) { return _mm512_add_epi32(a, b); }
  static Reg multiply(Reg a, Reg b) { return _mm512_mullo_epi32(a, b); }
  // The masked form of the shift: GCC 12 takes the plain one's header for a use of an unset value.
  static Reg shift_left_16(Reg a) { return _mm512_maskz_slli_epi32(0xFFFF, a, 16); }
  // vpdpwssd wraps (vpdpwssds would saturate), also inside the sum of the pair.
  static Reg multiply_add(Reg acc, Reg x, Reg w) { return _mm512_dpwssd_epi32(acc, x, w); }
  // Far enough ahead of a dense layer's weights, which come from memory once.
  static void prefetch(const int16_t* weights) {
    _mm_prefetch(reinterpret_cast<const char*>(weights) + 2048, _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(weights) + 2048 + 64, _MM_HINT_T0);
  }

 private:
  static __mmask16 mask(int64_t lanes) { return static_cast<__mmask16>((1u << lanes) - 1u); }
};

// A pair is 32 bits: 16 pairs of 16 rows are a square.
int64_t pack(const int16_t* rows, int64_t length, int64_t width, int64_t pairs, int16_t* packed) {
  constexpr int64_t kSide = 16;
  int64_t pair = 0;
  for (; pair + kSide <= pairs; pair += kSide) {
    for (int64_t lane = 0; lane < kRingPanel; lane += kSide) {
      __m512i square[kSide];
      for (int64_t i = 0; i < kSide; ++i) {
        const int16_t* row = rows + (lane + i) * length + 2 * pair;
        square[i] = lane + i < width ? _mm512_loadu_si512(row) : _mm512_setzero_si512();
      }
      transpose_square(square);
      for (int64_t i = 0; i < kSide; ++i) {
        _mm512_storeu_si512(packed + 2 * ((pair + i) * kRingPanel + lane), square[i]);
      }
    }
  }
  return pair;
}

}  // namespace

const RingBackend kRingAvx512 = {&panel<Avx512>, &depthwise<Avx512>, &split, &pack};

}  // namespace cloister

#endif  // __x86_64__

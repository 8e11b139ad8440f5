#if defined(__x86_64__)
#include <immintrin.h>

#include "ring_map_tile.hpp"

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

}  // namespace

const RingBackend kRingAvx512 = {&panel<Avx512>, &depthwise<Avx512>, &split};

}  // namespace cloister

#endif  // __x86_64__

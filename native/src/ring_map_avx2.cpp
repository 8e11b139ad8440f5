#if defined(__x86_64__)
#include <immintrin.h>

#include "ring_map_tile.hpp"

namespace cloister {
namespace {

struct Avx2 {
  using Reg = __m256i;
  static constexpr int kLanes = 8;
  static constexpr int kVectors = 2;
  static constexpr int kPixels1 = 4, kPixels2 = 2;  // 8 accumulators, 2 weights, 6 to spare

  static Reg zero() { return _mm256_setzero_si256(); }
  static Reg broadcast(int32_t pair) { return _mm256_set1_epi32(pair); }
  static Reg load(const void* p) { return _mm256_loadu_si256(static_cast<const Reg*>(p)); }
  static void store(void* p, Reg v) { _mm256_storeu_si256(static_cast<Reg*>(p), v); }
  static Reg load_some(const void* p, int64_t lanes) {
    return _mm256_maskload_epi32(static_cast<const int*>(p), mask(lanes));
  }
  static void store_some(void* p, Reg v, int64_t lanes) {
    _mm256_maskstore_epi32(static_cast<int*>(p), mask(lanes), v);
  }
  static Reg add(Reg a, Reg b) { return _mm256_add_epi32(a, b); }
  static Reg multiply(Reg a, Reg b) { return _mm256_mullo_epi32(a, b); }
  static Reg shift_left_16(Reg a) { return _mm256_slli_epi32(a, 16); }
  // vpmaddwd's only overflow is 2 * (-2^15)^2 = 2^31, which it returns as -2^31: equal mod 2^32.
  static Reg multiply_add(Reg acc, Reg x, Reg w) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(x, w));
  }
  static void prefetch(const int16_t* weights) {
    _mm_prefetch(reinterpret_cast<const char*>(weights) + 2048, _MM_HINT_T0);
  }

 private:
  static Reg mask(int64_t lanes) {
    const Reg index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(lanes)), index);
  }
};

}  // namespace

const RingBackend kRingAvx2 = {&panel<Avx2>, &depthwise<Avx2>, &split, nullptr};

}  // namespace cloister

#endif  // __x86_64__

// Eight points at once, with IFMA.
//
// The instruction gives the low and high 52 bits of a product of two 52-bit numbers. With limbs of
// 51 bits a high half weighs 2^52 = 2 * 2^51, so it counts twice, one limb further up.
// Bounds for factors below 2^52: a column sums at most 5 low and 5 doubled high halves,
// < 15 * 2^52 < 2^56; folding adds 19 times another, < 20 * 2^56 < 2^61; one carry leaves limbs
// below 2^51 + 19 * 2^10.

// GCC 12 takes the undefined pass-through operand inside its own intrinsics for a bug of ours.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "curve_field.hpp"

namespace cloister {
namespace {

using Word8 = uint64_t __attribute__((vector_size(64)));
using Fe8 = Fe<Word8>;

inline __m512i m512(Word8 x) { return reinterpret_cast<__m512i>(x); }
inline Word8 word8(__m512i x) { return reinterpret_cast<Word8>(x); }

inline Word8 madd_lo(Word8 sum, Word8 a, Word8 b) {
  return word8(_mm512_madd52lo_epu64(m512(sum), m512(a), m512(b)));
}

inline Word8 madd_hi(Word8 sum, Word8 a, Word8 b) {
  return word8(_mm512_madd52hi_epu64(m512(sum), m512(a), m512(b)));
}

// low[k] at limb k, high[k] counts twice at limb k + 1.
inline Fe8 fold_columns(const Word8 (&low)[9], const Word8 (&high)[9]) {
  Word8 z[10];
  z[0] = low[0];
  for (int k = 1; k < 9; ++k) z[k] = low[k] + (high[k - 1] + high[k - 1]);
  z[9] = high[8] + high[8];
  Fe8 r;
  for (int k = 0; k < 5; ++k) {
    const Word8 top = z[k + 5];
    r.v[k] = z[k] + top + (top << 1) + (top << 4);
  }
  CLOISTER_DEBUG_ASSERT(limbs_below(r, uint64_t{1} << 61));
  return carry(r);
}

inline Fe8 mul(const Fe8& a, const Fe8& b) {
  CLOISTER_DEBUG_ASSERT(limbs_below(a, kFactor<Word8>) && limbs_below(b, kFactor<Word8>));
  Word8 low[9] = {}, high[9] = {};
#pragma GCC unroll 5
  for (int i = 0; i < 5; ++i) {
#pragma GCC unroll 5
    for (int j = 0; j < 5; ++j) {
      low[i + j] = madd_lo(low[i + j], a.v[i], b.v[j]);
      high[i + j] = madd_hi(high[i + j], a.v[i], b.v[j]);
    }
  }
  return fold_columns(low, high);
}

inline Fe8 sqr(const Fe8& a) {
  CLOISTER_DEBUG_ASSERT(limbs_below(a, kFactor<Word8>));
  Word8 low[9] = {}, high[9] = {};
#pragma GCC unroll 5
  for (int i = 0; i < 5; ++i) {
#pragma GCC unroll 5
    for (int j = i + 1; j < 5; ++j) {
      low[i + j] = madd_lo(low[i + j], a.v[i], a.v[j]);
      high[i + j] = madd_hi(high[i + j], a.v[i], a.v[j]);
    }
  }
#pragma GCC unroll 9
  for (int k = 0; k < 9; ++k) {
    low[k] = low[k] + low[k];
    high[k] = high[k] + high[k];
  }
#pragma GCC unroll 5
  for (int i = 0; i < 5; ++i) {
    low[2 * i] = madd_lo(low[2 * i], a.v[i], a.v[i]);
    high[2 * i] = madd_hi(high[2 * i], a.v[i], a.v[i]);
  }
  return fold_columns(low, high);
}

}  // namespace
}  // namespace cloister

// After the vector form's products: these functions are written over them.
#include "curve_vartime.hpp"

namespace cloister {

const CurveBackend kCurveAvx512 = backend_of<Word8>();

}  // namespace cloister

// Arithmetic modulo P = 2^52 - 47 on eight lanes with IFMA: lo and hi accumulate the low and high
// 52 bits of products of two 52-bit numbers, and stand for lo + 2^52 hi = lo + 47 hi (mod P).
// A sum of up to kHalvesInSum such halves stays below 2^64. Included by AVX-512 back ends only.
#pragma once
#include "check/p52.hpp"
#include "isa/avx512.hpp"

namespace cloister {
namespace {

constexpr int64_t kHalvesInSum = 4095;

// Below 2^52 + 2^18 from anything (47 * 4095 < 2^18); below 2^52 from anything below 2^52 + 2^51;
// at most 2^52 + 46 from anything below 2^53.
inline __m512i fold52(__m512i v) {
  const __m512i low = _mm512_and_si512(v, _mm512_set1_epi64(kLow52));
  const __m512i high = _mm512_srli_epi64(v, 52);
  const __m512i folded = _mm512_madd52lo_epu64(low, high, _mm512_set1_epi64(kFold));
  CLOISTER_DEBUG_ASSERT(Avx512::below(folded, (uint64_t{1} << 52) + (1 << 18)));
  return folded;
}

// A residue below 2^52 from any lo and hi. h: below 2^52 + 2^18, then below 2^52, because a number
// in [2^52, 2^52 + 2^18) folds to less than 2^18 + 47. The sum: below 2^52 + 2^18 (lo) + 2^52 (low
// half of 47 h) + 47^2 (high half, below 47, times 47) < 2^53 + 2^19; then at most 2^52 + 94; then
// below 2^52.
inline __m512i reduce52(__m512i lo, __m512i hi) {
  const __m512i fold = _mm512_set1_epi64(kFold);
  const __m512i h = fold52(fold52(hi));
  CLOISTER_DEBUG_ASSERT(Avx512::below(h, uint64_t{1} << 52));
  const __m512i top = _mm512_madd52hi_epu64(_mm512_setzero_si512(), h, fold);
  __m512i v = _mm512_madd52lo_epu64(fold52(lo), h, fold);
  v = _mm512_madd52lo_epu64(v, top, fold);
  CLOISTER_DEBUG_ASSERT(Avx512::below(v, (uint64_t{1} << 53) + (1 << 19)));
  v = fold52(v);
  CLOISTER_DEBUG_ASSERT(Avx512::below(v, (uint64_t{1} << 52) + 95));
  v = fold52(v);
  CLOISTER_DEBUG_ASSERT(Avx512::below(v, uint64_t{1} << 52));
  return v;
}

// Canonical residue of v below 2^52 = P + 47: one subtraction, whose wrap-around min() discards.
inline __m512i canonical52(__m512i v) {
  CLOISTER_DEBUG_ASSERT(Avx512::below(v, uint64_t{1} << 52));
  return _mm512_min_epu64(v, _mm512_sub_epi64(v, _mm512_set1_epi64(kP52)));
}

}  // namespace
}  // namespace cloister

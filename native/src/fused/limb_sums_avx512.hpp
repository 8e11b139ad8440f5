// Sums of digits of check coefficients (limbs.hpp) with VNNI. Included by AVX-512 back ends only.
#pragma once
#include "fused/limbs.hpp"
#include "fused/sums_avx512.hpp"

namespace cloister::rows {
namespace {

using I512 = Avx512::I;
using DigitSum = SummingAvx512::Parts<4>;

// Two vectors of small integers as one of pairs.
inline I512 joined(I512 low, I512 high) {
  return _mm512_mask_blend_epi16(0xAAAAAAAA, low, _mm512_slli_epi32(high, 16));
}

// The sums of the four digits of one term.
struct LimbSums {
  static constexpr auto kStart = limb_start();
  I512 limb[kLimbs];

  LimbSums() {
    for (size_t i = 0; i < kLimbs; ++i) {
      limb[i] = _mm512_set1_epi32(static_cast<int>(kStart[i]));
    }
  }

  // Coefficients of a pair of pixels, the same in all channels.
  static I512 digits(const LimbPairs& pairs, int i) {
    return _mm512_set1_epi32(static_cast<int>(pairs.limb[i]));
  }
  static I512 digits(const LimbBlock& block, int i) { return _mm512_load_si512(block.limb[i]); }

  inline __attribute__((always_inline)) void add(const auto& coefficients, I512 value, int i) {
    limb[i] = _mm512_dpwssd_epi32(limb[i], value, digits(coefficients, i));
  }

  // Every channel's sum times its coefficient: d0 + d1 2^13, and d2 + d3 2^13, which weighs 2^26.
  // Both are below 2^46.
  void into(DigitSum& sum, I512 lower, I512 upper) const {
    const I512 even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
    const I512 odd = _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
    sum.add(even_lanes(limb[0], limb[1]), even_lanes(limb[2], limb[3]),
            _mm512_permutex2var_epi64(lower, even, upper));
    sum.add(odd_lanes(limb[0], limb[1]), odd_lanes(limb[2], limb[3]),
            _mm512_permutex2var_epi64(lower, odd, upper));
  }
  void into(DigitSum& sum, const uint64_t* coefficients) const {
    into(sum, _mm512_loadu_si512(coefficients), _mm512_loadu_si512(coefficients + 8));
  }
  void into(DigitSum& sum, const uint64_t* coefficients, Avx512::M m) const {
    into(sum, _mm512_maskz_loadu_epi64(static_cast<__mmask8>(m), coefficients),
         _mm512_maskz_loadu_epi64(static_cast<__mmask8>(m >> 8), coefficients + 8));
  }

  // The sum over all channels times a pixel's factors: (factor, 2^26 factor). Lanes 0, 2, 4, 6 get
  // d0 + d1 2^13, below 2^48, and the others d2 + d3 2^13.
  void into_pixel(DigitSum& sum, const uint64_t* factors) const {
    const I512 low =
        _mm512_add_epi64(even_and_odd(0), _mm512_slli_epi64(even_and_odd(1), kLimbBits));
    const I512 high =
        _mm512_add_epi64(even_and_odd(2), _mm512_slli_epi64(even_and_odd(3), kLimbBits));
    const I512 both =
        _mm512_add_epi64(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
    CLOISTER_DEBUG_ASSERT(Avx512::below(both, uint64_t{1} << 49));
    const __m128i pair = _mm_loadu_si128(reinterpret_cast<const __m128i*>(factors));
    sum.add_low(both, _mm512_broadcast_i64x2(pair));
  }

 private:
  static I512 even_lanes(I512 low, I512 high) {
    return _mm512_add_epi64(_mm512_maskz_mov_epi32(0x5555, low),
                            _mm512_slli_epi64(_mm512_maskz_mov_epi32(0x5555, high), kLimbBits));
  }
  static I512 odd_lanes(I512 low, I512 high) {
    return _mm512_add_epi64(_mm512_srli_epi64(low, 32),
                            _mm512_slli_epi64(_mm512_srli_epi64(high, 32), kLimbBits));
  }
  I512 even_and_odd(int i) const {
    const I512 even = _mm512_and_si512(limb[i], _mm512_set1_epi64(0xffffffff));
    return _mm512_add_epi64(even, _mm512_srli_epi64(limb[i], 32));
  }
};

}  // namespace
}  // namespace cloister::rows

// The check sums of fused steps with AVX2, from 32-bit products. Included by AVX2 back ends only.
#pragma once
#include "check/p52.hpp"
#include "fused/row_kernels.hpp"
#include "isa/avx2.hpp"

namespace cloister {
namespace {

struct SummingAvx2 : Avx2 {
  static constexpr int64_t kBlock = 8 * 32;  // 32 additions per accumulator: see Dot

  // A HalfBlock has two words for every channel.
  static const uint32_t* coefficients(const ReplyRow& row, int64_t channel) {
    return reinterpret_cast<const uint32_t*>(row.halves) + 2 * channel;
  }

  // Coefficients in halves of 26 bits, integers in even and odd lanes: a product with 32 bits is
  // below 2^58, 32 of them below 2^63, and even and odd lanes together below 2^64. With 14 bits a
  // product is below 2^40, and a tile has less than 2^12 of them.
  struct Dot {
    I low[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()}, high[2] = {low[0], low[0]};
    uint64_t folded = 0;

    // From a HalfBlock, which has zeros where there is no channel.
    inline __attribute__((always_inline)) void add(const uint32_t* halves, I value, auto...) {
      const auto* p = reinterpret_cast<const I*>(halves);
      accumulate(_mm256_load_si256(p), _mm256_load_si256(p + 1), value);
    }
    void accumulate(I l, I h, I value) {
      const I odd = _mm256_srli_epi64(value, 32);
      low[0] = _mm256_add_epi64(low[0], _mm256_mul_epu32(value, l));
      low[1] = _mm256_add_epi64(low[1], _mm256_mul_epu32(odd, _mm256_shuffle_epi32(l, 0xF5)));
      high[0] = _mm256_add_epi64(high[0], _mm256_mul_epu32(value, h));
      high[1] = _mm256_add_epi64(high[1], _mm256_mul_epu32(odd, _mm256_shuffle_epi32(h, 0xF5)));
    }
    // One coefficient a lane.
    inline __attribute__((always_inline)) void add(const uint64_t* coefficients, I value) {
      const auto* p = reinterpret_cast<const I*>(coefficients);
      accumulate(0, _mm256_loadu_si256(p), _mm256_castsi256_si128(value));
      accumulate(1, _mm256_loadu_si256(p + 1), _mm256_extracti128_si256(value, 1));
    }
    inline __attribute__((always_inline)) void add(const uint64_t* coefficients, I value, M m) {
      const auto* p = reinterpret_cast<const long long*>(coefficients);
      const I m0 = _mm256_cvtepi32_epi64(_mm256_castsi256_si128(m));
      const I m1 = _mm256_cvtepi32_epi64(_mm256_extracti128_si256(m, 1));
      accumulate(0, _mm256_maskload_epi64(p, m0), _mm256_castsi256_si128(value));
      accumulate(1, _mm256_maskload_epi64(p + 4, m1), _mm256_extracti128_si256(value, 1));
    }
    void accumulate(int i, I coefficients, __m128i value) {
      const I v = _mm256_cvtepu32_epi64(value);
      const I low26 = _mm256_and_si256(coefficients, _mm256_set1_epi64x((1 << 26) - 1));
      low[i] = _mm256_add_epi64(low[i], _mm256_mul_epu32(low26, v));
      high[i] = _mm256_add_epi64(high[i], _mm256_mul_epu32(_mm256_srli_epi64(coefficients, 26), v));
    }
    // Below 2^61. Of the four lanes of both sums, the low and the high 32 bits are added up apart,
    // to less than 2^34 each: l0 + l1 2^32 + h0 2^26 + h1 2^58, with 2^52 = 47 (mod P).
    inline __attribute__((always_inline)) uint64_t residue() const {
      CLOISTER_DEBUG_ASSERT(below_63(low[0]) && below_63(low[1]));
      CLOISTER_DEBUG_ASSERT(below_63(high[0]) && below_63(high[1]));
      const I l = halves_of(_mm256_add_epi64(low[0], low[1]));
      const I h = halves_of(_mm256_add_epi64(high[0], high[1]));
      alignas(32) uint64_t sums[4];
      _mm256_store_si256(reinterpret_cast<I*>(sums),
                         _mm256_add_epi64(_mm256_permute2x128_si256(l, h, 0x20),
                                          _mm256_permute2x128_si256(l, h, 0x31)));
      const uint64_t middle = sums[1] & ((1 << 20) - 1);
      const uint64_t residue = folded + sums[0] + (middle << 32) + kFold * (sums[1] >> 20) +
                               (sums[2] << 26) + (kFold << 6) * sums[3];
      CLOISTER_DEBUG_ASSERT(residue >> 61 == 0);
      return residue;
    }
    static bool below_63(I v) { return _mm256_movemask_pd(_mm256_castsi256_pd(v)) == 0; }
    static I halves_of(I v) {
      const I l = _mm256_and_si256(v, _mm256_set1_epi64x(0xffffffff));
      const I h = _mm256_srli_epi64(v, 32);
      return _mm256_add_epi64(_mm256_unpacklo_epi64(l, h), _mm256_unpackhi_epi64(l, h));
    }
    // Below 2^53.
    void fold() {
      folded = cloister::fold(residue());
      CLOISTER_DEBUG_ASSERT(folded >> 53 == 0);
      low[0] = low[1] = high[0] = high[1] = _mm256_setzero_si256();
    }
  };

  struct Sum {
    U128 sum;
    explicit Sum(const CheckLanes& lanes) : sum(lanes.part[0][0]) {}
    // `index` counts the additions, each below 2^113.
    inline __attribute__((always_inline)) void add(const Dot& dot, uint64_t factor, int64_t index) {
      sum += static_cast<U128>(dot.residue()) * factor;
      CLOISTER_DEBUG_ASSERT(sum >> 125 == 0);  // 2^11 of them, and a residue
      if ((index & 2047) == 2047) fold();
    }
    void add(const Dot& dot) { sum += dot.residue(); }
    // Products below 2^101 of two numbers below 2^49 with two factors: 2^25 of them fit, and a tile
    // adds less than 2^12 for a term.
    inline __attribute__((always_inline)) void add(uint64_t low, uint64_t high,
                                                   const uint64_t* factors) {
      CLOISTER_DEBUG_ASSERT(low >> 49 == 0 && high >> 49 == 0);
      sum += static_cast<U128>(low) * factors[0];
      sum += static_cast<U128>(high) * factors[1];
    }
    void fold() { sum = reduce(sum); }
    void save(CheckLanes& lanes) const { lanes.part[0][0] = reduce(sum); }
  };
};

}  // namespace
}  // namespace cloister

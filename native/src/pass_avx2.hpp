// The vector type of the AVX2 back end of Pass (pass_rows.hpp): eight lanes, check sums from 32-bit
// products. Included by AVX2 back ends only.
#pragma once
#include <immintrin.h>

#include "p52.hpp"
#include "pass_rows.hpp"

namespace cloister {

struct Avx2 {
  using F = __m256;
  using I = __m256i;
  using M = __m256i;
  static constexpr int64_t kLanes = 8;
  static constexpr int64_t kBlock = 8 * 32;  // 32 additions per accumulator: see Dot
  static M first(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  static const int* words(const uint32_t* p) { return reinterpret_cast<const int*>(p); }
  static F set(float v) { return _mm256_set1_ps(v); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F load(const float* p, M m) { return _mm256_maskload_ps(p, m); }
  static I load(const uint32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static I load(const uint32_t* p, M m) { return _mm256_maskload_epi32(words(p), m); }
  // The empty statement makes the loaded value opaque: the compiler cannot load it again.
  static I load_once(const uint32_t* p, auto... m) {
    I v = load(p, m...);
    __asm__ volatile("" : "+x"(v));
    return v;
  }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static void store(float* p, F v, M m) { _mm256_maskstore_ps(p, m, v); }
  static void store(uint32_t* p, I v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static void store(uint32_t* p, I v, M m) {
    _mm256_maskstore_epi32(reinterpret_cast<int*>(p), m, v);
  }
  static __m128i narrow(I v) {
    return _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  }
  static void store_narrow(int16_t* p, I v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(v));
  }
  static void store_narrow(int16_t* p, I v, M m) {
    alignas(16) int16_t all[8];
    _mm_store_si128(reinterpret_cast<__m128i*>(all), narrow(v));
    const int count =
        __builtin_popcount(static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(m))));
    for (int i = 0; i < count; ++i) p[i] = all[i];
  }
  static F add(F x, F y) { return _mm256_add_ps(x, y); }
  static F mul(F x, F y) { return _mm256_mul_ps(x, y); }
  static F div(F x, F y) { return _mm256_div_ps(x, y); }
  static F max(F x, F y) { return _mm256_max_ps(x, y); }
  static F min(F x, F y) { return _mm256_min_ps(x, y); }
  static F to_float(I v) { return _mm256_cvtepi32_ps(v); }
  static I round(F v) { return _mm256_cvtps_epi32(v); }
  static I plus(I x, I y) { return _mm256_add_epi32(x, y); }
  static I plus(I x, int y) { return _mm256_add_epi32(x, _mm256_set1_epi32(y)); }
  static F sub(F x, F y) { return _mm256_sub_ps(x, y); }
  static I sub(I x, I y) { return _mm256_sub_epi32(x, y); }
  static I flip_sign(I v) { return _mm256_xor_si256(v, _mm256_set1_epi32(INT32_MIN)); }
  static I zero() { return _mm256_setzero_si256(); }
  static F within(F v, F limit) { return min(max(v, sub(_mm256_setzero_ps(), limit)), limit); }
  static I count_changed(I counts, F before, F after) {
    return sub(counts, _mm256_castps_si256(_mm256_cmp_ps(before, after, _CMP_NEQ_UQ)));
  }
  static uint64_t total(I counts) {
    const I pairs = _mm256_hadd_epi32(counts, counts);
    const I sums = _mm256_hadd_epi32(pairs, pairs);  // lanes 0 and 4: of either half
    return static_cast<uint32_t>(_mm256_extract_epi32(sums, 0)) +
           uint64_t{static_cast<uint32_t>(_mm256_extract_epi32(sums, 4))};
  }

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
      const I l = halves_of(_mm256_add_epi64(low[0], low[1]));
      const I h = halves_of(_mm256_add_epi64(high[0], high[1]));
      alignas(32) uint64_t sums[4];
      _mm256_store_si256(reinterpret_cast<I*>(sums),
                         _mm256_add_epi64(_mm256_permute2x128_si256(l, h, 0x20),
                                          _mm256_permute2x128_si256(l, h, 0x31)));
      const uint64_t middle = sums[1] & ((1 << 20) - 1);
      return folded + sums[0] + (middle << 32) + kFold * (sums[1] >> 20) + (sums[2] << 26) +
             (kFold << 6) * sums[3];
    }
    static I halves_of(I v) {
      const I l = _mm256_and_si256(v, _mm256_set1_epi64x(0xffffffff));
      const I h = _mm256_srli_epi64(v, 32);
      return _mm256_add_epi64(_mm256_unpacklo_epi64(l, h), _mm256_unpackhi_epi64(l, h));
    }
    // Below 2^53.
    void fold() {
      const uint64_t v = residue();
      folded = (v & kLow52) + kFold * (v >> 52);
      low[0] = low[1] = high[0] = high[1] = _mm256_setzero_si256();
    }
  };

  struct Sum {
    U128 sum;
    explicit Sum(const CheckLanes& lanes) : sum(lanes.lane[0]) {}
    // `index` counts the additions, each below 2^113.
    inline __attribute__((always_inline)) void add(const Dot& dot, uint64_t factor, int64_t index) {
      sum += static_cast<U128>(dot.residue()) * factor;
      if ((index & 2047) == 2047) fold();
    }
    void add(const Dot& dot) { sum += dot.residue(); }
    // Products below 2^101 of two numbers below 2^49 with two factors: 2^25 of them fit, and a tile
    // adds less than 2^12 for a term.
    inline __attribute__((always_inline)) void add(uint64_t low, uint64_t high,
                                                   const uint64_t* factors) {
      sum += static_cast<U128>(low) * factors[0];
      sum += static_cast<U128>(high) * factors[1];
    }
    void fold() { sum = reduce(sum); }
    void save(CheckLanes& lanes) const { lanes.lane[0] = reduce(sum); }
  };
};

}  // namespace cloister

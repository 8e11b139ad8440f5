// The vector type of the AVX-512 back end of Pass (pass_rows.hpp), with IFMA for the check sums.
// Included by AVX-512 back ends only.
#pragma once
#include "aes_ctr_avx512.hpp"
#include "p52_avx512.hpp"
#include "pass_rows.hpp"

namespace cloister {

struct Avx512 {
  using F = __m512;
  using I = __m512i;
  using M = __mmask16;
  static constexpr int64_t kLanes = 16;
  static constexpr int64_t kBlock = 16 * 2000;  // 2000 additions per accumulator: see Dot
  static constexpr int64_t kShortBlock = kBlock;
  static M first(int count) { return static_cast<M>((1u << count) - 1); }

  static F set(float v) { return _mm512_set1_ps(v); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load(const float* p, M m) { return _mm512_maskz_loadu_ps(m, p); }
  static I load(const uint32_t* p) { return _mm512_loadu_si512(p); }
  static I load(const uint32_t* p, M m) { return _mm512_maskz_loadu_epi32(m, p); }
  // The empty statement makes the loaded value opaque: the compiler cannot load it again.
  static I load_once(const uint32_t* p, auto... m) {
    I v = load(p, m...);
    __asm__ volatile("" : "+v"(v));
    return v;
  }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static void store(float* p, F v, M m) { _mm512_mask_storeu_ps(p, m, v); }
  static void store(uint32_t* p, I v) { _mm512_storeu_si512(p, v); }
  static void store(uint32_t* p, I v, M m) { _mm512_mask_storeu_epi32(p, m, v); }
  static void store_narrow(int16_t* p, I v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(v));
  }
  static void store_narrow(int16_t* p, I v, M m) {
    _mm256_mask_storeu_epi16(p, m, _mm512_cvtepi32_epi16(v));
  }
  static F add(F x, F y) { return _mm512_add_ps(x, y); }
  static F mul(F x, F y) { return _mm512_mul_ps(x, y); }
  static F div(F x, F y) { return _mm512_div_ps(x, y); }
  static F max(F x, F y) { return _mm512_max_ps(x, y); }
  static F min(F x, F y) { return _mm512_min_ps(x, y); }
  static F to_float(I v) { return _mm512_cvtepi32_ps(v); }
  static I round(F v) { return _mm512_cvtps_epi32(v); }
  static I plus(I x, I y) { return _mm512_add_epi32(x, y); }
  static I plus(I x, int y) { return _mm512_add_epi32(x, _mm512_set1_epi32(y)); }
  static F sub(F x, F y) { return _mm512_sub_ps(x, y); }
  static I sub(I x, I y) { return _mm512_sub_epi32(x, y); }
  static I flip_sign(I v) { return _mm512_xor_si512(v, _mm512_set1_epi32(INT32_MIN)); }
  static I zero() { return _mm512_setzero_si512(); }
  // The smaller magnitude, with the sign of v.
  static F within(F v, F limit) { return _mm512_range_ps(v, limit, 0x2); }
  static I count_changed(I counts, F before, F after) {
    const M changed =
        _mm512_cmpneq_epi32_mask(_mm512_castps_si512(before), _mm512_castps_si512(after));
    return _mm512_mask_sub_epi32(counts, changed, counts, _mm512_set1_epi32(-1));
  }
  static uint64_t total(I counts) { return static_cast<uint32_t>(_mm512_reduce_add_epi32(counts)); }
  static const uint64_t* coefficients(const ReplyRow& row, int64_t channel) {
    return row.b + channel;
  }

  // Lanes 0-7 and 8-15 of the integers have accumulators of their own: four chains hide the
  // latency of IFMA. One addition to each per step.
  struct Dot {
    I lo0 = _mm512_setzero_si512(), hi0 = lo0, lo1 = lo0, hi1 = lo0;

    void add(const uint64_t* coefficients, I value) {
      accumulate(_mm512_loadu_si512(coefficients), _mm512_loadu_si512(coefficients + 8), value);
    }
    void add(const uint64_t* coefficients, I value, M m) {
      accumulate(_mm512_maskz_loadu_epi64(static_cast<__mmask8>(m), coefficients),
                 _mm512_maskz_loadu_epi64(static_cast<__mmask8>(m >> 8), coefficients + 8), value);
    }
    void accumulate(I c0, I c1, I value) {
      const I v0 = _mm512_cvtepu32_epi64(_mm512_castsi512_si256(value));
      const I v1 = _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64(value, 1));
      lo0 = _mm512_madd52lo_epu64(lo0, c0, v0);
      hi0 = _mm512_madd52hi_epu64(hi0, c0, v0);
      lo1 = _mm512_madd52lo_epu64(lo1, c1, v1);
      hi1 = _mm512_madd52hi_epu64(hi1, c1, v1);
    }
    // lo: below 2^52 + 2^18 folded, plus 47 * 2000 * 2^32 < 2^49, so below 2^53 as a start.
    void fold() {
      const I fold = _mm512_set1_epi64(kFold);
      lo0 = _mm512_madd52lo_epu64(fold52(lo0), hi0, fold);
      lo1 = _mm512_madd52lo_epu64(fold52(lo1), hi1, fold);
      hi0 = hi1 = _mm512_setzero_si512();
    }
    // Below 2^52. Since the last fold: lo0 + lo1 < 2 * (2000 + 2) * 2^52, hi0 + hi1 < 4000 * 2^32,
    // 47 times which is below 2^52. Together below 4005 * 2^52, which folds to less than
    // 2^52 + 2^18, which folds to less than 2^52.
    I residue() const {
      const I lo = _mm512_add_epi64(lo0, lo1);
      const I hi = _mm512_add_epi64(hi0, hi1);
      return fold52(fold52(_mm512_madd52lo_epu64(lo, hi, _mm512_set1_epi64(kFold))));
    }
  };

  struct Sum {
    I lo, hi;
    explicit Sum(const CheckLanes& lanes)
        : lo(_mm512_load_si512(lanes.lane)), hi(_mm512_setzero_si512()) {}
    // `index` counts the additions: both halves are below 2^52, so 2048 of them fit.
    void add(const Dot& dot, uint64_t factor, int64_t index) {
      const I residue = dot.residue();
      const I f = _mm512_set1_epi64(static_cast<long long>(factor));
      lo = _mm512_madd52lo_epu64(lo, residue, f);
      hi = _mm512_madd52hi_epu64(hi, residue, f);
      if ((index & 2047) == 2047) {
        lo = fold52(lo);
        hi = fold52(hi);
      }
    }
    void add(const Dot& dot) { lo = fold52(_mm512_add_epi64(lo, dot.residue())); }
    // Both below 2^52: 4095 of them fit, and a tile has no more.
    void add(I residue, I factors) {
      lo = _mm512_madd52lo_epu64(lo, residue, factors);
      hi = _mm512_madd52hi_epu64(hi, residue, factors);
    }
    void save(CheckLanes& lanes) const { _mm512_store_si512(lanes.lane, reduce52(lo, hi)); }
  };
};

}  // namespace cloister

// The check sums of fused steps with IFMA. Included by AVX-512 back ends only.
#pragma once
#include "check/p52_avx512.hpp"
#include "fused/row_kernels.hpp"
#include "isa/avx512.hpp"

namespace cloister {
namespace {

struct SummingAvx512 : Avx512 {
  static constexpr int64_t kBlock = 16 * 2000;  // 2000 additions per accumulator: see Dot
  static constexpr int64_t kShortBlock = kBlock;

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
      CLOISTER_DEBUG_ASSERT(below(lo0, ~kLow52) && below(lo1, ~kLow52));  // room for 52 bits
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
      CLOISTER_DEBUG_ASSERT(below(lo0, uint64_t{1} << 53) && below(lo1, uint64_t{1} << 53));
    }
    // Below 2^52. Since the last fold: lo0 + lo1 < 2 * (2000 + 2) * 2^52, hi0 + hi1 < 4000 * 2^32,
    // 47 times which is below 2^52. Together below 4005 * 2^52, which folds to less than
    // 2^52 + 2^18, which folds to less than 2^52.
    I residue() const {
      const I lo = _mm512_add_epi64(lo0, lo1);
      const I hi = _mm512_add_epi64(hi0, hi1);
      CLOISTER_DEBUG_ASSERT(below(lo, uint64_t{4004} << 52) && below(hi, uint64_t{4000} << 32));
      const I v = fold52(fold52(_mm512_madd52lo_epu64(lo, hi, _mm512_set1_epi64(kFold))));
      CLOISTER_DEBUG_ASSERT(below(v, uint64_t{1} << 52));
      return v;
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
      CLOISTER_DEBUG_ASSERT(factor <= kLow52 && has_room());
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
      CLOISTER_DEBUG_ASSERT(below(residue, kLow52 + 1) && below(factors, kLow52 + 1));
      CLOISTER_DEBUG_ASSERT(has_room());
      lo = _mm512_madd52lo_epu64(lo, residue, factors);
      hi = _mm512_madd52hi_epu64(hi, residue, factors);
    }
    bool has_room() const { return below(lo, ~kLow52) && below(hi, ~kLow52); }
    void save(CheckLanes& lanes) const { _mm512_store_si512(lanes.lane, reduce52(lo, hi)); }
  };
};

}  // namespace
}  // namespace cloister

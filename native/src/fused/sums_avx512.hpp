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
      accumulate_wide(c0, c1, v0, v1);
    }
    // Even and odd lanes instead, of an answer as it is: its sign is flipped on the way.
    void accumulate_pairs(I even, I odd, I value) {
      const I sign = _mm512_set1_epi32(INT32_MIN);
      accumulate_wide(even, odd, _mm512_maskz_xor_epi32(0x5555, value, sign),
                      _mm512_srli_epi64(_mm512_xor_si512(value, sign), 32));
    }
    void accumulate_wide(I c0, I c1, I v0, I v1) {
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

  // Sixteen coefficients as PairBlock has them.
  struct Pairs {
    I even, odd;
    explicit Pairs(const PairBlock& block)
        : even(_mm512_load_si512(block.even)), odd(_mm512_load_si512(block.odd)) {}
  };

  // Sums of products, low and high halves apart; those of `top` weigh kPartWeights[kTop].
  template <size_t kTop>
  struct Parts {
    I lo, hi, top_lo, top_hi;
    explicit Parts(const CheckLanes& lanes)
        : lo(_mm512_load_si512(lanes.part[0])),
          hi(_mm512_load_si512(lanes.part[1])),
          top_lo(_mm512_load_si512(lanes.part[kTop])),
          top_hi(_mm512_load_si512(lanes.part[kTop + 1])) {}

    // Of all three only the low 52 bits count. 4000 additions fit between two folds.
    inline __attribute__((always_inline)) void add(I low, I top, I factors) {
      add_low(low, factors);
      top_lo = _mm512_madd52lo_epu64(top_lo, top, factors);
      top_hi = _mm512_madd52hi_epu64(top_hi, top, factors);
    }
    inline __attribute__((always_inline)) void add_low(I low, I factors) {
      CLOISTER_DEBUG_ASSERT(below(factors, kLow52 + 1) && has_room());
      lo = _mm512_madd52lo_epu64(lo, low, factors);
      hi = _mm512_madd52hi_epu64(hi, low, factors);
    }
    void fold() {
      lo = fold52(lo);
      hi = fold52(hi);
      top_lo = fold52(top_lo);
      top_hi = fold52(top_hi);
    }
    bool has_room() const {
      return below(lo, ~kLow52) && below(hi, ~kLow52) && below(top_lo, ~kLow52) &&
             below(top_hi, ~kLow52);
    }
    void save(CheckLanes& lanes) {
      fold();
      _mm512_store_si512(lanes.part[0], lo);
      _mm512_store_si512(lanes.part[1], hi);
      _mm512_store_si512(lanes.part[kTop], top_lo);
      _mm512_store_si512(lanes.part[kTop + 1], top_hi);
    }
  };

  // Of Dots: what lies above their low 52 bits weighs 2^52.
  struct Sum : Parts<2> {
    using Parts<2>::Parts;
    // One factor for all lanes. lo0 + lo1 < 4004 * 2^52 and hi0 + hi1 < 4000 * 2^32 (see Dot).
    inline __attribute__((always_inline)) void add(const Dot& dot, uint64_t factor) {
      add_halves(_mm512_add_epi64(dot.lo0, dot.lo1), _mm512_add_epi64(dot.hi0, dot.hi1),
                 _mm512_set1_epi64(static_cast<long long>(factor)));
    }
    inline __attribute__((always_inline)) void add(const Dot& dot, const Pairs& factors) {
      add_halves(dot.lo0, dot.hi0, factors.even);
      add_halves(dot.lo1, dot.hi1, factors.odd);
    }
    void add(const Dot& dot) { lo = fold52(_mm512_add_epi64(lo, dot.residue())); }

   private:
    inline __attribute__((always_inline)) void add_halves(I low, I high, I factors) {
      const I top = _mm512_add_epi64(high, _mm512_srli_epi64(low, 52));
      CLOISTER_DEBUG_ASSERT(below(top, kLow52 + 1));
      Parts<2>::add(low, top, factors);
    }
  };
};

}  // namespace
}  // namespace cloister

// Emission with factored check coefficients as digits (limbs.hpp): VNNI adds up the check while the
// request is written. Included by AVX-512 back ends only.
#pragma once
#include "fused/limbs.hpp"
#include "fused/requests_avx512.hpp"

namespace cloister::rows {
namespace {

using I512 = Avx512::I;

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
  inline __attribute__((always_inline)) void add(const LimbPairs& pairs, I512 value) {
#pragma GCC unroll 4
    for (int i = 0; i < kLimbs; ++i) {
      const I512 both = _mm512_set1_epi32(static_cast<int>(pairs.limb[i]));
      limb[i] = _mm512_dpwssd_epi32(limb[i], value, both);
    }
  }

  inline __attribute__((always_inline)) void add(const LimbBlock& block, I512 value) {
#pragma GCC unroll 4
    for (int i = 0; i < kLimbs; ++i) {
      limb[i] = _mm512_dpwssd_epi32(limb[i], _mm512_load_si512(block.limb[i]), value);
    }
  }

  // d0 + d1 2^13 + 2^26 (d2 + d3 2^13) of eight channels, below 2^52. Both brackets are below
  // 2^46; the product's low half is below 2^52 and 47 times its high half below 2^26, so if the sum
  // reaches 2^52, what is left below is less than 2^47, and one fold is enough.
  static I512 residue(I512 d0, I512 d1, I512 d2, I512 d3) {
    const I512 shift = _mm512_set1_epi64(int64_t{1} << 26);
    const I512 low = _mm512_add_epi64(d0, _mm512_slli_epi64(d1, kLimbBits));
    const I512 high = _mm512_add_epi64(d2, _mm512_slli_epi64(d3, kLimbBits));
    const I512 top = _mm512_madd52hi_epu64(_mm512_setzero_si512(), high, shift);
    const I512 v = _mm512_madd52lo_epu64(low, high, shift);
    CLOISTER_DEBUG_ASSERT(Avx512::below(low, uint64_t{1} << 46));
    CLOISTER_DEBUG_ASSERT(Avx512::below(high, uint64_t{1} << 46));
    const I512 sum = fold52(_mm512_madd52lo_epu64(v, top, _mm512_set1_epi64(kFold)));
    CLOISTER_DEBUG_ASSERT(Avx512::below(sum, uint64_t{1} << 52));
    return sum;
  }

  // Every channel's sum times its coefficient.
  void into(SummingAvx512::Sum& sum, const uint64_t* coefficients) const {
    sum.add(half<0>(), _mm512_loadu_si512(coefficients));
    sum.add(half<1>(), _mm512_loadu_si512(coefficients + 8));
  }
  void into(SummingAvx512::Sum& sum, const uint64_t* coefficients, Avx512::M m) const {
    const auto low = static_cast<__mmask8>(m);
    const auto high = static_cast<__mmask8>(m >> 8);
    sum.add(half<0>(), _mm512_maskz_loadu_epi64(low, coefficients));
    sum.add(half<1>(), _mm512_maskz_loadu_epi64(high, coefficients + 8));
  }

  // The sum over all channels times a pixel's factors: (factor, 2^26 factor). Lanes 0, 2, 4, 6 get
  // d0 + d1 2^13, below 2^48, and the others d2 + d3 2^13.
  void into_pixel(SummingAvx512::Sum& sum, const uint64_t* factors) const {
    const I512 low =
        _mm512_add_epi64(even_and_odd(0), _mm512_slli_epi64(even_and_odd(1), kLimbBits));
    const I512 high =
        _mm512_add_epi64(even_and_odd(2), _mm512_slli_epi64(even_and_odd(3), kLimbBits));
    const I512 both =
        _mm512_add_epi64(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
    CLOISTER_DEBUG_ASSERT(Avx512::below(both, uint64_t{1} << 49));
    const __m128i pair = _mm_loadu_si128(reinterpret_cast<const __m128i*>(factors));
    sum.add(both, _mm512_broadcast_i64x2(pair));
  }

 private:
  template <int kHalf>
  I512 half() const {
    const auto wide = [](I512 v) {
      return _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64(v, kHalf));
    };
    return residue(wide(limb[0]), wide(limb[1]), wide(limb[2]), wide(limb[3]));
  }
  I512 even_and_odd(int i) const {
    const I512 even = _mm512_and_si512(limb[i], _mm512_set1_epi64(0xffffffff));
    return _mm512_add_epi64(even, _mm512_srli_epi64(limb[i], 32));
  }
};

// Terms `first` .. `first` + kTerms, a vector of channels after the other: all pixels of a channel
// have the channel's coefficient in common.
template <int kTerms, class Request>
[[gnu::noinline]] void limbs_by_channels(const EmitRow& row, const Request& request,
                                         CheckLanes& lanes, int64_t first) {
  TileQuantiser quantiser(row);
  const int64_t c = row.channels;
  const LimbPairs* columns = row.limbs->columns(row.x, first);
  const int64_t stride = row.terms;
  const int64_t longest = 2 * row.limb_pairs;
  SummingAvx512::Sum sum(lanes);
  for (int64_t begin = 0; begin < row.pixels; begin += longest) {
    const int64_t end = std::min(row.pixels, begin + longest);
    over<Avx512>(0, c, [&](int64_t j, auto... mask) __attribute__((always_inline)) {
      LimbSums sums[kTerms];
      auto run = request.run(begin * c + j, c);
      const auto add = [&](int64_t p, I512 q0, I512 q1) __attribute__((always_inline)) {
        const I512 value = joined(q0, q1);
#pragma GCC unroll 3
        for (int k = 0; k < kTerms; ++k) {
          sums[k].add(columns[p * stride + k], value);
        }
      };
      int64_t p = begin;
      for (; p + kVectors <= end; p += kVectors) {
        I512 pad[kVectors], q[kVectors];
        run.template next<kVectors>(pad);
#pragma GCC unroll 4
        for (int i = 0; i < kVectors; ++i) {
          const int64_t at = (p + i) * c + j;
          q[i] = quantiser(at, mask...);
          run.put(at, q[i], pad[i], mask...);
        }
        add(p, q[0], q[1]);
        add(p + 2, q[2], q[3]);
      }
      for (; p < end; p += 2) {
        I512 q[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
        for (int i = 0; i < 2 && p + i < end; ++i) {
          I512 pad[1];
          run.template next<1>(pad);
          const int64_t at = (p + i) * c + j;
          q[i] = quantiser(at, mask...);
          run.put(at, q[i], pad[0], mask...);
        }
        add(p, q[0], q[1]);
      }
      for (int k = 0; k < kTerms; ++k) {
        sums[k].into(sum, row.t + (first + k) * row.term_stride + j, mask...);
      }
    });
  }
  sum.save(lanes);
  quantiser.count(lanes);
}

// The same, a pixel after the other: all channels of a pixel have its factor in common.
template <int kTerms, class Request>
[[gnu::noinline]] void limbs_by_pixels(const EmitRow& row, const Request& request,
                                       CheckLanes& lanes, int64_t first) {
  const LimbCheck& check = *row.limbs;
  TileQuantiser quantiser(row);
  const int64_t c = row.channels;
  const int64_t longest = kLimbChannels * row.limb_pairs;
  const LimbBlock* blocks[kTerms];
  for (int k = 0; k < kTerms; ++k) {
    blocks[k] = check.row(row.y, first + k) + row.first_channel / kLimbChannels;
  }
  SummingAvx512::Sum sum(lanes);
  for (int64_t p = 0; p < row.pixels; ++p) {
    auto run = request.run(p * c, Avx512::kLanes);
    for (int64_t begin = 0; begin < c; begin += longest) {
      const int64_t end = std::min(c, begin + longest);
      LimbSums sums[kTerms];
      const auto add = [&](int64_t j, I512 q0, I512 q1) __attribute__((always_inline)) {
        const I512 value = joined(q0, q1);
#pragma GCC unroll 3
        for (int k = 0; k < kTerms; ++k) sums[k].add(blocks[k][j / kLimbChannels], value);
      };
      int64_t j = begin;
      for (; j + 2 * kLimbChannels <= end; j += 2 * kLimbChannels) {
        I512 pad[kVectors], q[kVectors];
        run.template next<kVectors>(pad);
#pragma GCC unroll 4
        for (int i = 0; i < kVectors; ++i) q[i] = quantiser(p * c + j + i * Avx512::kLanes);
        put_pair(run, p * c + j, q, pad);
        put_pair(run, p * c + j + kLimbChannels, q + 2, pad + 2);
        add(j, q[0], q[1]);
        add(j + kLimbChannels, q[2], q[3]);
      }
      for (; j < end; j += kLimbChannels) {
        I512 q[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
        for (int i = 0; i < 2; ++i) {
          const int64_t left = end - j - i * Avx512::kLanes;
          if (left <= 0) break;
          const auto mask = Avx512::first(static_cast<int>(std::min(left, Avx512::kLanes)));
          I512 pad[1];
          run.template next<1>(pad);
          const int64_t at = p * c + j + i * Avx512::kLanes;
          q[i] = quantiser(at, mask);
          run.put(at, q[i], pad[0], mask);
        }
        add(j, q[0], q[1]);
      }
      for (int k = 0; k < kTerms; ++k) {
        sums[k].into_pixel(sum, check.factors(first + k, row.x + p));
      }
    }
  }
  sum.save(lanes);
  quantiser.count(lanes);
}

template <int kTerms, class Request>
void limbs_at_once(const EmitRow& row, const Request& request, CheckLanes& lanes, int64_t first) {
  if constexpr (Request::kByChannels) {
    if (row.limbs->by_channels()) return limbs_by_channels<kTerms>(row, request, lanes, first);
  }
  limbs_by_pixels<kTerms>(row, request, lanes, first);
}

// Three terms from `first` on, or one: how many it has summed. There is no code for two, because
// few kernels have two columns or five.
template <class Request>
int64_t sum_terms(const EmitRow& row, const Request& request, CheckLanes& lanes, int64_t first) {
  if (row.terms - first >= kTermsAtOnce) {
    limbs_at_once<kTermsAtOnce>(row, request, lanes, first);
    return kTermsAtOnce;
  }
  limbs_at_once<1>(row, request, lanes, first);
  return 1;
}

// What is left of the check when the request is written: it reads the values again.
void emit_rest(const EmitRow& row, CheckLanes& lanes, int64_t first);

template <class Request>
void emit_limbs(const EmitRow& row, const Request& request, CheckLanes& lanes) {
  const int64_t summed = sum_terms(row, request, lanes, 0);
  if (summed < row.terms) emit_rest(row, lanes, summed);
}

}  // namespace
}  // namespace cloister::rows

// The checks of requests from staged integers (pass_requests_avx2.hpp): factored coefficients as
// digits (limbs.hpp), or one coefficient for every element. Included by AVX2 back ends only.
#pragma once
#include "limbs.hpp"
#include "pass_requests_avx2.hpp"

namespace cloister::rows::avx2 {

// The sums of the four digits of one term.
struct LimbSums {
  static constexpr auto kStart = limb_start();
  I256 limb[kLimbs];

  LimbSums() {
    for (size_t i = 0; i < kLimbs; ++i) {
      limb[i] = _mm256_set1_epi32(static_cast<int>(kStart[i]));
    }
  }

  inline __attribute__((always_inline)) void add(const LimbBlock& block, const I256* pairs) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const I256 value = _mm256_load_si256(pairs + half);
#pragma GCC unroll 4
      for (int i = 0; i < kLimbs; ++i) {
        const auto* digits = reinterpret_cast<const I256*>(block.limb[i]) + half;
        limb[i] = _mm256_add_epi32(limb[i], _mm256_madd_epi16(_mm256_load_si256(digits), value));
      }
    }
  }

  // The sum over all channels times a pixel's factors: (factor, 2^26 factor) of d0 + d1 2^13 and
  // of d2 + d3 2^13. Eight lanes of 32 bits are below 2^35, so both are below 2^49.
  inline __attribute__((always_inline)) void into_pixel(Avx2::Sum& sum,
                                                        const uint64_t* factors) const {
    const I256 low =
        _mm256_add_epi64(even_and_odd(0), _mm256_slli_epi64(even_and_odd(1), kLimbBits));
    const I256 high =
        _mm256_add_epi64(even_and_odd(2), _mm256_slli_epi64(even_and_odd(3), kLimbBits));
    const I256 both =
        _mm256_add_epi64(_mm256_unpacklo_epi64(low, high), _mm256_unpackhi_epi64(low, high));
    const __m128i pair =
        _mm_add_epi64(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    alignas(16) uint64_t sums[2];
    _mm_store_si128(reinterpret_cast<__m128i*>(sums), pair);
    sum.add(sums[0], sums[1], factors);
  }

 private:
  I256 even_and_odd(int i) const {
    const I256 even = _mm256_and_si256(limb[i], _mm256_set1_epi64x(0xffffffff));
    return _mm256_add_epi64(even, _mm256_srli_epi64(limb[i], 32));
  }
};

// A pixel after the other: all channels of a pixel have its factor in common.
inline void emit_limbs(const EmitRow& row, Write write, CheckLanes& lanes) {
  const LimbCheck& check = *row.limbs;
  const int64_t blocks = (row.channels + kLimbChannels - 1) / kLimbChannels;
  static_assert(limb_pairs(8191) >= 2);
  const int64_t longest = row.limb_pairs / 2;  // a block adds two pairs to every lane
  const int64_t group = std::max<int64_t>(kTile / kLimbChannels / blocks, 1);
  Avx2::Sum sum(lanes);
  Staged staged;
  for (int64_t begin = 0; begin < row.pixels; begin += group) {
    const int64_t end = std::min(row.pixels, begin + group);
    if (row.channels % kLimbChannels == 0) {
      lanes.clipped += write(row, begin * row.channels, (end - begin) * row.channels, staged.pairs);
    } else {
      for (int64_t p = begin; p < end; ++p) {
        I256* pairs = staged.pairs + (p - begin) * 2 * blocks;
        lanes.clipped += write(row, p * row.channels, row.channels, pairs);
      }
    }
    for (int64_t k = 0; k < row.terms; ++k) {
      const LimbBlock* digits = check.row(row.y, k) + row.first_channel / kLimbChannels;
      const I256* pairs = staged.pairs;
      for (int64_t p = begin; p < end; ++p) {
        for (int64_t first = 0; first < blocks; first += longest) {
          const int64_t last = std::min(blocks, first + longest);
          LimbSums sums;
          for (int64_t i = first; i < last; ++i, pairs += 2) sums.add(digits[i], pairs);
          sums.into_pixel(sum, check.factors(k, row.x + p));
        }
      }
      sum.fold();
    }
  }
  sum.save(lanes);
}

// Every element with a coefficient of its own.
inline void emit_dense(const EmitRow& row, Write write, CheckLanes& lanes) {
  const int64_t count = row.pixels * row.channels;
  Avx2::Sum sum(lanes);
  Avx2::Dot dot;
  Staged staged;
  lanes.clipped += write(row, 0, count, staged.pairs);
  over<Avx2>(0, count, [&](int64_t j, auto... mask) __attribute__((always_inline)) {
    const I256 pairs = staged.pairs[j / kLimbChannels * 2 + j / Avx2::kLanes % 2];
    const I256 q = j % kLimbChannels < 16 ? lower(pairs) : upper(pairs);
    prefetch(row.t + j);
    dot.add(row.t + j, Avx2::plus(q, kShortBias), mask...);
  });
  sum.add(dot);
  sum.save(lanes);
}

}  // namespace cloister::rows::avx2

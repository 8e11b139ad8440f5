// Emission with factored check coefficients as digits where pixels are taken by twos (limbs.hpp):
// four products of two pixels take the place of six. Included by AVX-512 back ends only.
#pragma once
#include "fused/limb_sums_avx512.hpp"
#include "fused/requests_avx512.hpp"

namespace cloister::rows {
namespace {

constexpr int kPairTerms = LimbCheck::kPairTerms;

// What the four terms multiply: of every first and second pixel the sum, the difference, the first
// and the second.
struct PairValues {
  I512 of[kPairTerms];

  PairValues(I512 first, I512 second)
      : of{_mm512_add_epi16(first, second), _mm512_sub_epi16(first, second), first, second} {}
};

// The products of one round of AES; kVaesRounds rounds make all.
inline __attribute__((always_inline)) void add_some(LimbSums* sums, const PairValues& values,
                                                    int round, const auto& coefficients) {
  constexpr int kAdds = kLimbs * kPairTerms;
#pragma GCC unroll 16
  for (int n = 0; n < kAdds; ++n) {
    if (n < round * kAdds / kVaesRounds || n >= (round + 1) * kAdds / kVaesRounds) continue;
    const int k = n % kPairTerms;
    sums[k].add(coefficients(k), values.of[k], n / kPairTerms);
  }
}
inline __attribute__((always_inline)) void add_all(LimbSums* sums, const PairValues& values,
                                                   const auto& coefficients) {
#pragma GCC unroll 16
  for (int i = 0; i < kVaesRounds; ++i) add_some(sums, values, i, coefficients);
}

// Two pixels after the other two: see limbs_by_pixels. Of 32 channels at a time.
template <class Request>
[[gnu::noinline]] void pairs_by_pixels(const EmitRow& row, const Request& request,
                                       CheckLanes& lanes) {
  const LimbCheck& check = *row.limbs;
  TileQuantiser quantiser(row);
  const int64_t c = row.channels;
  const int64_t longest = kLimbChannels * (row.limb_pairs / 2);
  const LimbBlock* blocks[kPairTerms];
  for (int k = 0; k < kPairTerms; ++k) {
    blocks[k] = check.row(row.y, k) + row.first_channel / kLimbChannels;
  }
  DigitSum sum(lanes);
  I512 pad[kVectors], q[kVectors];
  auto run = request.square(0, c);
  run.template next<kVectors>(pad, kNothing);
  for (int64_t p = 0; p < row.pixels; p += 2) {
    const bool two = p + 1 < row.pixels;
    for (int64_t begin = 0; begin < c; begin += longest) {
      const int64_t end = std::min(c, begin + longest);
      LimbSums sums[kPairTerms];
      for (int64_t j = begin; j < end; j += kLimbChannels) {
        const int64_t first = p * c + j, second = first + c;
        for (int i = 0; i < 2; ++i) q[i] = quantiser(first + i * Avx512::kLanes);
        put_pair(run, first, q, pad);
        if (two) {
          for (int i = 0; i < 2; ++i) q[2 + i] = quantiser(second + i * Avx512::kLanes);
          put_pair(run, second, q + 2, pad + 2);
        } else {
          q[2] = q[3] = _mm512_setzero_si512();
        }
        const PairValues values(joined(q[0], q[1]), joined(q[2], q[3]));
        const auto at = [&](int k) -> const LimbBlock& { return blocks[k][j / kLimbChannels]; };
        if (j + kLimbChannels == c) run.skip(c);
        if (j + kLimbChannels < c || p + 2 < row.pixels) {
          run.template next<kVectors>(pad, [&](int round) __attribute__((always_inline)) {
            add_some(sums, values, round, at);
          });
        } else {
          add_all(sums, values, at);
        }
      }
#pragma GCC unroll 4
      for (int k = 0; k < kPairTerms; ++k) {
        sums[k].into_pixel(sum, check.factors(k, row.x + p));
      }
    }
  }
  sum.save(lanes);
  quantiser.count(lanes);
}

}  // namespace
}  // namespace cloister::rows

// Emission with factored check coefficients as digits (limbs.hpp): VNNI adds up the check while the
// request is written. Included by AVX-512 back ends only.
#pragma once
#include "fused/digit_pairs_avx512.hpp"
#include "fused/limb_sums_avx512.hpp"
#include "fused/requests_avx512.hpp"

namespace cloister::rows {
namespace {

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
  DigitSum sum(lanes);
  for (int64_t begin = 0; begin < row.pixels; begin += longest) {
    const int64_t end = std::min(row.pixels, begin + longest);
    over<Avx512>(0, c, [&](int64_t j, auto... mask) __attribute__((always_inline)) {
      LimbSums sums[kTerms];
      auto run = request.run(begin * c + j, c);
      const auto add = [&](int64_t p, I512 q0, I512 q1) __attribute__((always_inline)) {
        const I512 value = joined(q0, q1);
#pragma GCC unroll 3
        for (int k = 0; k < kTerms; ++k) {
#pragma GCC unroll 4
          for (int i = 0; i < kLimbs; ++i) sums[k].add(columns[p * stride + k], value, i);
        }
      };
      int64_t p = begin;
      I512 pad[kVectors], q[kVectors];
      if (p + kVectors <= end) run.template next<kVectors>(pad, kNothing);
      for (; p + kVectors <= end; p += kVectors) {
#pragma GCC unroll 4
        for (int i = 0; i < kVectors; ++i) {
          const int64_t at = (p + i) * c + j;
          q[i] = quantiser(at, mask...);
          run.put(at, q[i], pad[i], mask...);
        }
        const I512 v0 = joined(q[0], q[1]), v1 = joined(q[2], q[3]);
        constexpr int kAdds = 2 * kLimbs * kTerms;
        const LimbPairs* of0 = columns + p * stride;
        const LimbPairs* of1 = of0 + 2 * stride;
        const auto some = [&](int round) __attribute__((always_inline)) {
#pragma GCC unroll 24
          for (int n = 0; n < kAdds; ++n) {
            if (n < round * kAdds / kVaesRounds || n >= (round + 1) * kAdds / kVaesRounds) continue;
            const int k = n / kLimbs % kTerms;
            sums[k].add((n < kAdds / 2 ? of0 : of1)[k], n < kAdds / 2 ? v0 : v1, n % kLimbs);
          }
        };
        if (p + 2 * kVectors <= end) {
          run.template next<kVectors>(pad, some);
        } else {
#pragma GCC unroll 16
          for (int i = 0; i < kVaesRounds; ++i) some(i);
        }
      }
      for (; p < end; p += 2) {
        I512 q[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
        for (int i = 0; i < 2 && p + i < end; ++i) {
          I512 pad[1];
          run.template next<1>(pad, kNothing);
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
  const int64_t longest = 2 * kLimbChannels * (row.limb_pairs / 2);
  const LimbBlock* blocks[kTerms];
  for (int k = 0; k < kTerms; ++k) {
    blocks[k] = check.row(row.y, first + k) + row.first_channel / kLimbChannels;
  }
  DigitSum sum(lanes);
  const bool whole = c % (2 * kLimbChannels) == 0;
  I512 pad[kVectors], q[kVectors];
  auto run = request.run(0, Avx512::kLanes);
  if (whole) run.template next<kVectors>(pad, kNothing);
  for (int64_t p = 0; p < row.pixels; ++p) {
    if (!whole) run = request.run(p * c, Avx512::kLanes);
    for (int64_t begin = 0; begin < c; begin += longest) {
      const int64_t end = std::min(c, begin + longest);
      LimbSums sums[kTerms];
      const auto add = [&](int64_t j, I512 q0, I512 q1) __attribute__((always_inline)) {
        const I512 value = joined(q0, q1);
#pragma GCC unroll 3
        for (int k = 0; k < kTerms; ++k) {
#pragma GCC unroll 4
          for (int i = 0; i < kLimbs; ++i) sums[k].add(blocks[k][j / kLimbChannels], value, i);
        }
      };
      int64_t j = begin;
      for (; whole && j < end; j += 2 * kLimbChannels) {
#pragma GCC unroll 4
        for (int i = 0; i < kVectors; ++i) q[i] = quantiser(p * c + j + i * Avx512::kLanes);
        put_pair(run, p * c + j, q, pad);
        put_pair(run, p * c + j + kLimbChannels, q + 2, pad + 2);
        const I512 v0 = joined(q[0], q[1]), v1 = joined(q[2], q[3]);
        const int64_t block = j / kLimbChannels;
        constexpr int kAdds = 2 * kLimbs * kTerms;
        const auto some = [&](int round) __attribute__((always_inline)) {
#pragma GCC unroll 24
          for (int n = 0; n < kAdds; ++n) {
            if (n < round * kAdds / kVaesRounds || n >= (round + 1) * kAdds / kVaesRounds) continue;
            const int k = n / kLimbs % kTerms;
            sums[k].add(blocks[k][block + n / (kLimbs * kTerms)], n < kAdds / 2 ? v0 : v1,
                        n % kLimbs);
          }
        };
        if (p + 1 < row.pixels || j + 2 * kLimbChannels < c) {
          run.template next<kVectors>(pad, some);
        } else {
#pragma GCC unroll 16
          for (int i = 0; i < kVaesRounds; ++i) some(i);
        }
      }
      for (; j < end; j += kLimbChannels) {
        I512 q[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
        for (int i = 0; i < 2; ++i) {
          const int64_t left = end - j - i * Avx512::kLanes;
          if (left <= 0) break;
          const auto mask = Avx512::first(static_cast<int>(std::min(left, Avx512::kLanes)));
          I512 pad[1];
          run.template next<1>(pad, kNothing);
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
  if (row.limbs->by_pairs()) return pairs_by_pixels(row, request, lanes);
  const int64_t summed = sum_terms(row, request, lanes, 0);
  if (summed < row.terms) emit_rest(row, lanes, summed);
}

}  // namespace
}  // namespace cloister::rows

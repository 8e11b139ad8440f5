// Answers to float32, checked with IFMA. All orders of the same sum give the same residue, so the
// order is the one that loads least: with few channels, what a channel needs (scale, bias) stays in
// registers for a block of pixels; with many, two pixels share it. Included by AVX-512 back ends
// only.
#pragma once
#include <bit>
#include <cmath>

#include "fused/sums_avx512.hpp"

namespace cloister::rows {
namespace {

constexpr int64_t kManyChannels = 256;  // more: pixels by twos

// What is done to every vector of an answer, and which of it.
template <bool kUnblind, bool kResidual, bool kCheck, bool kRelu>
struct Answer {
  static constexpr bool kChecked = kCheck;
  using S = SummingAvx512;
  const ReplyRow& row;
  S::F lo = S::set(row.lo), hi = S::set(row.hi);

  // Pixel p, channels from j on.
  inline __attribute__((always_inline)) void step(int64_t p, int64_t j, S::F scale, S::F bias,
                                                  S::I c0, S::I c1, S::Dot& dot,
                                                  auto... mask) const {
    const int64_t at = p * row.channels + j;
    // The only read of the reply: `z` goes into the check and into the value.
    auto z = S::load_once(row.reply + at, mask...);
    if (row.alone) prefetch_behind(row.reply + at, row.far_bytes);
    if constexpr (kUnblind) {
      if (row.alone) prefetch_behind(row.unblind + at, row.far_bytes);
      z = S::sub(z, S::load(row.unblind + at, mask...));
    }
    if constexpr (kCheck) dot.accumulate_pairs(c0, c1, z);
    auto f = S::add(S::mul(S::to_float(z), scale), bias);
    const float* residual = nullptr;
    if constexpr (kResidual) {
      residual = row.residual + p * row.residual_pixel + j;
      prefetch(residual);
    }
    if constexpr (kRelu) {
      if constexpr (kResidual) f = S::add(f, S::load(residual, mask...));
      f = S::from_zero(f);
    } else {
      f = add_and_clamp<S, kResidual>(f, residual, lo, hi, mask...);
    }
    S::store(row.out + at, f, mask...);
  }
};

// A channel after the other: the pixels' factors are broadcast.
template <class Reply>
void reply_by_channels(const ReplyRow& row, CheckLanes& lanes) {
  using S = SummingAvx512;
  const Reply answer{row};
  // A Dot takes less than 2000 additions.
  const int64_t block = std::clamp<int64_t>(kRowBlock / row.channels, 1, kColumnPixels);
  S::Sum sum(lanes);
  for (int64_t begin = 0; begin < row.pixels; begin += block) {
    const int64_t end = std::min(row.pixels, begin + block);
    over<S>(0, row.channels, [&](int64_t j, auto... mask) __attribute__((always_inline)) {
      const auto scale = S::load(row.scale + j, mask...);
      const auto bias = S::load(row.bias + j, mask...);
      S::Dot dot;
      for (int64_t p = begin; p < end; ++p) {
        S::I a = S::zero();
        if constexpr (Reply::kChecked) a = _mm512_set1_epi64(static_cast<long long>(row.a[p]));
        answer.step(p, j, scale, bias, a, a, dot, mask...);
      }
      if constexpr (Reply::kChecked) sum.add(dot, S::Pairs(row.pairs[j / kPairChannels]));
    });
    if constexpr (Reply::kChecked) sum.fold();
  }
  if constexpr (Reply::kChecked) sum.save(lanes);
}

template <class Reply, int kPixels>
inline __attribute__((always_inline)) void reply_pixels(const Reply& answer, int64_t p,
                                                        SummingAvx512::Sum& sum) {
  using S = SummingAvx512;
  const ReplyRow& row = answer.row;
  S::Dot dots[kPixels];
  for (int64_t start = 0; start < row.channels; start += S::kBlock) {
    if (Reply::kChecked && start != 0) {
      for (S::Dot& dot : dots) dot.fold();
    }
    const int64_t end = std::min(row.channels, start + S::kBlock);
    over<S>(start, end, [&](int64_t j, auto... mask) __attribute__((always_inline)) {
      const auto scale = S::load(row.scale + j, mask...);
      const auto bias = S::load(row.bias + j, mask...);
      S::I c0 = S::zero(), c1 = c0;
      if constexpr (Reply::kChecked) {
        const S::Pairs pairs(row.pairs[j / kPairChannels]);
        c0 = pairs.even;
        c1 = pairs.odd;
      }
#pragma GCC unroll 2
      for (int i = 0; i < kPixels; ++i) {
        answer.step(p + i, j, scale, bias, c0, c1, dots[i], mask...);
      }
    });
  }
  if constexpr (Reply::kChecked) {
    for (int i = 0; i < kPixels; ++i) sum.add(dots[i], row.a[p + i]);
  }
}

template <class Reply>
void reply_by_pixels(const ReplyRow& row, CheckLanes& lanes) {
  const Reply answer{row};
  SummingAvx512::Sum sum(lanes);
  int64_t p = 0;
  for (; p + 2 <= row.pixels; p += 2) {
    reply_pixels<Reply, 2>(answer, p, sum);
    if constexpr (Reply::kChecked) {
      if (p % 1024 == 1022) sum.fold();
    }
  }
  for (; p < row.pixels; ++p) reply_pixels<Reply, 1>(answer, p, sum);
  if constexpr (Reply::kChecked) sum.save(lanes);
}

template <bool kUnblind, bool kResidual, bool kCheck, bool kRelu>
void reply_in_order(const ReplyRow& given, CheckLanes& lanes) {
  const ReplyRow row = given;  // no other code has its address: it stays in registers
  using Reply = Answer<kUnblind, kResidual, kCheck, kRelu>;
  return row.channels <= kManyChannels && row.pixels >= 4 ? reply_by_channels<Reply>(row, lanes)
                                                          : reply_by_pixels<Reply>(row, lanes);
}

template <bool kUnblind, bool kResidual, bool kCheck>
void reply_clamped(const ReplyRow& row, CheckLanes& lanes) {
  const bool relu = std::bit_cast<uint32_t>(row.lo) == 0 && std::isinf(row.hi);
  return relu ? reply_in_order<kUnblind, kResidual, kCheck, true>(row, lanes)
              : reply_in_order<kUnblind, kResidual, kCheck, false>(row, lanes);
}

void any_reply_avx512(const ReplyRow& row, CheckLanes& lanes) {
  const int kind = (row.unblind ? 4 : 0) + (row.residual ? 2 : 0) + (row.a ? 1 : 0);
  switch (kind) {
    case 0: return reply_clamped<false, false, false>(row, lanes);
    case 1: return reply_clamped<false, false, true>(row, lanes);
    case 2: return reply_clamped<false, true, false>(row, lanes);
    case 3: return reply_clamped<false, true, true>(row, lanes);
    case 4: return reply_clamped<true, false, false>(row, lanes);
    case 5: return reply_clamped<true, false, true>(row, lanes);
    case 6: return reply_clamped<true, true, false>(row, lanes);
    default: return reply_clamped<true, true, true>(row, lanes);
  }
}

}  // namespace
}  // namespace cloister::rows

#include <algorithm>
#include <vector>

#include "freivalds_backend.hpp"
#include "p52_avx512.hpp"

namespace cloister {
namespace {

constexpr int64_t kRows = 8;  // rows of weights read side by side per sweep over the accumulators

struct Halves {
  __m512i lo, hi;
};

// lo and hi of eight columns, plus `rows` more rows of weights.
template <int kCount>
Halves sweep(Halves sum, const int16_t* weights, int64_t stride, const __m512i* b, __mmask8 mask) {
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
    const __m128i narrow = _mm_maskz_loadu_epi16(mask, weights + i * stride);
    // Flipping the sign bit adds 2^15: unsigned 16 bits.
    const __m512i weight = _mm512_cvtepu16_epi64(_mm_xor_si128(narrow, _mm_set1_epi16(INT16_MIN)));
    sum.lo = _mm512_madd52lo_epu64(sum.lo, weight, b[i]);
    sum.hi = _mm512_madd52hi_epu64(sum.hi, weight, b[i]);
  }
  return sum;
}

template <int kCount>
void sweep_rows(const int16_t* weights, int64_t stride, const uint64_t* b, int64_t width,
                Halves* sums) {
  __m512i coefficients[kCount];
  for (int i = 0; i < kCount; ++i) {
    coefficients[i] = _mm512_set1_epi64(static_cast<long long>(b[i]));
  }
  for (int64_t j = 0; j < width; j += 8) {
    const int64_t left = std::min<int64_t>(width - j, 8);
    const auto mask = static_cast<__mmask8>((1u << left) - 1);
    sums[j / 8] = sweep<kCount>(sums[j / 8], weights + j, stride, coefficients, mask);
  }
}

void fold_weights(const int16_t* weights, int64_t stride, const uint64_t* b, int64_t count,
                  int64_t width, uint64_t* fold) {
  const Halves zero{_mm512_setzero_si512(), _mm512_setzero_si512()};
  std::vector<Halves> sums(static_cast<size_t>((width + 7) / 8), zero);
  uint64_t b_sum = 0;
  int64_t pending = 0;
  int64_t o = 0;
  while (o < count) {
    const bool wide = o + kRows <= count;
    const int64_t rows = wide ? kRows : 1;
    // hi grows by less than 2^16 a row and never needs folding.
    if (pending + rows > 4000) {
      for (Halves& sum : sums) sum.lo = fold52(sum.lo);
      pending = 2;
    }
    if (wide) {
      sweep_rows<kRows>(weights + o * stride, stride, b + o, width, sums.data());
    } else {
      sweep_rows<1>(weights + o * stride, stride, b + o, width, sums.data());
    }
    for (int64_t i = 0; i < rows; ++i) b_sum = add(b_sum, b[o + i]);
    pending += rows;
    o += rows;
  }
  const __m512i bias = _mm512_set1_epi64(static_cast<long long>(kP52 - multiply(b_sum, 1u << 15)));
  for (int64_t j = 0; j < width; j += 8) {
    const auto mask = static_cast<__mmask8>((1u << std::min<int64_t>(width - j, 8)) - 1);
    const Halves& sum = sums[static_cast<size_t>(j / 8)];
    const __m512i v = _mm512_add_epi64(reduce52(sum.lo, sum.hi), bias);  // below 2^53
    _mm512_mask_storeu_epi64(fold + j, mask, canonical52(fold52(fold52(v))));
  }
}

void combine(const AdjointTap* taps, int64_t count, int64_t width, uint64_t* t) {
  for (int64_t j = 0; j < width; j += 8) {
    const auto mask = static_cast<__mmask8>((1u << std::min<int64_t>(width - j, 8)) - 1);
    __m512i lo = _mm512_setzero_si512();
    __m512i hi = _mm512_setzero_si512();
    for (int64_t i = 0; i < count; ++i) {
      if (i % 4000 == 3999) {
        lo = fold52(lo);
        hi = fold52(hi);
      }
      const __m512i a = _mm512_set1_epi64(static_cast<long long>(taps[i].a));
      const __m512i fold = _mm512_maskz_loadu_epi64(mask, taps[i].fold + j);
      lo = _mm512_madd52lo_epu64(lo, fold, a);
      hi = _mm512_madd52hi_epu64(hi, fold, a);
    }
    _mm512_mask_storeu_epi64(t + j, mask, canonical52(reduce52(lo, hi)));
  }
}

}  // namespace

const FreivaldsBackend kFreivaldsAvx512{fold_weights, combine};

}  // namespace cloister

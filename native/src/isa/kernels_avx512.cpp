#include <algorithm>
#include <vector>

#include "check/p52_avx512.hpp"
#include "isa/avx512.hpp"
#include "pads/aes_ni.hpp"
#include "pads/share_kernels.hpp"
#include "ring/dense_gradient_kernels.hpp"
#include "ring/fixed_point_kernels.hpp"
#include "ring/ring_kernels.hpp"

namespace cloister {
namespace {

// ---- ring/

constexpr int64_t kSide = 16;

__mmask16 first_lanes(int64_t count) {
  return count < kSide ? static_cast<__mmask16>((1u << count) - 1u) : __mmask16{0xFFFF};
}

// A pair is 32 bits: 16 pairs of 16 rows are a square.
int64_t pack_squares(const int16_t* rows, int64_t length, int64_t width, int64_t pairs,
                     int16_t* packed) {
  int64_t pair = 0;
  for (; pair + kSide <= pairs; pair += kSide) {
    for (int64_t lane = 0; lane < kRingPanel; lane += kSide) {
      __m512i square[kSide];
      for (int64_t i = 0; i < kSide; ++i) {
        const int16_t* row = rows + (lane + i) * length + 2 * pair;
        square[i] = lane + i < width ? _mm512_loadu_si512(row) : _mm512_setzero_si512();
      }
      transpose_square(square);
      for (int64_t i = 0; i < kSide; ++i) {
        _mm512_storeu_si512(packed + 2 * ((pair + i) * kRingPanel + lane), square[i]);
      }
    }
  }
  return pair;
}

void transpose_squares(const uint32_t* x, int64_t rows, int64_t columns, uint32_t* out) {
  for (int64_t j = 0; j < columns; j += kSide) {
    const int64_t width = columns - j < kSide ? columns - j : kSide;
    for (int64_t i = 0; i < rows; i += kSide) {
      const int64_t height = rows - i < kSide ? rows - i : kSide;
      __m512i square[kSide];
      for (int64_t k = 0; k < kSide; ++k) {
        square[k] = k < height
                        ? _mm512_maskz_loadu_epi32(first_lanes(width), x + (i + k) * columns + j)
                        : _mm512_setzero_si512();
      }
      transpose_square(square);
      for (int64_t k = 0; k < width; ++k) {
        _mm512_mask_storeu_epi32(out + (j + k) * rows + i, first_lanes(height), square[k]);
      }
    }
  }
}

// ---- check/

constexpr int64_t kRows = 8;  // rows of weights read side by side per sweep over the accumulators

struct ProductHalves {
  __m512i lo, hi;
};

// lo and hi of eight columns, plus `rows` more rows of weights.
template <int kCount>
ProductHalves sweep(ProductHalves sum, const int16_t* weights, int64_t stride, const __m512i* b,
                    __mmask8 mask) {
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
                ProductHalves* sums) {
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
  const ProductHalves zero{_mm512_setzero_si512(), _mm512_setzero_si512()};
  std::vector<ProductHalves> sums(static_cast<size_t>((width + 7) / 8), zero);
  uint64_t b_sum = 0;
  int64_t pending = 0;
  int64_t o = 0;
  while (o < count) {
    const bool wide = o + kRows <= count;
    const int64_t rows = wide ? kRows : 1;
    // hi grows by less than 2^16 a row and never needs folding.
    if (pending + rows > 4000) {
      for (ProductHalves& sum : sums) sum.lo = fold52(sum.lo);
      pending = 2;
    }
    if (wide) {
      sweep_rows<kRows>(weights + o * stride, stride, b + o, width, sums.data());
    } else {
      sweep_rows<1>(weights + o * stride, stride, b + o, width, sums.data());
    }
    for (int64_t i = 0; i < rows; ++i) b_sum = add(b_sum, b[o + i]);
    pending += rows;
    CLOISTER_DEBUG_ASSERT(pending <= kHalvesInSum);
    o += rows;
  }
  const __m512i bias = _mm512_set1_epi64(static_cast<long long>(kP52 - multiply(b_sum, 1u << 15)));
  for (int64_t j = 0; j < width; j += 8) {
    const auto mask = static_cast<__mmask8>((1u << std::min<int64_t>(width - j, 8)) - 1);
    const ProductHalves& sum = sums[static_cast<size_t>(j / 8)];
    CLOISTER_DEBUG_ASSERT(Avx512::below(sum.hi, (static_cast<uint64_t>(count) << 16) + 1));
    const __m512i v = _mm512_add_epi64(reduce52(sum.lo, sum.hi), bias);
    CLOISTER_DEBUG_ASSERT(Avx512::below(v, uint64_t{1} << 53));
    _mm512_mask_storeu_epi64(fold + j, mask, canonical52(fold52(fold52(v))));
  }
}

void combine_taps(const AdjointTap* taps, int64_t count, int64_t width, uint64_t* t) {
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
      CLOISTER_DEBUG_ASSERT(Avx512::below(lo, ~kLow52) && Avx512::below(hi, ~kLow52));
      lo = _mm512_madd52lo_epu64(lo, fold, a);
      hi = _mm512_madd52hi_epu64(hi, fold, a);
    }
    _mm512_mask_storeu_epi64(t + j, mask, canonical52(reduce52(lo, hi)));
  }
}

// ---- pads/

// The keystream, or the words at `in` minus it; eight vectors in flight.
template <bool kSubtract>
void vaes_stream(const uint8_t* rounds, const uint8_t* nonce, uint32_t first, int64_t blocks,
                 const uint32_t* in, uint32_t* out, int64_t far_bytes) {
  constexpr int kVectors = 8;
  const VaesKeys keys(rounds);
  __m512i counter = vaes_counter(nonce, first);
  __m512i state[kVectors];
  int64_t i = 0;
  for (; i + 4 * kVectors <= blocks; i += 4 * kVectors) {
    vaes_keystream<kVectors>(keys, counter, state);
    counter = _mm512_add_epi32(counter, vaes_step(4 * kVectors));
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      const int64_t at = 4 * i + 16 * j;
      if constexpr (kSubtract) {
        if (far_bytes != 0) prefetch_behind(in + at, far_bytes);
        state[j] = _mm512_sub_epi32(_mm512_loadu_si512(in + at), state[j]);
      }
      _mm512_storeu_si512(out + at, state[j]);
    }
  }
  for (; i < blocks; i += 4) {
    vaes_keystream<1>(keys, counter, state);
    counter = _mm512_add_epi32(counter, vaes_step(4));
    const __mmask16 lanes = first_lanes(4 * (blocks - i));
    if constexpr (kSubtract) {
      state[0] = _mm512_sub_epi32(_mm512_maskz_loadu_epi32(lanes, in + 4 * i), state[0]);
    }
    _mm512_mask_storeu_epi32(out + 4 * i, lanes, state[0]);
  }
}

void vaes_fill(const uint8_t* rounds, const uint8_t* nonce, uint32_t first, int64_t blocks,
               uint32_t* out) {
  vaes_stream<false>(rounds, nonce, first, blocks, nullptr, out, 0);
}

}  // namespace

const Kernels kKernelsAvx512{
    .ring = ring_kernels<Avx512, {12, 6, 2}>(pack_squares),  // 24 accumulators, 2 weights
    .dense_gradient = dense_gradient_panel<Avx512, 6>,
    .floats = fixed_point_kernels<float>(),
    .doubles = fixed_point_kernels<double>(),
    .scale_difference = scale_difference_words,
    .transpose = transpose_squares,
    .all_finite = all_finite_floats,
    .interleave = interleave_floats,
    .freivalds = {fold_weights, combine_taps},
    .aes = {aes_expand_key, vaes_fill, vaes_stream<true>},
    .pad_shares = pad_share_kernels<Avx512>()};

}  // namespace cloister

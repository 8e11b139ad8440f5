// The windows of fused steps, pooling and depthwise convolution, over the vectors S of isa/.
#pragma once
#include "fused/row_kernels.hpp"

namespace cloister::rows {
namespace {

// Window columns begin .. end of output x lie inside the image; the first of them at `first`.
struct Columns {
  int64_t begin, end, first;

  Columns(const WindowRow& row, int64_t x) {
    const WindowShape& s = *row.shape;
    const int64_t at = x * s.sw - s.pl;
    begin = at < 0 ? (-at + s.dw - 1) / s.dw : 0;
    end = std::min(s.kw, (row.width - at + s.dw - 1) / s.dw);
    first = (at + begin * s.dw) * row.channels;
  }
};

// The sum over the taps of one output vector, taps in order, each product rounded.
template <class S>
void depthwise_any(const WindowRow& row) {
  const WindowShape& s = *row.shape;
  const int64_t c = row.channels;
  const auto lo = S::set(s.lo);
  const auto hi = S::set(s.hi);
  for (int64_t x = row.x_begin; x < row.x_end; ++x) {
    const Columns at(row, x);
    over<S>(0, c, [&](int64_t j, auto... mask) {
      auto f = S::set(0.0f);
      for (int64_t i = 0; i < row.row_count; ++i) {
        const float* in = row.rows[i] + at.first + j;
        const float* w = s.weights.data() + ((row.first_row + i) * s.kw + at.begin) * c + j;
        for (int64_t k = at.begin; k < at.end; ++k, in += s.dw * c, w += c) {
          f = S::add(f, S::mul(S::load(in, mask...), S::load(w, mask...)));
        }
      }
      f = S::add(f, S::load(s.bias.data() + j, mask...));
      S::store(row.out + (x - row.x_begin) * c + j, S::min(S::max(f, lo), hi), mask...);
    });
  }
}

// The same for 3x3 kernels: a tap outside the image is a zero. Its product with a finite weight
// is a zero too, and adding that changes no sum, because a sum that starts from +0 never is -0.
constexpr int64_t kTaps = 9;

template <class S>
struct Taps {
  typename S::F weight[kTaps], bias, lo, hi;
};

// kPixels outputs from x on, one vector of channels each: an input vector is loaded once.
template <class S, int kStride, int kPixels, bool kEdge>
inline __attribute__((always_inline)) void convolve(const WindowRow& row, const Taps<S>& taps,
                                                    int64_t x, int64_t j, auto... mask) {
  constexpr int kColumns = (kPixels - 1) * kStride + 3;
  const int64_t c = row.channels;
  const int64_t at = x * kStride - row.shape->pl;
  typename S::F sum[kPixels];
#pragma GCC unroll 4
  for (int p = 0; p < kPixels; ++p) sum[p] = S::set(0.0f);
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) {
    const float* in = row.rows[i] + j;
    typename S::F value[kColumns];
#pragma GCC unroll 9
    for (int k = 0; k < kColumns; ++k) {
      const bool inside = !kEdge || (at + k >= 0 && at + k < row.width);
      value[k] = inside ? S::load(in + (at + k) * c, mask...) : S::set(0.0f);
    }
#pragma GCC unroll 4
    for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 3
      for (int k = 0; k < 3; ++k) {
        sum[p] = S::add(sum[p], S::mul(value[p * kStride + k], taps.weight[3 * i + k]));
      }
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < kPixels; ++p) {
    float* out = row.out + (x + p - row.x_begin) * c + j;
    S::store(out, S::min(S::max(S::add(sum[p], taps.bias), taps.lo), taps.hi), mask...);
  }
}

// Outputs from x on, kPixels at a time while there are so many; where it stopped.
template <class S, int kStride, int kPixels>
inline __attribute__((always_inline)) int64_t convolve_groups(const WindowRow& row,
                                                              const Taps<S>& taps, int64_t x,
                                                              int64_t j, auto... mask) {
  for (; x + kPixels <= row.x_end; x += kPixels) {
    const int64_t at = x * kStride - row.shape->pl;
    if (at >= 0 && at + (kPixels - 1) * kStride + 3 <= row.width) {
      convolve<S, kStride, kPixels, false>(row, taps, x, j, mask...);
    } else {
      convolve<S, kStride, kPixels, true>(row, taps, x, j, mask...);
    }
  }
  return x;
}

template <class S, int kStride>
void depthwise_3x3(const WindowRow& row) {
  const WindowShape& s = *row.shape;
  over<S>(0, row.channels, [&](int64_t j, auto... mask) {
    Taps<S> taps{{}, S::load(s.bias.data() + j, mask...), S::set(s.lo), S::set(s.hi)};
#pragma GCC unroll 9
    for (int64_t i = 0; i < kTaps; ++i) {
      taps.weight[i] = S::load(s.weights.data() + i * row.channels + j, mask...);
    }
    int64_t x = convolve_groups<S, kStride, 4>(row, taps, row.x_begin, j, mask...);
    x = convolve_groups<S, kStride, 2>(row, taps, x, j, mask...);
    convolve_groups<S, kStride, 1>(row, taps, x, j, mask...);
  });
}

template <class S>
void depthwise(const WindowRow& row) {
  if (!row.shape->three_by_three()) return depthwise_any<S>(row);
  row.shape->sw == 1 ? depthwise_3x3<S, 1>(row) : depthwise_3x3<S, 2>(row);
}

// Positions of a pooling window in order: the first value, then one after the other.
template <class S, bool kMax>
inline __attribute__((always_inline)) auto pooled(typename S::F f, typename S::F v) {
  return kMax ? S::max(v, f) : S::add(f, v);
}

template <class S, bool kMax>
void pool_any(const WindowRow& row, int64_t x) {
  const WindowShape& s = *row.shape;
  const int64_t c = row.channels;
  const Columns at(row, x);
  const int64_t inside = row.row_count * (at.end - at.begin);
  const auto count = S::set(static_cast<float>(s.count_include_pad ? s.kh * s.kw : inside));
  float* out = row.out + (x - row.x_begin) * c;
  over<S>(0, c, [&](int64_t j, auto... mask) {
    auto f = kMax ? S::load(row.rows[0] + at.first + j, mask...) : S::set(0.0f);
    for (int64_t i = 0; i < row.row_count; ++i) {
      const float* in = row.rows[i] + at.first + j;
      for (int64_t k = at.begin; k < at.end; ++k, in += s.dw * c) {
        f = pooled<S, kMax>(f, S::load(in, mask...));
      }
    }
    if constexpr (!kMax) f = S::div(f, count);
    S::store(out + j, f, mask...);
  });
}

// The maximum over kSize * kSize positions, all inside.
template <class S, int kSize>
void max_pool_whole(const WindowRow& row, int64_t x) {
  const int64_t c = row.channels;
  const int64_t first = (x * row.shape->sw - row.shape->pl) * c;
  const float* in[kSize];
#pragma GCC unroll 3
  for (int i = 0; i < kSize; ++i) in[i] = row.rows[i] + first;
  float* out = row.out + (x - row.x_begin) * c;
  over<S>(0, c, [&](int64_t j, auto... mask) __attribute__((always_inline)) {
    auto f = S::load(in[0] + j, mask...);
#pragma GCC unroll 9
    for (int i = 1; i < kSize * kSize; ++i) {
      f = pooled<S, true>(f, S::load(in[i / kSize] + (i % kSize) * c + j, mask...));
    }
    S::store(out + j, f, mask...);
  });
}

template <class S, int kSize>
void max_pool(const WindowRow& row) {
  const WindowShape& s = *row.shape;
  const bool fits = row.row_count == kSize && s.kh == kSize && s.kw == kSize && s.dw == 1;
  for (int64_t x = row.x_begin; x < row.x_end; ++x) {
    const int64_t at = x * s.sw - s.pl;
    const bool whole = fits && at >= 0 && at + kSize <= row.width;
    whole ? max_pool_whole<S, kSize>(row, x) : pool_any<S, true>(row, x);
  }
}

template <class S>
void average_pool(const WindowRow& row) {
  for (int64_t x = row.x_begin; x < row.x_end; ++x) pool_any<S, false>(row, x);
}

template <class S>
void any_window(const WindowRow& row) {
  using Kind = WindowShape::Kind;
  switch (row.shape->kind) {
    case Kind::max: return row.shape->kw == 3 ? max_pool<S, 3>(row) : max_pool<S, 2>(row);
    case Kind::average: return average_pool<S>(row);
    default: return depthwise<S>(row);
  }
}

}  // namespace
}  // namespace cloister::rows

// The kernels of fixed_point.hpp and transpose.hpp: loops that compilers make vector instructions
// of, in an unnamed namespace as isa/portable.hpp says.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "isa/kernels.hpp"

namespace cloister {
namespace {

constexpr int64_t kSumLanes = 64;  // sums side by side: their order is part of the result
constexpr int64_t kSquare = 32;    // of a square that is transposed

template <typename T>
using Bits = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

template <typename T>
void add_run(const T* __restrict v, int64_t count, double* __restrict sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += static_cast<double>(std::fabs(v[i]));
}

// Magnitudes compare as their bits do, and compilers take maxima of integers several at a time.
template <typename T>
T peak_of(const T* v, int64_t count) {
  Bits<T> largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const T magnitude = std::fabs(v[i]);
    Bits<T> bits;
    std::memcpy(&bits, &magnitude, sizeof bits);
    largest = bits > largest ? bits : largest;
  }
  T peak;
  std::memcpy(&peak, &largest, sizeof peak);
  return peak;
}

template <typename T>
T add_magnitudes(const T* v, int64_t a, int64_t b, int64_t c, double* sums) {
  for (int64_t i = 0; i < a; ++i) {
    if (c == 1) {
      add_run(v + i * b, b, sums);
      continue;
    }
    for (int64_t j = 0; j < b; ++j) {
      const T* row = v + (i * b + j) * c;
      double lanes[kSumLanes] = {};
      int64_t k = 0;
      for (; k + kSumLanes <= c; k += kSumLanes) add_run(row + k, kSumLanes, lanes);
      add_run(row + k, c - k, lanes);
      for (int64_t width = kSumLanes / 2; width > 0; width /= 2) {
        for (int64_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
      }
      sums[j] += lanes[0];
    }
  }
  return peak_of(v, a * b * c);
}

// Beside 1.5 * 2^23 (2^52 for double) a number has no digits behind the point: adding it rounds as
// the processor does, half to even, and leaves the integer in the low bits.
template <typename T>
void round_run(const T* v, int64_t count, T scale, int16_t* out) {
  constexpr T kShift = sizeof(T) == 4 ? T{0x1.8p23} : T{0x1.8p52};
  for (int64_t i = 0; i < count; ++i) {
    const T shifted = v[i] * scale + kShift;
    Bits<T> bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    out[i] = static_cast<int16_t>(bits);
  }
}

template <typename T>
void round_all(const T* v, int64_t a, int64_t b, int64_t c, T scale, int16_t* out) {
  if (b == 1 || c == 1) return round_run(v, a * b * c, scale, out);
  const auto side = [](int64_t left) { return left < kSquare ? left : kSquare; };
  for (int64_t i = 0; i < a; ++i, v += b * c, out += b * c) {
    for (int64_t j = 0; j < b; j += kSquare) {
      for (int64_t k = 0; k < c; k += kSquare) {
        const int64_t rows = side(b - j), columns = side(c - k);
        int16_t square[kSquare][kSquare];
        for (int64_t row = 0; row < rows; ++row) {
          round_run(v + (j + row) * c + k, columns, scale, square[row]);
        }
        for (int64_t column = 0; column < columns; ++column) {
          for (int64_t row = 0; row < rows; ++row) {
            out[(k + column) * b + j + row] = square[row][column];
          }
        }
      }
    }
  }
}

inline void scale_difference_words(const uint32_t* __restrict p, const uint32_t* __restrict m,
                                   int64_t count, float factor, float* __restrict out) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = static_cast<float>(static_cast<int32_t>(p[i] - m[i])) * factor;
  }
}

template <typename T>
constexpr FixedPointKernels<T> fixed_point_kernels() {
  return {add_magnitudes<T>, round_all<T>};
}

// A square at a time, whose lines stay in the first-level cache.
inline void transpose_words(const uint32_t* x, int64_t rows, int64_t columns, uint32_t* out) {
  constexpr int64_t kSide = 16;
  for (int64_t j = 0; j < columns; j += kSide) {
    const int64_t width = std::min(kSide, columns - j);
    for (int64_t i = 0; i < rows; i += kSide) {
      const int64_t height = std::min(kSide, rows - i);
      for (int64_t column = j; column < j + width; ++column) {
        for (int64_t row = i; row < i + height; ++row) {
          out[column * rows + row] = x[row * columns + column];
        }
      }
    }
  }
}

inline uint32_t is_not_finite(float value) {
  constexpr uint32_t kExponent = 0x7f800000;  // all its bits are set in NaN and infinity
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint32_t>((bits & kExponent) == kExponent);
}

inline bool all_finite_floats(const float* x, int64_t count) {
  uint32_t not_finite = 0;
  for (int64_t i = 0; i < count; ++i) not_finite |= is_not_finite(x[i]);
  return not_finite == 0;
}

template <int kRows>
bool interleave_rows(const float* x, int64_t columns, float* out) {
  uint32_t not_finite = 0;
  for (int64_t i = 0; i < columns; ++i) {
    for (int row = 0; row < kRows; ++row) {
      const float value = x[row * columns + i];
      not_finite |= is_not_finite(value);
      out[i * kRows + row] = value;
    }
  }
  return not_finite == 0;
}

inline bool interleave_floats(const float* x, int64_t rows, int64_t columns, float* out) {
  switch (rows) {
    case 1: return interleave_rows<1>(x, columns, out);
    case 2: return interleave_rows<2>(x, columns, out);
    case 3: return interleave_rows<3>(x, columns, out);
    default: return interleave_rows<4>(x, columns, out);
  }
}

}  // namespace
}  // namespace cloister

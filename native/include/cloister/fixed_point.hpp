// Real numbers as int16 integers with one power-of-two scale. Arrays are C-contiguous (a, b, c), T
// is float or double. Results have the same bits on every back end.
#pragma once
#include <cstdint>

namespace cloister {

struct Magnitudes {
  double norm;  // the largest sum of |v| over a and c; NaN or infinite if any value is
  double peak;  // the largest |v|; undefined where the norm is not finite
};

template <typename T>
Magnitudes magnitudes(const T* v, int64_t a, int64_t b, int64_t c);

// out[a][c][b] = v[a][b][c] * 2^exponent, rounded to the nearest integer and half to the even one.
// |exponent| <= 126 and |v| * 2^exponent < 2^15; beyond that the integers are wrong, no more.
template <typename T>
void round_scaled(const T* v, int64_t a, int64_t b, int64_t c, int exponent, int16_t* out);

// out[i] = p[i] - m[i] modulo 2^32, read as signed and rounded to float, times factor.
void scale_difference(const uint32_t* p, const uint32_t* m, int64_t count, float factor,
                      float* out);

}  // namespace cloister

// Scalars cut into signed digits.
#pragma once
#include <cstdint>
#include <vector>

#include "curve_backend.hpp"

namespace cloister {

inline uint64_t magnitude(int64_t v) {
  return v < 0 ? uint64_t{0} - static_cast<uint64_t>(v) : static_cast<uint64_t>(v);
}

constexpr int kPublicScalarBits = 253;

inline int bits_of(uint64_t v) {
  int bits = 0;
  while (bits < 64 && v >> bits != 0) ++bits;
  return bits;
}

// Signed digits need a bit for the sign; a single digit is looked up as it is.
inline int windows_of(int bits, int width) {
  return bits == 0 ? 0 : bits <= width ? 1 : (bits + width) / width;
}

// 64 digits in [-8, 8] of a canonical scalar. Constant time.
void secret_digits(const uint8_t* scalar, int8_t* digits);
// Digits of a signed number whose magnitude is at most a public bound. Constant time.
int digits_for_bound(uint64_t bound);
void secret_digits(int64_t value, int windows, int8_t* digits);

// A column of `count` public scalars of 32 bytes, of which the negatives are wanted.
PublicColumn public_column_negated(const uint8_t* scalars, int64_t stride, int64_t count,
                                   int width);
// A column of small public numbers.
PublicColumn public_column(const int64_t* values, int64_t stride, int64_t count, int width);

}  // namespace cloister

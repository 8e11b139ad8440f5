// Arithmetic modulo the group's order, slow and plain: one bit of the number per step.
#include "curve_scalar.hpp"

#include <algorithm>
#include <cstring>

#include "isa/debug_assert.hpp"
#include "isa/int128.hpp"

namespace cloister {
namespace {

constexpr uint64_t kOrder[4] = {0x5812631a5cf5d3ed, 0x14def9dea2f79cd6, 0, 0x1000000000000000};

// r - order, and whether that was negative (all ones) or not.
uint64_t minus_order(const uint64_t (&r)[4], uint64_t (&out)[4]) {
  uint64_t borrow = 0;
  for (int i = 0; i < 4; ++i) {
    const U128 d = static_cast<U128>(r[i]) - kOrder[i] - borrow;
    out[i] = static_cast<uint64_t>(d);
    borrow = static_cast<uint64_t>(d >> 64) & 1;
  }
  return uint64_t{0} - borrow;
}

// A number of `words` words modulo the order, from its highest bit down. r stays below the order,
// so 2 r + 1 fits and one conditional subtraction is enough. No branch depends on a bit.
void reduce(const uint64_t* number, int words, uint8_t* scalar) {
  uint64_t r[4] = {};
  for (int bit = 64 * words - 1; bit >= 0; --bit) {
    for (int i = 3; i > 0; --i) r[i] = r[i] << 1 | r[i - 1] >> 63;
    r[0] = r[0] << 1 | (number[bit / 64] >> (bit % 64) & 1);
    uint64_t less[4];
    uint64_t keep = minus_order(r, less);
    __asm__("" : "+r"(keep));  // or the compiler might branch on it
    for (int i = 0; i < 4; ++i) r[i] = less[i] ^ (keep & (less[i] ^ r[i]));
  }
  std::memcpy(scalar, r, sizeof(r));
}

}  // namespace

bool scalar_is_canonical(const uint8_t* scalar) {
  uint64_t r[4], ignored[4];
  std::memcpy(r, scalar, sizeof(r));
  return minus_order(r, ignored) != 0;
}

void scalar_reduce(const uint8_t* wide, int64_t n, uint8_t* scalars) {
  for (int64_t i = 0; i < n; ++i) {
    uint64_t number[8];
    std::memcpy(number, wide + kWideScalarBytes * i, sizeof(number));
    reduce(number, 8, scalars + kScalarBytes * i);
  }
}

// Limbs of 32 bits in 128-bit sums: |y| * limb < 2^95, so 2^31 terms fit. The result is below
// 2^126 * 2^224 * 2 < 2^352 in magnitude, and order * 2^101 makes it positive.
void scalar_combine(const uint8_t* secrets, int64_t n, const int64_t* y, int64_t count,
                    uint8_t* out) {
  uint64_t lift[6] = {};
  for (int i = 0; i < 4; ++i) {
    lift[i + 1] |= kOrder[i] << 37;
    lift[i + 2] |= kOrder[i] >> 27;
  }
  for (int64_t k = 0; k < count; ++k) {
    I128 sums[8] = {};
    for (int64_t j = 0; j < n; ++j) {
      uint32_t limbs[8];
      std::memcpy(limbs, secrets + kScalarBytes * j, sizeof(limbs));
      for (int i = 0; i < 8; ++i) {
        sums[i] += static_cast<I128>(y[k * n + j]) * static_cast<int64_t>(uint64_t{limbs[i]});
      }
    }
    uint64_t number[6] = {};
    I128 carry = 0;
    for (int i = 0; i < 12; ++i) {
      // 2^101 * order, a limb at a time; what is left above limb 11 is zero.
      const uint64_t lifted = lift[i / 2] >> (i % 2 * 32) & 0xffffffff;
      carry += (i < 8 ? sums[i] : 0) + static_cast<I128>(lifted);
      number[i / 2] |= static_cast<uint64_t>(carry & 0xffffffff) << (i % 2 * 32);
      carry >>= 32;
    }
    CLOISTER_DEBUG_ASSERT(carry == 0);
    reduce(number, 6, out + kScalarBytes * k);
  }
}

void secret_digits(const uint8_t* scalar, int8_t* digits) {
  int carry = 0;
  for (int i = 0; i < kSecretWindows; ++i) {
    const int d = (scalar[i / 2] >> (i % 2 * 4) & 15) + carry;
    carry = (d + 8) >> 4;
    digits[i] = static_cast<int8_t>(d - (carry << 4));
  }
  CLOISTER_DEBUG_ASSERT(carry == 0 && digits[kSecretWindows - 1] <= 2);  // below 2^253
}

// Below 2^(4 windows - 1), so that the top digit and its carry stay within 8.
int digits_for_bound(uint64_t bound) {
  int windows = 1;
  while (windows < 16 && bound >> (4 * windows - 1) != 0) ++windows;
  return windows;
}

void secret_digits(int64_t value, int windows, int8_t* digits) {
  const uint64_t sign = uint64_t{0} - (static_cast<uint64_t>(value) >> 63);
  const uint64_t size = (static_cast<uint64_t>(value) ^ sign) - sign;
  int carry = 0;
  for (int i = 0; i < windows; ++i) {
    int d = static_cast<int>(size >> (4 * i) & 15) + carry;
    const int last = i == windows - 1 ? 0 : 1;
    carry = ((d + 8) >> 4) * last;
    d -= carry << 4;
    digits[i] = static_cast<int8_t>((d ^ static_cast<int>(sign)) - static_cast<int>(sign));
  }
}

namespace {

// Digits of a number of four words in [-2^(width - 1), 2^(width - 1)], the last as it comes.
void public_digits(const uint64_t (&number)[4], bool negate, int width, int windows,
                   int16_t* digits) {
  int carry = 0;
  for (int i = 0; i < windows; ++i) {
    const int bit = i * width, word = bit / 64, shift = bit % 64;
    uint64_t bits = word < 4 ? number[word] >> shift : 0;
    if (shift > 0 && word + 1 < 4) bits |= number[word + 1] << (64 - shift);
    int d = static_cast<int>(bits & ((uint64_t{1} << width) - 1)) + carry;
    carry = i == windows - 1 ? 0 : (d + (1 << (width - 1)) - 1) >> width;
    d -= carry << width;
    digits[i] = static_cast<int16_t>(negate ? -d : d);
  }
}

PublicColumn empty_column(int64_t count, int windows, int width) {
  PublicColumn column;
  column.windows = windows;
  column.width = width;
  column.digits.resize(static_cast<size_t>(count * windows));
  column.largest.assign(static_cast<size_t>(windows), 0);
  return column;
}

void find_largest(PublicColumn& column) {
  for (size_t i = 0; i < column.digits.size(); ++i) {
    int& largest = column.largest[i % static_cast<size_t>(column.windows)];
    largest = std::max(largest, std::abs(int{column.digits[i]}));
    column.entries = std::max(column.entries, largest);
  }
}

}  // namespace

PublicColumn public_column_negated(const uint8_t* scalars, int64_t stride, int64_t count,
                                   int width) {
  PublicColumn column = empty_column(count, windows_of(kPublicScalarBits, width), width);
  for (int64_t k = 0; k < count; ++k) {
    uint64_t number[4];
    std::memcpy(number, scalars + kScalarBytes * stride * k, sizeof(number));
    public_digits(number, true, width, column.windows, column.digits.data() + k * column.windows);
  }
  find_largest(column);
  return column;
}

PublicColumn public_column(const int64_t* values, int64_t stride, int64_t count, int width) {
  uint64_t any = 0;
  for (int64_t k = 0; k < count; ++k) any |= magnitude(values[stride * k]);
  const int windows = windows_of(bits_of(any), width);
  PublicColumn column = empty_column(count, windows, width);
  for (int64_t k = 0; k < count && windows > 0; ++k) {
    const int64_t value = values[stride * k];
    const uint64_t number[4] = {magnitude(value), 0, 0, 0};
    public_digits(number, value < 0, width, windows, column.digits.data() + k * windows);
  }
  if (windows > 0) find_largest(column);
  return column;
}

}  // namespace cloister

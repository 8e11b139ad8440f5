// Arithmetic modulo P = 2^52 - 47 on scalars. 2^52 = 47 (mod P) makes reduction a fold.
#pragma once
#include <cstdint>

#include "cloister/freivalds.hpp"

namespace cloister {

__extension__ using U128 = unsigned __int128;

constexpr uint64_t kLow52 = (uint64_t{1} << 52) - 1;
constexpr uint64_t kFold = 47;  // 2^52 mod P

// Canonical residue. Bits: 128 -> below 2^82 -> below 2^53 -> at most 2^52 + 46 -> below 2^52.
inline uint64_t reduce(U128 v) {
  v = (v & kLow52) + kFold * (v >> 52);
  v = (v & kLow52) + kFold * (v >> 52);
  uint64_t x = static_cast<uint64_t>(v);
  x = (x & kLow52) + kFold * (x >> 52);
  x = (x & kLow52) + kFold * (x >> 52);
  return x >= kP52 ? x - kP52 : x;
}

inline uint64_t multiply(uint64_t x, uint64_t y) { return reduce(static_cast<U128>(x) * y); }

inline uint64_t add(uint64_t x, uint64_t y) { return reduce(static_cast<U128>(x) + y); }

inline uint64_t subtract(uint64_t x, uint64_t y) {
  return reduce(static_cast<U128>(x) + kP52 - y);  // y is canonical
}

}  // namespace cloister

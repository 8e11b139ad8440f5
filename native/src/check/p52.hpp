// Arithmetic modulo P = 2^52 - 47 on scalars. 2^52 = 47 (mod P) makes reduction a fold. In an
// unnamed namespace, as isa/portable.hpp says.
#pragma once
#include <cstdint>

#include "cloister/freivalds.hpp"
#include "isa/debug_assert.hpp"
#include "isa/int128.hpp"

namespace cloister {
namespace {

constexpr uint64_t kLow52 = (uint64_t{1} << 52) - 1;
constexpr uint64_t kFold = 47;  // 2^52 mod P

// The same residue, with fewer bits. Bits: 128 -> below 2^82 -> below 2^53 -> at most 2^52 + 46 ->
// below 2^52.
inline U128 fold(U128 v) { return (v & kLow52) + kFold * (v >> 52); }
inline uint64_t fold(uint64_t v) { return (v & kLow52) + kFold * (v >> 52); }

// Canonical residue.
inline uint64_t reduce(U128 v) {
  v = fold(v);
  CLOISTER_DEBUG_ASSERT(v >> 82 == 0);
  v = fold(v);
  CLOISTER_DEBUG_ASSERT(v >> 53 == 0);
  const uint64_t once = fold(static_cast<uint64_t>(v));
  CLOISTER_DEBUG_ASSERT(once <= kLow52 + kFold);
  const uint64_t x = fold(once);
  CLOISTER_DEBUG_ASSERT(x <= kLow52);
  return x >= kP52 ? x - kP52 : x;
}

inline uint64_t multiply(uint64_t x, uint64_t y) { return reduce(static_cast<U128>(x) * y); }

inline uint64_t add(uint64_t x, uint64_t y) { return reduce(static_cast<U128>(x) + y); }

inline uint64_t subtract(uint64_t x, uint64_t y) {
  CLOISTER_DEBUG_ASSERT(y < kP52);  // canonical
  return reduce(static_cast<U128>(x) + kP52 - y);
}

}  // namespace
}  // namespace cloister

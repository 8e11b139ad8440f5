// The sums of pad_shares.hpp on lanes of 64 bits, each back end with its own. A coefficient is cut
// into halves of 26 bits, whose products with a signed word fit a lane with room for a sum.
#pragma once
#include <algorithm>

#include "pad_shares_backend.hpp"

namespace cloister {

constexpr int kHalfBits = 26;

template <typename V>
struct Halves {
  typename V::Reg low = V::zero(), high = V::zero();

  // The value's low 32 bits count, as a signed number.
  void add(typename V::Reg coefficient, typename V::Reg value) {
    const auto mask = V::all((uint64_t{1} << kHalfBits) - 1);
    low = V::add(low, V::multiply(V::both(coefficient, mask), value));
    high = V::add(high, V::multiply(V::right(coefficient, kHalfBits), value));
  }
  I128 sum() const { return V::sum(low) + V::sum(high) * (1 << kHalfBits); }
};

inline I128 product(uint64_t coefficient, int32_t value) {
  return static_cast<I128>(coefficient) * value;
}

template <typename V>
I128 split_lanes(const uint32_t* words, uint32_t c, const uint64_t* t, int64_t n, DigitField field,
                 int16_t* digits) {
  const auto constant = V::all(c), mask = V::all(field.mask), half = V::all(field.half);
  Halves<V> halves;  // products of 26 and 15 bits: 2^20 of them stay below 2^61
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) {
    const auto word = V::add(V::widen(words + i), constant);
    const auto digit = V::subtract(V::both(V::right(word, field.shift), mask), half);
    halves.add(V::load(t + i), digit);
    V::narrow(digits + i, digit);
  }
  I128 sum = halves.sum();
  for (; i < n; ++i) {
    const uint32_t raised = ((words[i] + c) >> field.shift) & field.mask;
    const auto digit = static_cast<int32_t>(raised - field.half);
    sum += product(t[i], digit);
    digits[i] = static_cast<int16_t>(digit);
  }
  return sum;
}

template <typename V>
I128 add_lanes(const uint64_t* b, const uint32_t* z, int64_t n, int shift, uint32_t* out) {
  for (int64_t i = 0; i < n; ++i) out[i] += z[i] << shift;
  constexpr int64_t kAtOnce = 32 * V::kLanes;  // products of 26 and 31 bits: 2^5 stay below 2^62
  I128 sum = 0;
  int64_t i = 0;
  while (i + V::kLanes <= n) {
    Halves<V> halves;
    const int64_t stop = std::min(i + kAtOnce, n - V::kLanes + 1);
    for (; i < stop; i += V::kLanes) halves.add(V::load(b + i), V::widen(z + i));
    sum += halves.sum();
  }
  for (; i < n; ++i) sum += product(b[i], static_cast<int32_t>(z[i]));
  return sum;
}

}  // namespace cloister

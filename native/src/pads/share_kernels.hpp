// The kernels of pad_shares.hpp over the vectors V of isa/. A coefficient is cut into halves of 26
// bits, whose products with a signed word fit a long with room for a sum.
#pragma once
#include <algorithm>

#include "isa/debug_assert.hpp"
#include "isa/kernels.hpp"

namespace cloister {
namespace {

constexpr int kHalfBits = 26;

// Sums below 2^kBits in magnitude.
template <typename V, int kBits>
struct Halves {
  typename V::L low = V::zero_long(), high = V::zero_long();

  // The value's low 32 bits count, as a signed number.
  void add(typename V::L coefficient, typename V::L value) {
    const auto mask = V::set_long((uint64_t{1} << kHalfBits) - 1);
    low = V::add_long(low, V::multiply_long(V::and_long(coefficient, mask), value));
    high = V::add_long(high, V::multiply_long(V::shift_right_long(coefficient, kHalfBits), value));
    CLOISTER_DEBUG_ASSERT(V::within_long(low, kBits) && V::within_long(high, kBits));
  }
  I128 sum() const { return V::sum_long(low) + V::sum_long(high) * (1 << kHalfBits); }
};

inline I128 product(uint64_t coefficient, int32_t value) {
  return static_cast<I128>(coefficient) * value;
}

template <typename V>
I128 split_share_lanes(const uint32_t* words, uint32_t c, const uint64_t* t, int64_t n,
                       DigitField field, int16_t* digits) {
  const auto constant = V::set_long(c), mask = V::set_long(field.mask),
             half = V::set_long(field.half);
  Halves<V, 61> halves;  // products of 26 and 15 bits: 2^20 of them stay below 2^61
  int64_t i = 0;
  for (; i + V::kLongLanes <= n; i += V::kLongLanes) {
    const auto word = V::add_long(V::widen(words + i), constant);
    const auto digit = V::sub_long(V::and_long(V::shift_right_long(word, field.shift), mask), half);
    halves.add(V::load(t + i), digit);
    V::narrow_long(digits + i, digit);
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
I128 add_answer_lanes(const uint64_t* b, const uint32_t* z, int64_t n, int shift, uint32_t* out) {
  for (int64_t i = 0; i < n; ++i) out[i] += z[i] << shift;
  constexpr int64_t kAtOnce =
      32 * V::kLongLanes;  // products of 26 and 31 bits: 2^5 stay below 2^62
  I128 sum = 0;
  int64_t i = 0;
  while (i + V::kLongLanes <= n) {
    Halves<V, 62> halves;
    const int64_t stop = std::min(i + kAtOnce, n - V::kLongLanes + 1);
    for (; i < stop; i += V::kLongLanes) halves.add(V::load(b + i), V::widen(z + i));
    sum += halves.sum();
  }
  for (; i < n; ++i) sum += product(b[i], static_cast<int32_t>(z[i]));
  CLOISTER_DEBUG_ASSERT(sum < I128{1} << 110 && -sum < I128{1} << 110);
  return sum;
}

template <typename V>
constexpr PadShareKernels pad_share_kernels() {
  return {split_share_lanes<V>, add_answer_lanes<V>};
}

}  // namespace
}  // namespace cloister

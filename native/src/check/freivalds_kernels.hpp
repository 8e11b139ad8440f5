// The kernels of Freivalds' check in 128-bit integers, for instruction sets without IFMA.
#pragma once
#include <vector>

#include "check/p52.hpp"
#include "isa/kernels.hpp"

namespace cloister {
namespace {

constexpr uint64_t kWeightBias = 1u << 15;  // weight + 2^15 is not negative

// A type of this namespace: no other file's vector is the same function.
struct WeightSum {
  U128 value = 0;
};

inline void fold_weights(const int16_t* weights, int64_t stride, const uint64_t* b, int64_t count,
                         int64_t width, uint64_t* fold) {
  // A sum of 2^44 products of 16 and 52 bits, each below 2^68, fits into 112 bits.
  std::vector<WeightSum> sums(static_cast<size_t>(width));
  uint64_t b_sum = 0;
  for (int64_t o = 0; o < count; ++o) {
    const int16_t* row = weights + o * stride;
    for (int64_t j = 0; j < width; ++j) {
      const auto weight = static_cast<uint64_t>(row[j] + static_cast<int32_t>(kWeightBias));
      sums[static_cast<size_t>(j)].value += static_cast<U128>(weight) * b[o];
    }
    b_sum = add(b_sum, b[o]);
  }
  const uint64_t bias = multiply(b_sum, kWeightBias);
  for (int64_t j = 0; j < width; ++j) {
    const U128 sum = sums[static_cast<size_t>(j)].value;
    CLOISTER_DEBUG_ASSERT(sum >> 112 == 0);
    fold[j] = subtract(reduce(sum), bias);
  }
}

inline void combine_taps(const AdjointTap* taps, int64_t count, int64_t width, uint64_t* t) {
  for (int64_t j = 0; j < width; ++j) {
    // Products have 104 bits: 2^24 of them fit, and no kernel is that large.
    U128 sum = 0;
    CLOISTER_DEBUG_ASSERT(count <= 1 << 24);
    for (int64_t i = 0; i < count; ++i) sum += static_cast<U128>(taps[i].a) * taps[i].fold[j];
    t[j] = reduce(sum);
  }
}

constexpr FreivaldsKernels kFreivaldsInWords{fold_weights, combine_taps};

}  // namespace
}  // namespace cloister

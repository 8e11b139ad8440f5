// What a back end of freivalds_factors provides; freivalds.cpp picks one through active_isa().
#pragma once
#include <cstdint>

namespace cloister {

// One output row (or column) that reads an input row, through one kernel row.
struct AdjointTap {
  uint64_t a;            // its coefficient
  const uint64_t* fold;  // what it multiplies
};

struct FreivaldsBackend {
  // fold[j] = sum over o < count of weights[o * stride + j] * b[o] mod P, canonical, j < width.
  void (*fold_weights)(const int16_t* weights, int64_t stride, const uint64_t* b, int64_t count,
                       int64_t width, uint64_t* fold);
  // t[j] = sum over taps of tap.a * tap.fold[j] mod P, canonical, j < width.
  void (*combine)(const AdjointTap* taps, int64_t count, int64_t width, uint64_t* t);
};

extern const FreivaldsBackend kFreivaldsPortable;
extern const FreivaldsBackend kFreivaldsAvx512;

}  // namespace cloister

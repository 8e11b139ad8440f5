// What a back end of fixed_point.hpp provides; fixed_point.cpp picks one through active_isa().
#pragma once
#include <cstdint>

namespace cloister {

template <typename T>
struct FixedPointKernels {
  // Adds |v| to sums[b] over a and c, and gives the largest |v|.
  T (*add_magnitudes)(const T* v, int64_t a, int64_t b, int64_t c, double* sums);
  // out[a][c][b] = the integer nearest to v[a][b][c] * scale.
  void (*round)(const T* v, int64_t a, int64_t b, int64_t c, T scale, int16_t* out);
};

struct FixedPointBackend {
  FixedPointKernels<float> floats;
  FixedPointKernels<double> doubles;
};

extern const FixedPointBackend kFixedPointPortable;
extern const FixedPointBackend kFixedPointAvx2;
extern const FixedPointBackend kFixedPointAvx512;

}  // namespace cloister

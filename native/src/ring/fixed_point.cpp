#include "cloister/fixed_point.hpp"

#include <cmath>
#include <type_traits>
#include <vector>

#include "isa/kernels.hpp"

namespace cloister {
namespace {

template <typename T>
const FixedPointKernels<T>& kernels_of() {
  if constexpr (std::is_same_v<T, float>) {
    return kernels().floats;
  } else {
    return kernels().doubles;
  }
}

}  // namespace

template <typename T>
Magnitudes magnitudes(const T* v, int64_t a, int64_t b, int64_t c) {
  std::vector<double> sums(static_cast<size_t>(b), 0.0);
  const double peak = static_cast<double>(kernels_of<T>().add_magnitudes(v, a, b, c, sums.data()));
  double norm = 0.0;
  for (const double sum : sums) {
    if (!(sum <= norm)) norm = sum;  // a NaN is taken, and then not given up
    if (std::isnan(norm)) break;
  }
  return {norm, peak};
}

template <typename T>
void round_scaled(const T* v, int64_t a, int64_t b, int64_t c, int exponent, int16_t* out) {
  kernels_of<T>().round(v, a, b, c, std::ldexp(T{1}, exponent), out);
}

void scale_difference(const uint32_t* p, const uint32_t* m, int64_t count, float factor,
                      float* out) {
  kernels().scale_difference(p, m, count, factor, out);
}

template Magnitudes magnitudes(const float*, int64_t, int64_t, int64_t);
template Magnitudes magnitudes(const double*, int64_t, int64_t, int64_t);
template void round_scaled(const float*, int64_t, int64_t, int64_t, int, int16_t*);
template void round_scaled(const double*, int64_t, int64_t, int64_t, int, int16_t*);

}  // namespace cloister

#include "cloister/transpose.hpp"

#include <stdexcept>

#include "isa/kernels.hpp"

namespace cloister {

void transpose(const uint32_t* x, int64_t rows, int64_t columns, uint32_t* out) {
  kernels().transpose(x, rows, columns, out);
}

bool interleave(const float* x, int64_t rows, int64_t columns, float* out) {
  if (rows < 1 || rows > 4) throw std::invalid_argument("interleave: one to four rows");
  return kernels().interleave(x, rows, columns, out);
}

bool all_finite(const float* x, int64_t count) { return kernels().all_finite(x, count); }

}  // namespace cloister

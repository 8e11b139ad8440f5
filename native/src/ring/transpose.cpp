#include "cloister/transpose.hpp"

#include "isa/kernels.hpp"

namespace cloister {

void transpose(const uint32_t* x, int64_t rows, int64_t columns, uint32_t* out) {
  kernels().transpose(x, rows, columns, out);
}

}  // namespace cloister

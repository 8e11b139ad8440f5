#include "cloister/transpose.hpp"

#include "cloister/isa.hpp"
#include "transpose_backend.hpp"

namespace cloister {

void transpose(const uint32_t* x, int64_t rows, int64_t columns, uint32_t* out) {
#if defined(__x86_64__)
  if (active_isa() == Isa::avx512) return kTransposeAvx512.transpose(x, rows, columns, out);
#endif
  kTransposePortable.transpose(x, rows, columns, out);
}

}  // namespace cloister

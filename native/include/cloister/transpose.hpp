// The transpose of a matrix of 32-bit words.
#pragma once
#include <cstdint>

namespace cloister {

// out[j][i] = x[i][j]; both are C-contiguous and do not overlap.
void transpose(const uint32_t* x, int64_t rows, int64_t columns, uint32_t* out);

}  // namespace cloister

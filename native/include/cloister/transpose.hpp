// The transposes of matrices of 32-bit words.
#pragma once
#include <cstdint>

namespace cloister {

// out[j][i] = x[i][j]; both are C-contiguous and do not overlap.
void transpose(const uint32_t* x, int64_t rows, int64_t columns, uint32_t* out);

// The transpose of a matrix of few rows, such as the channels of a picture, and whether all numbers
// are finite. Throws std::invalid_argument unless there are one to four rows.
bool interleave(const float* x, int64_t rows, int64_t columns, float* out);

// Whether all numbers are finite.
bool all_finite(const float* x, int64_t count);

}  // namespace cloister

// The weight gradient of a dense layer over a batch, modulo 2^32.
#pragma once
#include <cstdint>

namespace cloister {

// out[o][c] = sum over i of delta[i][o] * x[i][c]. Arrays are C-contiguous: delta (n, outputs),
// x (n, inputs), out (outputs, inputs).
void dense_gradient(const int16_t* delta, const uint32_t* x, int64_t n, int64_t outputs,
                    int64_t inputs, uint32_t* out, int threads);

}  // namespace cloister

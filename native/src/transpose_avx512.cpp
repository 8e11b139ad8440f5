#if defined(__x86_64__)
// GCC 12 takes the undefined pass-through operand inside its own intrinsics for a bug of ours.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include "transpose_avx512.hpp"

#include "transpose_backend.hpp"

namespace cloister {
namespace {

constexpr int64_t kSide = 16;

__mmask16 first_lanes(int64_t count) {
  return count < kSide ? static_cast<__mmask16>((1u << count) - 1u) : __mmask16{0xFFFF};
}

void transpose(const uint32_t* x, int64_t rows, int64_t columns, uint32_t* out) {
  for (int64_t j = 0; j < columns; j += kSide) {
    const int64_t width = columns - j < kSide ? columns - j : kSide;
    for (int64_t i = 0; i < rows; i += kSide) {
      const int64_t height = rows - i < kSide ? rows - i : kSide;
      __m512i square[kSide];
      for (int64_t k = 0; k < kSide; ++k) {
        square[k] = k < height
                        ? _mm512_maskz_loadu_epi32(first_lanes(width), x + (i + k) * columns + j)
                        : _mm512_setzero_si512();
      }
      transpose_square(square);
      for (int64_t k = 0; k < width; ++k) {
        _mm512_mask_storeu_epi32(out + (j + k) * rows + i, first_lanes(height), square[k]);
      }
    }
  }
}

}  // namespace

const TransposeBackend kTransposeAvx512{&transpose};

}  // namespace cloister

#endif  // __x86_64__

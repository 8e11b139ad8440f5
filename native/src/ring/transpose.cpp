#include "cloister/transpose.hpp"

#include <bit>
#include <stdexcept>

#include "isa/kernels.hpp"

namespace cloister {
namespace {

template <int kRows>
bool interleave_rows(const float* x, int64_t columns, float* out) {
  constexpr uint32_t kExponent = 0x7f800000;  // all its bits are set in NaN and infinity
  uint32_t not_finite = 0;
  for (int64_t i = 0; i < columns; ++i) {
    for (int row = 0; row < kRows; ++row) {
      const float value = x[row * columns + i];
      not_finite |=
          static_cast<uint32_t>((std::bit_cast<uint32_t>(value) & kExponent) == kExponent);
      out[i * kRows + row] = value;
    }
  }
  return not_finite == 0;
}

}  // namespace

void transpose(const uint32_t* x, int64_t rows, int64_t columns, uint32_t* out) {
  kernels().transpose(x, rows, columns, out);
}

bool interleave(const float* x, int64_t rows, int64_t columns, float* out) {
  switch (rows) {
    case 1: return interleave_rows<1>(x, columns, out);
    case 2: return interleave_rows<2>(x, columns, out);
    case 3: return interleave_rows<3>(x, columns, out);
    case 4: return interleave_rows<4>(x, columns, out);
    default: throw std::invalid_argument("interleave: one to four rows");
  }
}

}  // namespace cloister

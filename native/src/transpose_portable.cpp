#include <algorithm>

#include "transpose_backend.hpp"

namespace cloister {
namespace {

constexpr int64_t kSide = 16;  // of a square whose lines stay in the first-level cache

void transpose(const uint32_t* x, int64_t rows, int64_t columns, uint32_t* out) {
  for (int64_t j = 0; j < columns; j += kSide) {
    const int64_t width = std::min(kSide, columns - j);
    for (int64_t i = 0; i < rows; i += kSide) {
      const int64_t height = std::min(kSide, rows - i);
      for (int64_t column = j; column < j + width; ++column) {
        for (int64_t row = i; row < i + height; ++row) {
          out[column * rows + row] = x[row * columns + column];
        }
      }
    }
  }
}

}  // namespace

const TransposeBackend kTransposePortable{&transpose};

}  // namespace cloister

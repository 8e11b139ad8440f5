// Fixed point and transposition against the definition, in arrays without a byte to spare.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "cloister/fixed_point.hpp"
#include "cloister/isa.hpp"
#include "cloister/transpose.hpp"
#include "expect.hpp"

using namespace cloister;

namespace {

template <typename T>
void test_fixed_point(int64_t a, int64_t b, int64_t c) {
  std::mt19937_64 random(static_cast<uint64_t>(a * b * c));
  std::normal_distribution<double> normal;
  const auto size = static_cast<size_t>(a * b * c);
  std::vector<T> v(size);
  for (T& value : v) value = static_cast<T>(normal(random));
  std::vector<double> sums(static_cast<size_t>(b), 0.0);
  double peak = 0.0;
  for (size_t i = 0; i < size; ++i) {
    const double magnitude = std::fabs(static_cast<double>(v[i]));
    sums[i / static_cast<size_t>(c) % static_cast<size_t>(b)] += magnitude;
    peak = std::max(peak, magnitude);
  }
  const double norm = *std::max_element(sums.begin(), sums.end());
  const Magnitudes found = magnitudes(v.data(), a, b, c);
  const double bound = norm * static_cast<double>(a * c) * 0x1p-52;
  expect(std::fabs(found.norm - norm) <= bound, "norm");
  expect(found.peak == peak, "peak");

  std::vector<int16_t> integers(size);
  round_scaled(v.data(), a, b, c, 9, integers.data());
  for (int64_t i = 0; i < a; ++i) {
    for (int64_t j = 0; j < b; ++j) {
      for (int64_t k = 0; k < c; ++k) {
        const auto value = static_cast<double>(v[static_cast<size_t>((i * b + j) * c + k)]);
        const int16_t integer = integers[static_cast<size_t>((i * c + k) * b + j)];
        expect(integer == std::nearbyint(value * 512.0), "rounding");
      }
    }
  }
  v[size / 2] = std::numeric_limits<T>::quiet_NaN();
  expect(std::isnan(magnitudes(v.data(), a, b, c).norm), "NaN");
}

void test_transpose(int64_t rows, int64_t columns) {
  std::vector<uint32_t> x(static_cast<size_t>(rows * columns)), out(x.size());
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint32_t>(i) * 0x9E3779B1u;
  transpose(x.data(), rows, columns, out.data());
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      expect(out[static_cast<size_t>(j * rows + i)] == x[static_cast<size_t>(i * columns + j)],
             "transpose");
    }
  }
}

}  // namespace

int main() {
  for (int level = 0; level <= static_cast<int>(best_isa()); ++level) {
    force_isa(static_cast<Isa>(level));
    const int64_t shapes[][3] = {{1, 1, 1}, {1, 5, 784}, {7, 130, 1}, {4, 6, 33}, {5, 33, 129}};
    for (const auto& [a, b, c] : shapes) {
      test_fixed_point<float>(a, b, c);
      test_fixed_point<double>(a, b, c);
    }
    const int64_t matrices[][2] = {{0, 3}, {1, 1}, {1, 40}, {16, 16}, {17, 33}, {70, 64}};
    for (const auto& [rows, columns] : matrices) test_transpose(rows, columns);
  }
  std::puts("fixed point: ok");
  return 0;
}

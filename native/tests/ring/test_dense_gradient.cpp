// Dense gradients against the definition, in arrays without a byte to spare.
#include <cstdio>
#include <random>
#include <vector>

#include "cloister/dense_gradient.hpp"
#include "cloister/isa.hpp"
#include "expect.hpp"

using namespace cloister;

namespace {

void test_dense_gradient(int64_t n, int64_t outputs, int64_t inputs, int threads) {
  std::mt19937 random(static_cast<uint32_t>(n * outputs * inputs));
  std::vector<int16_t> delta(static_cast<size_t>(n * outputs));
  std::vector<uint32_t> x(static_cast<size_t>(n * inputs));
  for (int16_t& value : delta) value = static_cast<int16_t>(random());
  for (uint32_t& value : x) value = static_cast<uint32_t>(random());
  std::vector<uint32_t> out(static_cast<size_t>(outputs * inputs));
  dense_gradient(delta.data(), x.data(), n, outputs, inputs, out.data(), threads);
  for (int64_t o = 0; o < outputs; ++o) {
    for (int64_t c = 0; c < inputs; ++c) {
      uint32_t sum = 0;
      for (int64_t i = 0; i < n; ++i) {
        sum += static_cast<uint32_t>(delta[static_cast<size_t>(i * outputs + o)]) *
               x[static_cast<size_t>(i * inputs + c)];
      }
      expect(out[static_cast<size_t>(o * inputs + c)] == sum, "dense gradient");
    }
  }
}

}  // namespace

int main() {
  for (int level = 0; level <= static_cast<int>(best_isa()); ++level) {
    force_isa(static_cast<Isa>(level));
    const int64_t shapes[][3] = {{0, 2, 3}, {1, 1, 1}, {2, 6, 32}, {3, 7, 33}, {65, 13, 100}};
    for (const auto& [n, outputs, inputs] : shapes) {
      for (const int threads : {1, 3}) test_dense_gradient(n, outputs, inputs, threads);
    }
  }
  std::puts("dense gradient: ok");
  return 0;
}

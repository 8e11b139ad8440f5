// The factors of t and their expansion against the definition in 128-bit integers, t = A^T s.
#include <random>
#include <vector>

#include "cloister/freivalds.hpp"
#include "cloister/isa.hpp"
#include "expect.hpp"

using namespace cloister;

namespace {

__extension__ using U128 = unsigned __int128;

uint64_t mod_mul(uint64_t x, uint64_t y) {
  return static_cast<uint64_t>(static_cast<U128>(x) * y % kP52);
}

std::vector<uint64_t> definition(const Geometry& g, const std::vector<int16_t>& weights,
                                 const std::vector<uint64_t>& a, const std::vector<uint64_t>& b) {
  std::vector<uint64_t> t(static_cast<size_t>(g.in_elements()), 0);
  const int64_t cin = g.group_in();
  for (int64_t y = 0; y < g.oh; ++y) {
    for (int64_t x = 0; x < g.ow; ++x) {
      for (int64_t o = 0; o < g.oc; ++o) {
        const uint64_t s = mod_mul(a[static_cast<size_t>(y * g.ow + x)], b[static_cast<size_t>(o)]);
        for (int64_t i = 0; i < g.kh; ++i) {
          for (int64_t j = 0; j < g.kw; ++j) {
            const int64_t py = y * g.sh + i * g.dh - g.ph, px = x * g.sw + j * g.dw - g.pw;
            if (py < 0 || px < 0 || py % g.uh || px % g.uw) continue;
            if (py / g.uh >= g.h || px / g.uw >= g.w) continue;
            for (int64_t c = 0; c < cin; ++c) {
              const int64_t w = weights[static_cast<size_t>(((o * g.kh + i) * g.kw + j) * cin + c)];
              const uint64_t canonical =
                  w < 0 ? kP52 - static_cast<uint64_t>(-w) : static_cast<uint64_t>(w);
              uint64_t& sum = t[static_cast<size_t>((py / g.uh * g.w + px / g.uw) * g.c +
                                                    o / g.group_out() * cin + c)];
              sum = static_cast<uint64_t>((static_cast<U128>(s) * canonical + sum) % kP52);
            }
          }
        }
      }
    }
  }
  return t;
}

std::vector<uint64_t> filled(int64_t size) {
  return std::vector<uint64_t>(static_cast<size_t>(size), UINT64_MAX);
}

void test_factors(const Geometry& g, bool extreme) {
  std::mt19937_64 random(1);
  std::vector<int16_t> weights(static_cast<size_t>(g.oc * g.kh * g.kw * g.group_in()));
  std::vector<uint64_t> alpha(static_cast<size_t>(g.oh)), beta(static_cast<size_t>(g.ow)),
      b(static_cast<size_t>(g.oc));
  for (int16_t& w : weights) w = extreme ? INT16_MIN : static_cast<int16_t>(random());
  for (auto* secrets : {&alpha, &beta, &b}) {
    for (uint64_t& v : *secrets) v = extreme ? kP52 - 1 : random() % kP52;
  }
  std::vector<uint64_t> products;
  for (uint64_t y : alpha) {
    for (uint64_t x : beta) products.push_back(mod_mul(y, x));
  }
  const std::vector<uint64_t> expected = definition(g, weights, products, b);
  for (int threads : {1, 3}) {
    std::vector<uint64_t> a = filled(g.oh * g.ow), columns = filled(g.kw * g.w),
                          rows = filled(g.h * g.kw * g.c), t = filled(g.in_elements());
    freivalds_factors(g, weights.data(), alpha.data(), beta.data(), b.data(),
                      {a.data(), columns.data(), rows.data()}, threads);
    expect(a == products, "coefficients of the answer");
    freivalds_expand(g, columns.data(), rows.data(), t.data(), threads);
    expect(t == expected, "coefficients of the request");
    for (uint64_t v : columns) expect(v < kP52, "canonical columns");
    for (uint64_t v : rows) expect(v < kP52, "canonical rows");
  }
}

void test_dot() {
  std::vector<uint64_t> coefficients(1001, kP52 - 1);
  std::vector<int32_t> values(1001, INT32_MIN);
  // (-1) * (-2^31) * 1001
  expect(freivalds_dot(coefficients.data(), values.data(), 1001) == (uint64_t{1001} << 31) % kP52,
         "dot of the smallest integers");
  values.assign(1001, INT32_MAX);
  expect(freivalds_dot(coefficients.data(), values.data(), 1001) ==
             kP52 - uint64_t{1001} * INT32_MAX % kP52,
         "dot of the largest integers");
  expect(freivalds_dot(nullptr, nullptr, 0) == 0, "empty dot");
}

}  // namespace

int main() {
  const Geometry shapes[] = {
      {5, 7, 6, 5, 7, 10, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1},
      {9, 8, 3, 5, 4, 17, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1},
      {9, 11, 4, 5, 5, 5, 3, 3, 1, 2, 2, 1, 1, 1, 0, 0, 1},
      {4, 5, 12, 4, 5, 18, 3, 1, 1, 1, 1, 1, 1, 1, 1, 0, 3},
      {5, 4, 19, 5, 4, 19, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 19},
      {3, 4, 5, 6, 8, 7, 4, 4, 1, 1, 1, 1, 2, 2, 2, 2, 1},
      {8, 9, 2, 3, 3, 3, 3, 3, 1, 1, 1, 1, 1, 1, -1, -2, 1},
      {1, 1, 301, 1, 1, 33, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1},
      {1, 1, 1, 1, 1, 4500, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1},
      {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1},
      {3, 12, 20, 3, 12, 6, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1},
      {4, 19, 16, 3, 9, 8, 3, 5, 2, 2, 1, 2, 1, 1, 1, 3, 2},
      {7, 7, 2, 2, 2, 2, 1, 1, 3, 3, 1, 1, 1, 1, 0, 0, 1},
      // More kernel rows, and columns, than accumulators take without folding.
      {1, 1, 3, 4200, 1, 1, 4200, 1, 1, 1, 1, 1, 1, 1, 4199, 0, 1},
      {1, 1, 3, 1, 4200, 1, 1, 4200, 1, 1, 1, 1, 1, 1, 0, 4199, 1},
  };
  for (int i = 0; i <= static_cast<int>(best_isa()); ++i) {
    force_isa(static_cast<Isa>(i));
    for (const Geometry& g : shapes) {
      test_factors(g, false);
      test_factors(g, true);
    }
    test_dot();
  }
  return 0;
}

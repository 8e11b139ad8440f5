// The group's kernels: both forms against each other, secret against public arithmetic, and the
// edges of blocks. Vectors and a slow reference are in tests/fe.
#include <cstring>
#include <random>
#include <vector>

#include "cloister/isa.hpp"
#include "curve.hpp"
#include "expect.hpp"

using namespace cloister;

namespace {

using Bytes = std::vector<uint8_t>;
using Points = std::vector<CurvePoint>;

Bytes random_scalars(int64_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  Bytes wide(static_cast<size_t>(n * kWideScalarBytes)), out(static_cast<size_t>(n * kScalarBytes));
  for (uint8_t& b : wide) b = static_cast<uint8_t>(random());
  scalar_reduce(wide.data(), n, out.data());
  return out;
}

Bytes encoded(const Points& points) {
  Bytes out(points.size() * 32);
  curve_encode(points.data(), static_cast<int64_t>(points.size()), out.data(), 2);
  return out;
}

// s_i G
Points random_points(int64_t n, uint64_t seed) {
  Points g(1), out(static_cast<size_t>(n));
  curve_generator(1, g.data());
  curve_powers(g.data(), 1, random_scalars(n, seed).data(), n, nullptr, 0, out.data(), 1);
  return out;
}

// Encoding and decoding, and that what is no encoding is found wherever it stands.
Bytes test_encodings() {
  Bytes all;
  for (int64_t n : {0, 1, 2, 3, 7, 8, 9, 130}) {
    Bytes bytes = encoded(random_points(n, 1));
    Points back(static_cast<size_t>(n));
    expect(curve_decode(bytes.data(), n, back.data(), 3) == n, "valid encodings");
    expect(encoded(back) == bytes, "an encoding read and written");
    all.insert(all.end(), bytes.begin(), bytes.end());
    for (int64_t bad = 0; bad < n; bad += 5) {
      Bytes changed = bytes;
      changed[static_cast<size_t>(32 * bad)] ^= 1;  // negative
      expect(curve_decode(changed.data(), n, back.data(), 3) == bad, "an invalid encoding");
    }
  }
  return all;
}

// Powers, sums, differences and public products of the same numbers agree.
Bytes test_products() {
  Bytes all;
  const int64_t columns = 5;
  for (int64_t n : {1, 2, 3, 8, 19}) {
    const Points points = random_points(n * columns, 2);
    for (int64_t k : {1, 3, 80}) {
      const Bytes wide = random_scalars(k * 2, 3);
      std::vector<int64_t> small(static_cast<size_t>(k * 3));
      for (size_t i = 0; i < small.size(); ++i) {
        small[i] = static_cast<int64_t>(i * 7919 % 2001) - 1000;
      }
      small[0] = 0;
      small[small.size() - 1] = INT32_MIN;
      Points products(static_cast<size_t>(n * k));
      curve_vartime_products(points.data(), n, 2, wide.data(), 3, small.data(), k, products.data(),
                             2);
      // The same with secret arithmetic: scalars -wide and small modulo the order.
      const int64_t last = k - 1;
      Bytes row(static_cast<size_t>(columns * 32));
      Bytes one(32, 0);
      one[0] = 1;
      const int64_t minus = -1;
      for (int64_t c = 0; c < 2; ++c) {
        scalar_combine(wide.data() + 32 * (2 * last + c), 1, &minus, 1, row.data() + 32 * c);
      }
      for (int64_t c = 0; c < 3; ++c) {
        scalar_combine(one.data(), 1, &small[static_cast<size_t>(3 * last + c)], 1,
                       row.data() + 32 * (2 + c));
      }
      Bytes scalars;
      for (int64_t i = 0; i < n; ++i) scalars.insert(scalars.end(), row.begin(), row.end());
      Points sums(static_cast<size_t>(n)), chosen(static_cast<size_t>(n));
      curve_sums(points.data(), n, columns, scalars.data(), nullptr, 0, sums.data(), 2);
      for (int64_t i = 0; i < n; ++i) {
        chosen[static_cast<size_t>(i)] = products[static_cast<size_t>(i * k + last)];
      }
      const Bytes result = encoded(products);
      expect(encoded(chosen) == encoded(sums), "public products equal secret sums");
      all.insert(all.end(), result.begin(), result.end());
    }
  }
  return all;
}

void test_logarithms() {
  for (int64_t entries : {1, 2, 9, 1000}) {
    const CurveLogarithm table(entries, 2);
    for (int64_t n : {0, 1, 3, 8, 21}) {
      const Bytes zeros(static_cast<size_t>(32 * n), 0);
      std::vector<int64_t> values(static_cast<size_t>(n)), found(static_cast<size_t>(n));
      for (int64_t i = 0; i < n; ++i) values[static_cast<size_t>(i)] = (i - 5) * 111;
      Points g(1), points(static_cast<size_t>(n));
      curve_generator(1, g.data());
      curve_powers(g.data(), 1, zeros.data(), n, values.data(), 5000, points.data(), 1);
      table.vartime_solve(points.data(), n, -2000, 2000, found.data(), 2);
      expect(found == values, "logarithms");
      table.vartime_solve(points.data(), n, 0, 600, found.data(), 1);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t v = values[static_cast<size_t>(i)];
        const int64_t wanted = v >= 0 && v <= 600 ? v : kNoLogarithm;
        expect(found[static_cast<size_t>(i)] == wanted, "logarithms of a range");
      }
    }
  }
}

// (l - 1) + 1 = 0 and (l - 1) * -1 = 1 modulo the order l.
void test_scalars() {
  Bytes minus_one(32, 0), out(32);
  Bytes one(32, 0);
  one[0] = 1;
  const int64_t minus = -1;
  scalar_combine(one.data(), 1, &minus, 1, minus_one.data());
  expect(scalar_is_canonical(minus_one.data()), "l - 1 is canonical");
  Bytes order = minus_one;
  order[0] += 1;
  expect(!scalar_is_canonical(order.data()), "l is not");
  scalar_combine(minus_one.data(), 1, &minus, 1, out.data());
  expect(out == one, "(l - 1) * -1");
  // The largest magnitudes that a sum can have.
  const int64_t n = 1000;
  Bytes many;
  for (int64_t i = 0; i < n; ++i) many.insert(many.end(), minus_one.begin(), minus_one.end());
  std::vector<int64_t> y(static_cast<size_t>(n), INT64_MIN);
  Bytes sum(32), same(32);
  scalar_combine(many.data(), n, y.data(), 1, sum.data());
  scalar_combine(one.data(), 1, &n, 1, same.data());  // n
  for (int i = 0; i < 63; ++i) {
    const int64_t two = 2;
    scalar_combine(Bytes(same).data(), 1, &two, 1, same.data());
  }
  expect(sum == same, "n * (l - 1) * -2^63 = n 2^63");
}

}  // namespace

int main() {
  test_scalars();
  Bytes encodings, products;
  for (int i = 0; i <= static_cast<int>(best_isa()); ++i) {
    force_isa(static_cast<Isa>(i));
    const Bytes e = test_encodings(), p = test_products();
    if (i == 0) {
      encodings = e;
      products = p;
    }
    expect(e == encodings && p == products, "every form gives the same bytes");
    test_logarithms();
  }
  return 0;
}

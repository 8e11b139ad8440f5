// ristretto255 as functions of arrays of encodings: bytes are checked and decoded at every entry,
// so that no caller can hand over something that is not an element.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "curve.hpp"
#include "fused_step.hpp"
#include "instruction_set.hpp"

using namespace cloister;
using namespace cloister::bindings;

namespace {

using Bytes = Contiguous<const uint8_t>;
using BytesOut = Contiguous<uint8_t>;
using Numbers = Contiguous<const int64_t>;

// Not a vector: a million points need not be zeroed first.
using CurvePoints = std::unique_ptr<CurvePoint[]>;

CurvePoints new_points(int64_t n) { return CurvePoints(new CurvePoint[size_t(n)]); }

int64_t size_of(const auto& array) { return static_cast<int64_t>(array.size()); }

int64_t count_of(const auto& array, int64_t bytes, const char* name) {
  require(size_of(array) % bytes == 0, std::string(name) + " has a wrong size");
  return size_of(array) / bytes;
}

CurvePoints decoded(const uint8_t* encodings, int64_t n, int threads) {
  CurvePoints points = new_points(n);
  const int64_t bad = curve_decode(encodings, n, points.get(), threads);
  require(bad == n, "element " + std::to_string(bad) + " is not a canonical encoding");
  return points;
}

int64_t curve_first_invalid(Bytes encodings, int threads) {
  const int64_t n = count_of(encodings, kElementBytes, "encodings");
  nb::gil_scoped_release release;
  const CurvePoints points = new_points(n);
  return curve_decode(encodings.data(), n, points.get(), threads);
}

void scalar_reduce_arrays(Bytes wide, BytesOut out) {
  const int64_t n = count_of(wide, kWideScalarBytes, "wide");
  require(size_of(out) == n * kScalarBytes, "out has a wrong size");
  scalar_reduce(wide.data(), n, out.data());
}

void scalar_combine_arrays(Bytes secrets, Numbers y, BytesOut out) {
  const int64_t n = count_of(secrets, kScalarBytes, "secrets");
  const int64_t count = count_of(out, kScalarBytes, "out");
  require(size_of(y) == n * count, "y has a wrong size");
  nb::gil_scoped_release release;
  scalar_combine(secrets.data(), n, y.data(), count, out.data());
}

void curve_powers_arrays(Bytes points, Bytes scalars, const std::optional<Numbers>& plus,
                         uint64_t plus_bound, BytesOut out, int threads) {
  const int64_t m = count_of(points, kElementBytes, "points");
  const int64_t n = count_of(scalars, kScalarBytes, "scalars");
  require(size_of(out) == n * m * kElementBytes, "out has a wrong size");
  require(!plus || size_of(*plus) == n * m, "plus has a wrong size");
  const int64_t* small = plus ? plus->data() : nullptr;
  nb::gil_scoped_release release;
  const CurvePoints bases = decoded(points.data(), m, threads), results = new_points(n * m);
  curve_powers(bases.get(), m, scalars.data(), n, small, plus_bound, results.get(), threads);
  curve_encode(results.get(), n * m, out.data(), threads);
}

// Both functions over sums take points [n][columns] and scalars of the same shape.
int64_t sum_rows(const Bytes& points, const Bytes& scalars, int64_t columns) {
  require(columns >= 1, "there must be a column");
  const int64_t n = count_of(points, kElementBytes * columns, "points");
  require(size_of(scalars) == n * columns * kScalarBytes, "scalars has a wrong size");
  return n;
}

void curve_sums_arrays(Bytes points, Bytes scalars, int64_t columns,
                       const std::optional<Numbers>& plus, uint64_t plus_bound, BytesOut out,
                       int threads) {
  const int64_t n = sum_rows(points, scalars, columns);
  require(size_of(out) == n * kElementBytes, "out has a wrong size");
  require(!plus || size_of(*plus) == n, "plus has a wrong size");
  const int64_t* small = plus ? plus->data() : nullptr;
  nb::gil_scoped_release release;
  const CurvePoints bases = decoded(points.data(), n * columns, threads), results = new_points(n);
  curve_sums(bases.get(), n, columns, scalars.data(), small, plus_bound, results.get(), threads);
  curve_encode(results.get(), n, out.data(), threads);
}

class BoundLogarithm {
 public:
  BoundLogarithm(int64_t entries, int threads) : table_(entries, threads) {}

  void solve(Bytes encodings, int64_t lo, int64_t hi, Contiguous<int64_t> out, int threads) const {
    const int64_t n = count_of(encodings, kElementBytes, "encodings");
    require(size_of(out) == n, "out has a wrong size");
    nb::gil_scoped_release release;
    const CurvePoints points = decoded(encodings.data(), n, threads);
    table_.vartime_solve(points.get(), n, lo, hi, out.data(), threads);
  }

  // s_i P_i - Q_i, with scalars of 32 bytes or small numbers.
  void solve_differences(Bytes points, const std::optional<Bytes>& wide,
                         const std::optional<Numbers>& small, Bytes subtrahends, int64_t lo,
                         int64_t hi, Contiguous<int64_t> out, int threads) const {
    const int64_t n = count_of(points, kElementBytes, "points");
    require(size_of(subtrahends) == n * kElementBytes && size_of(out) == n, "the sizes differ");
    require(wide.has_value() != small.has_value(), "scalars are wide or small");
    require(!wide || size_of(*wide) == n * kScalarBytes, "wide has a wrong size");
    require(!small || size_of(*small) == n, "small has a wrong size");
    const uint8_t* wide_scalars = wide ? wide->data() : nullptr;
    const int64_t* small_scalars = small ? small->data() : nullptr;
    nb::gil_scoped_release release;
    const CurvePoints p = decoded(points.data(), n, threads);
    const CurvePoints q = decoded(subtrahends.data(), n, threads), results = new_points(n);
    curve_differences(p.get(), wide_scalars, small_scalars, q.get(), n, results.get(), threads);
    table_.vartime_solve(results.get(), n, lo, hi, out.data(), threads);
  }

  // points [n][wide + small], wide [k][wide columns], small [k][small columns], out [n][k].
  void solve_products(Bytes points, Bytes wide, Numbers small, int64_t scalars, int64_t lo,
                      int64_t hi, Contiguous<int64_t> out, int threads) const {
    require(scalars >= 1, "there must be a scalar");
    const int64_t wide_columns = count_of(wide, kScalarBytes * scalars, "wide");
    const int64_t small_columns = count_of(small, scalars, "small");
    const int64_t columns = wide_columns + small_columns;
    require(columns >= 1, "there must be a column");
    const int64_t n = count_of(points, kElementBytes * columns, "points");
    require(size_of(out) == n * scalars, "out has a wrong size");
    nb::gil_scoped_release release;
    const CurvePoints bases = decoded(points.data(), n * columns, threads);
    const CurvePoints results = new_points(n * scalars);
    curve_vartime_products(bases.get(), n, wide_columns, wide.data(), small_columns, small.data(),
                           scalars, results.get(), threads);
    table_.vartime_solve(results.get(), n * scalars, lo, hi, out.data(), threads);
  }

 private:
  CurveLogarithm table_;
};

}  // namespace

NB_MODULE(_published_native, m) {
  nb::set_leak_warnings(false);  // as in module.cpp
  register_instruction_set(m);

  m.def("curve_first_invalid", &curve_first_invalid, nb::arg("encodings").noconvert(),
        nb::arg("threads") = 1);
  m.def("scalar_reduce", &scalar_reduce_arrays, nb::arg("wide").noconvert(),
        nb::arg("out").noconvert());
  m.def("scalar_combine", &scalar_combine_arrays, nb::arg("secrets").noconvert(),
        nb::arg("y").noconvert(), nb::arg("out").noconvert());
  m.def("curve_powers", &curve_powers_arrays, nb::arg("points").noconvert(),
        nb::arg("scalars").noconvert(), nb::arg("plus").noconvert().none(), nb::arg("plus_bound"),
        nb::arg("out").noconvert(), nb::arg("threads") = 1);
  m.def("curve_sums", &curve_sums_arrays, nb::arg("points").noconvert(),
        nb::arg("scalars").noconvert(), nb::arg("columns"), nb::arg("plus").noconvert().none(),
        nb::arg("plus_bound"), nb::arg("out").noconvert(), nb::arg("threads") = 1);
  nb::class_<BoundLogarithm>(m, "CurveLogarithm")
      .def(nb::init<int64_t, int>(), nb::arg("entries"), nb::arg("threads") = 1)
      .def("solve", &BoundLogarithm::solve, nb::arg("encodings").noconvert(), nb::arg("lo"),
           nb::arg("hi"), nb::arg("out").noconvert(), nb::arg("threads") = 1)
      .def("solve_differences", &BoundLogarithm::solve_differences, nb::arg("points").noconvert(),
           nb::arg("wide").noconvert().none(), nb::arg("small").noconvert().none(),
           nb::arg("subtrahends").noconvert(), nb::arg("lo"), nb::arg("hi"),
           nb::arg("out").noconvert(), nb::arg("threads") = 1)
      .def("solve_products", &BoundLogarithm::solve_products, nb::arg("points").noconvert(),
           nb::arg("wide").noconvert(), nb::arg("small").noconvert(), nb::arg("scalars"),
           nb::arg("lo"), nb::arg("hi"), nb::arg("out").noconvert(), nb::arg("threads") = 1);
}

// Fixed point, transposition and dense gradients as functions of NumPy arrays.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <string>
#include <utility>

#include "arrays.hpp"
#include "cloister/dense_gradient.hpp"
#include "cloister/fixed_point.hpp"
#include "cloister/transpose.hpp"

namespace cloister::bindings {

template <typename T>
using Cube = nb::ndarray<T, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

template <typename T>
using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <typename T>
std::pair<double, double> magnitudes_array(Cube<const T> v) {
  nb::gil_scoped_release release;
  const Magnitudes found =
      magnitudes(v.data(), static_cast<int64_t>(v.shape(0)), static_cast<int64_t>(v.shape(1)),
                 static_cast<int64_t>(v.shape(2)));
  return {found.norm, found.peak};
}

template <typename T>
void round_scaled_array(Cube<const T> v, int exponent, Cube<int16_t> out) {
  require(out.shape(0) == v.shape(0) && out.shape(1) == v.shape(2) && out.shape(2) == v.shape(1),
          "round_scaled: out does not fit");
  require(-126 <= exponent && exponent <= 126, "round_scaled: exponent out of range");
  nb::gil_scoped_release release;
  round_scaled(v.data(), static_cast<int64_t>(v.shape(0)), static_cast<int64_t>(v.shape(1)),
               static_cast<int64_t>(v.shape(2)), exponent, out.data());
}

inline void scale_difference_array(Contiguous<const uint32_t> p, Contiguous<const uint32_t> m,
                                   double factor, Contiguous<float> out) {
  require(p.size() == m.size() && p.size() == out.size(), "scale_difference: sizes differ");
  nb::gil_scoped_release release;
  scale_difference(p.data(), m.data(), static_cast<int64_t>(p.size()), static_cast<float>(factor),
                   out.data());
}

inline void dense_gradient_array(Matrix<const int16_t> delta, Matrix<const uint32_t> x,
                                 Matrix<uint32_t> out, int threads) {
  require(
      delta.shape(0) == x.shape(0) && out.shape(0) == delta.shape(1) && out.shape(1) == x.shape(1),
      "dense_gradient: shapes do not fit");
  nb::gil_scoped_release release;
  dense_gradient(delta.data(), x.data(), static_cast<int64_t>(x.shape(0)),
                 static_cast<int64_t>(delta.shape(1)), static_cast<int64_t>(x.shape(1)), out.data(),
                 threads);
}

inline void transpose_array(Matrix<const uint32_t> x, Matrix<uint32_t> out) {
  require(out.shape(0) == x.shape(1) && out.shape(1) == x.shape(0), "transpose: out does not fit");
  nb::gil_scoped_release release;
  transpose(x.data(), static_cast<int64_t>(x.shape(0)), static_cast<int64_t>(x.shape(1)),
            out.data());
}

inline bool interleave_arrays(Cube<const float> x, Cube<float> out) {
  require(out.shape(0) == x.shape(0) && out.shape(1) == x.shape(2) && out.shape(2) == x.shape(1),
          "interleave: out does not fit");
  const auto rows = static_cast<int64_t>(x.shape(1)), columns = static_cast<int64_t>(x.shape(2));
  nb::gil_scoped_release release;
  bool finite = true;
  for (size_t i = 0; i < x.shape(0); ++i) {
    const int64_t at = static_cast<int64_t>(i) * rows * columns;
    finite &= interleave(x.data() + at, rows, columns, out.data() + at);
  }
  return finite;
}

inline bool array_is_finite(Contiguous<const float> x) {
  nb::gil_scoped_release release;
  return all_finite(x.data(), static_cast<int64_t>(x.size()));
}

inline void register_fixed_point(nb::module_& m) {
  m.def("all_finite", &array_is_finite, nb::arg("x").noconvert());
  m.def("magnitudes", &magnitudes_array<float>, nb::arg("v").noconvert());
  m.def("magnitudes", &magnitudes_array<double>, nb::arg("v").noconvert());
  m.def("round_scaled", &round_scaled_array<float>, nb::arg("v").noconvert(), nb::arg("exponent"),
        nb::arg("out").noconvert());
  m.def("round_scaled", &round_scaled_array<double>, nb::arg("v").noconvert(), nb::arg("exponent"),
        nb::arg("out").noconvert());
  m.def("scale_difference", &scale_difference_array, nb::arg("p").noconvert(),
        nb::arg("m").noconvert(), nb::arg("factor"), nb::arg("out").noconvert());
  m.def("dense_gradient", &dense_gradient_array, nb::arg("delta").noconvert(),
        nb::arg("x").noconvert(), nb::arg("out").noconvert(), nb::arg("threads"));
  m.def("transpose", &transpose_array, nb::arg("x").noconvert(), nb::arg("out").noconvert());
  m.def("interleave", &interleave_arrays, nb::arg("x").noconvert(), nb::arg("out").noconvert());
}

}  // namespace cloister::bindings

// The only file that knows Python: every kernel of native/ as a function of NumPy arrays.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>

#include "cloister/geometry.hpp"
#include "cloister/isa.hpp"
#include "cloister/ring_map.hpp"

namespace nb = nanobind;
using namespace cloister;

namespace {

void force_isa_by_name(const std::string& name) {
  for (int i = 0; i <= static_cast<int>(Isa::avx512); ++i) {
    if (name == isa_name(static_cast<Isa>(i))) return force_isa(static_cast<Isa>(i));
  }
  throw std::invalid_argument("unknown instruction set: " + name);
}

// x, the output and the weights are checked for shape in cloister.field.ring; their sizes again
// here, because a kernel that reads past an array would be worse than an exception.
using GeometryTuple = std::array<int64_t, 17>;
template <typename T>
using Contiguous = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

template <typename T>
void ring_map_apply(RingMap& map, Contiguous<const T> x, Contiguous<uint32_t> out, int threads) {
  const int64_t in = map.geometry().in_elements(), n = static_cast<int64_t>(x.size()) / in;
  if (static_cast<int64_t>(x.size()) != n * in ||
      static_cast<int64_t>(out.size()) != n * map.geometry().out_elements()) {
    throw std::invalid_argument("RingMap.apply: x and out do not fit the geometry");
  }
  nb::gil_scoped_release release;
  map.apply(x.data(), n, out.data(), threads);
}

void ring_map_init(RingMap* self, const GeometryTuple& values, Contiguous<const int16_t> weights) {
  const Geometry g = Geometry::from(values);
  if (g.groups < 1 ||
      static_cast<int64_t>(weights.size()) != g.oc * g.kh * g.kw * (g.c / g.groups)) {
    throw std::invalid_argument("RingMap: the weights do not fit the geometry");
  }
  new (self) RingMap(g, weights.data());
}

}  // namespace

NB_MODULE(_native, m) {
  // ---- instruction set
  m.def("isa", [] { return std::string(isa_name(active_isa())); });
  m.def("force_isa", &force_isa_by_name);
  m.def("available_isas", &available_isas);

  // ---- ring: exact linear maps modulo 2^32
  nb::class_<RingMap>(m, "RingMap")
      .def("__init__", &ring_map_init, nb::arg("geometry"), nb::arg("weights"))
      .def("apply", &ring_map_apply<uint32_t>, nb::arg("x").noconvert(), nb::arg("out").noconvert(),
           nb::arg("threads"))
      .def("apply", &ring_map_apply<int16_t>, nb::arg("x").noconvert(), nb::arg("out").noconvert(),
           nb::arg("threads"));

  // ---- trusted: pads, checks, the pass between linear nodes
}

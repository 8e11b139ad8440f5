// What suits this processor: parameters of the kernels that change no bit of a result.
#pragma once
#include <nanobind/nanobind.h>

#include "cloister/tuning.hpp"

namespace cloister::bindings {

inline void register_tuning(nanobind::module_& m) {
  namespace nb = nanobind;
  const Tuning defaults;
  nb::class_<Tuning>(m, "Tuning")
      .def(
          "__init__",
          [](Tuning* self, int64_t tile, int64_t far_tiles, int64_t stream_from) {
            new (self) Tuning{tile, far_tiles, stream_from};
          },
          nb::kw_only(), nb::arg("tile") = defaults.tile, nb::arg("far_tiles") = defaults.far_tiles,
          nb::arg("stream_from") = defaults.stream_from)
      .def_ro("tile", &Tuning::tile)
      .def_ro("far_tiles", &Tuning::far_tiles)
      .def_ro("stream_from", &Tuning::stream_from);
  m.def("tuning", &tuning);
  m.def("set_tuning", &set_tuning, nb::arg("wanted"));
}

}  // namespace cloister::bindings

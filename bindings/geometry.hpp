// The geometry of a linear map, by the names of cloister.ring.linear.Geometry.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>

#include <cstdint>
#include <utility>

#include "cloister/geometry.hpp"

namespace cloister::bindings {

using HeightWidth = std::pair<int64_t, int64_t>;

inline void register_geometry(nanobind::module_& m) {
  namespace nb = nanobind;
  nb::class_<Geometry>(m, "Geometry")
      .def(
          "__init__",
          [](Geometry* self, HeightWidth in_size, int64_t in_channels, HeightWidth out_size,
             int64_t out_channels, HeightWidth kernel, HeightWidth stride, HeightWidth dilation,
             HeightWidth upsample, HeightWidth pad, int64_t groups) {
            new (self) Geometry{.h = in_size.first,
                                .w = in_size.second,
                                .c = in_channels,
                                .oh = out_size.first,
                                .ow = out_size.second,
                                .oc = out_channels,
                                .kh = kernel.first,
                                .kw = kernel.second,
                                .sh = stride.first,
                                .sw = stride.second,
                                .dh = dilation.first,
                                .dw = dilation.second,
                                .uh = upsample.first,
                                .uw = upsample.second,
                                .ph = pad.first,
                                .pw = pad.second,
                                .groups = groups};
          },
          nb::kw_only(), nb::arg("in_size"), nb::arg("in_channels"), nb::arg("out_size"),
          nb::arg("out_channels"), nb::arg("kernel"), nb::arg("stride"), nb::arg("dilation"),
          nb::arg("upsample"), nb::arg("pad"), nb::arg("groups"));
}

}  // namespace cloister::bindings

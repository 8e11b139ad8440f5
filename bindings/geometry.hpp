// The geometry of a linear map, by the names of cloister.ring.linear.Geometry.
#pragma once

#include "arrays.hpp"
#include "cloister/geometry.hpp"

namespace cloister::bindings {

inline void register_geometry(nanobind::module_& m) {
  nb::class_<Geometry>(m, "Geometry")
      .def(
          "__init__",
          [](Geometry* self, Pair in_size, int64_t in_channels, Pair out_size, int64_t out_channels,
             Pair kernel, Pair stride, Pair dilation, Pair upsample, Pair pad, int64_t groups) {
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

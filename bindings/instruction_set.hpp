// The instruction set that an extension's kernels use: each extension has its own.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>

#include "cloister/isa.hpp"

namespace cloister::bindings {

inline void force_isa_by_name(const std::string& name) {
  for (int i = 0; i <= static_cast<int>(Isa::amx); ++i) {
    if (name == isa_name(static_cast<Isa>(i))) return force_isa(static_cast<Isa>(i));
  }
  throw std::invalid_argument("unknown instruction set: " + name);
}

inline void register_instruction_set(nanobind::module_& m) {
#ifdef _FORTIFY_SOURCE
  m.attr("FORTIFY_LEVEL") = _FORTIFY_SOURCE;
#else
  m.attr("FORTIFY_LEVEL") = 0;
#endif
  m.def("isa", [] { return std::string(isa_name(active_isa())); });
  m.def("force_isa", &force_isa_by_name);
  m.def("available_isas", &available_isas);
  m.def("amx_refused", &amx_refused);
}

}  // namespace cloister::bindings

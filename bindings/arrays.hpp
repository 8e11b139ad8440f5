// Arrays of Python as kernels read them.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace cloister::bindings {

namespace nb = nanobind;

template <typename T>
using Contiguous = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

inline const uint8_t* bytes_of(const nb::bytes& bytes, size_t size, const char* name) {
  require(bytes.size() == size, std::string(name) + " must have " + std::to_string(size) +
                                    " bytes, not " + std::to_string(bytes.size()));
  return reinterpret_cast<const uint8_t*>(bytes.c_str());
}

using Input = nb::ndarray<nb::ro, nb::device::cpu>;
using Output = nb::ndarray<nb::device::cpu>;
using Coefficients = Contiguous<const uint64_t>;
using Floats = Contiguous<const float>;
using Pair = std::pair<int64_t, int64_t>;  // (height, width)

}  // namespace cloister::bindings

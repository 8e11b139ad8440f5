// The only folder that knows Python: every kernel of native/src as a function of NumPy arrays.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cloister/aes_ctr.hpp"
#include "cloister/busy_poll.hpp"
#include "cloister/freivalds.hpp"
#include "cloister/fused_step.hpp"
#include "cloister/pad_shares.hpp"
#include "cloister/ring_map.hpp"
#include "executor.hpp"
#include "fixed_point.hpp"
#include "fused_step.hpp"
#include "geometry.hpp"
#include "instruction_set.hpp"
#include "tuning.hpp"

namespace nb = nanobind;
using namespace cloister;
using namespace cloister::bindings;

namespace {

// x, the output and the weights are checked for shape in cloister.ring.ring_map; their sizes again
// here, because a kernel that reads past an array would be worse than an exception.
// Images may lie apart; every one of them lies side by side.
using Images = nb::ndarray<uint32_t, nb::ndim<4>, nb::device::cpu>;

template <typename T>
void ring_map_apply(RingMap& map, Contiguous<const T> x, const Images& out, int threads) {
  const int64_t in = map.geometry().in_elements(), n = static_cast<int64_t>(x.size()) / in;
  const int64_t elements = map.geometry().out_elements();
  if (static_cast<int64_t>(x.size()) != n * in || static_cast<int64_t>(out.shape(0)) != n ||
      static_cast<int64_t>(out.size()) != n * elements) {
    throw std::invalid_argument("RingMap.apply: x and out do not fit the geometry");
  }
  int64_t distance = 1;
  for (size_t axis = 4; axis-- > 1;) {
    const auto size = static_cast<int64_t>(out.shape(axis));
    require(n == 0 || size == 1 || out.stride(axis) == distance,
            "RingMap.apply: an image has gaps");
    distance *= size;
  }
  require(n < 2 || out.stride(0) >= elements, "RingMap.apply: images overlap");
  nb::gil_scoped_release release;
  map.apply(x.data(), n, out.data(), threads, n < 2 ? 0 : out.stride(0));
}

void ring_map_init(RingMap* self, const Geometry& g, Contiguous<const int16_t> weights) {
  if (g.groups < 1 ||
      static_cast<int64_t>(weights.size()) != g.oc * g.kh * g.kw * (g.c / g.groups)) {
    throw std::invalid_argument("RingMap: the weights do not fit the geometry");
  }
  new (self) RingMap(g, weights.data());
}

std::pair<int64_t, int64_t> ring_map_memory(const Geometry& geometry, int64_t n,
                                            int64_t bytes_per_element, int threads) {
  const auto [held, scratch] = RingMap::memory(geometry, n, bytes_per_element, threads);
  return {held, scratch};
}

// ---- trusted

void aes_ctr_fill_array(const nb::bytes& key, const nb::bytes& nonce, uint64_t first_block,
                        Contiguous<uint32_t> out) {
  const AesSchedule schedule(bytes_of(key, kAesKeyBytes, "key"));
  aes_ctr_fill(schedule, bytes_of(nonce, kAesNonceBytes, "nonce"), first_block, out.data(),
               static_cast<int64_t>(out.size()));
}

void check_factors(const Geometry& g, size_t columns, size_t rows) {
  require(g.groups >= 1 && static_cast<int64_t>(columns) == g.kw * g.w &&
              static_cast<int64_t>(rows) == g.h * g.kw * g.c,
          "freivalds: columns and rows do not fit the geometry");
}

void freivalds_factors_arrays(const Geometry& g, Contiguous<const int16_t> weights,
                              Coefficients alpha, Coefficients beta, Coefficients b,
                              Contiguous<uint64_t> a, Contiguous<uint64_t> columns,
                              Contiguous<uint64_t> rows, int threads) {
  check_factors(g, columns.size(), rows.size());
  const auto size = [](const auto& array) { return static_cast<int64_t>(array.size()); };
  require(size(weights) == g.oc * g.kh * g.kw * (g.c / g.groups),
          "freivalds: the weights do not fit the geometry");
  require(size(alpha) == g.oh && size(beta) == g.ow && size(b) == g.oc && size(a) == g.oh * g.ow,
          "freivalds: alpha, beta, b and a do not fit the geometry");
  nb::gil_scoped_release release;
  freivalds_factors(g, weights.data(), alpha.data(), beta.data(), b.data(),
                    {a.data(), columns.data(), rows.data()}, threads);
}

void freivalds_expand_arrays(const Geometry& g, Coefficients columns, Coefficients rows,
                             Contiguous<uint64_t> t, int threads) {
  check_factors(g, columns.size(), rows.size());
  require(static_cast<int64_t>(t.size()) == g.in_elements(), "freivalds: t does not fit");
  nb::gil_scoped_release release;
  freivalds_expand(g, columns.data(), rows.data(), t.data(), threads);
}

uint64_t freivalds_dot_arrays(Contiguous<const uint64_t> coefficients,
                              Contiguous<const int32_t> values) {
  require(coefficients.size() == values.size(), "freivalds_dot: the sizes differ");
  return freivalds_dot(coefficients.data(), values.data(), static_cast<int64_t>(values.size()));
}

void split_share_arrays(Contiguous<const uint32_t> share, Coefficients t,
                        const std::vector<int>& widths, Contiguous<int16_t> digits,
                        Contiguous<uint64_t> sums) {
  require(t.size() == share.size() && sums.size() == widths.size() &&
              digits.size() == widths.size() * share.size(),
          "split_share: share, t, digits and sums do not fit each other");
  nb::gil_scoped_release release;
  split_share(share.data(), t.data(), static_cast<int64_t>(share.size()), widths, digits.data(),
              sums.data());
}

void add_answers_arrays(Contiguous<const uint32_t> answers, Coefficients a, Coefficients b,
                        const std::vector<int>& widths, Contiguous<uint32_t> out,
                        Contiguous<uint64_t> sums) {
  require(out.size() == a.size() * b.size() && sums.size() == widths.size() &&
              answers.size() == widths.size() * out.size(),
          "add_answers: answers, a, b, out and sums do not fit each other");
  nb::gil_scoped_release release;
  add_answers(answers.data(), a.data(), static_cast<int64_t>(a.size()), b.data(),
              static_cast<int64_t>(b.size()), widths, out.data(), sums.data());
}

}  // namespace

NB_MODULE(_native, m) {
  // An interpreter that exits on an error may leave objects behind; that is no leak to report.
  nb::set_leak_warnings(false);

  register_instruction_set(m);
  register_tuning(m);

  // ---- ring: exact linear maps modulo 2^32
  register_geometry(m);
  nb::class_<RingMap>(m, "RingMap")
      .def("__init__", &ring_map_init, nb::arg("geometry"), nb::arg("weights"))
      .def("apply", &ring_map_apply<uint32_t>, nb::arg("x").noconvert(), nb::arg("out").noconvert(),
           nb::arg("threads"))
      .def("apply", &ring_map_apply<int16_t>, nb::arg("x").noconvert(), nb::arg("out").noconvert(),
           nb::arg("threads"))
      .def_prop_ro("on_tiles", &RingMap::on_tiles);
  m.def("ring_map_memory", &ring_map_memory, nb::arg("geometry"), nb::arg("batch"),
        nb::arg("bytes_per_element"), nb::arg("threads"));

  // ---- trusted: pads, checks, the steps between linear nodes, their executor
  m.def("aes_ctr_fill", &aes_ctr_fill_array, nb::arg("key"), nb::arg("nonce"),
        nb::arg("first_block"), nb::arg("out").noconvert());
  m.def("freivalds_factors", &freivalds_factors_arrays, nb::arg("geometry"), nb::arg("weights"),
        nb::arg("alpha").noconvert(), nb::arg("beta").noconvert(), nb::arg("b").noconvert(),
        nb::arg("a").noconvert(), nb::arg("columns").noconvert(), nb::arg("rows").noconvert(),
        nb::arg("threads") = 1);
  m.def("freivalds_expand", &freivalds_expand_arrays, nb::arg("geometry"),
        nb::arg("columns").noconvert(), nb::arg("rows").noconvert(), nb::arg("t").noconvert(),
        nb::arg("threads") = 1);
  m.def("freivalds_dot", &freivalds_dot_arrays, nb::arg("coefficients").noconvert(),
        nb::arg("values").noconvert());
  m.def("split_share", &split_share_arrays, nb::arg("share").noconvert(), nb::arg("t").noconvert(),
        nb::arg("widths"), nb::arg("digits").noconvert(), nb::arg("sums").noconvert());
  m.def("add_answers", &add_answers_arrays, nb::arg("answers").noconvert(),
        nb::arg("a").noconvert(), nb::arg("b").noconvert(), nb::arg("widths"),
        nb::arg("out").noconvert(), nb::arg("sums").noconvert());
  register_fused_step(m);
  register_executor(m);

  // ---- workers
  m.def("busy_poll", &busy_poll, nb::arg("descriptor"), nb::arg("patience_us"),
        nb::call_guard<nb::gil_scoped_release>());

  // ---- encrypted training: fixed point
  register_fixed_point(m);
}

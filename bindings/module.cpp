// The only folder that knows Python: every kernel of native/ as a function of NumPy arrays.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
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
#include "cloister/freivalds.hpp"
#include "cloister/geometry.hpp"
#include "cloister/isa.hpp"
#include "cloister/pass.hpp"
#include "cloister/ring_map.hpp"
#include "curve.hpp"
#include "pass.hpp"
#include "walker.hpp"

namespace nb = nanobind;
using namespace cloister;
using namespace cloister::bindings;

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

// ---- trusted

void aes_ctr_fill_array(const nb::bytes& key, const nb::bytes& nonce, uint64_t first_block,
                        Contiguous<uint32_t> out) {
  const AesSchedule schedule(bytes_of(key, kAesKeyBytes, "key"));
  aes_ctr_fill(schedule, bytes_of(nonce, kAesNonceBytes, "nonce"), first_block, out.data(),
               static_cast<int64_t>(out.size()));
}

void freivalds_adjoint_arrays(const GeometryTuple& values, Contiguous<const int16_t> weights,
                              Contiguous<const uint64_t> a, Contiguous<const uint64_t> b,
                              Contiguous<uint64_t> t, int threads) {
  const Geometry g = Geometry::from(values);
  const auto size = [](const auto& array) { return static_cast<int64_t>(array.size()); };
  require(g.groups >= 1 && size(weights) == g.oc * g.kh * g.kw * (g.c / g.groups),
          "freivalds_adjoint: the weights do not fit the geometry");
  require(size(a) == g.oh * g.ow && size(b) == g.oc && size(t) == g.in_elements(),
          "freivalds_adjoint: a, b and t do not fit the geometry");
  nb::gil_scoped_release release;
  freivalds_adjoint(g, weights.data(), a.data(), b.data(), t.data(), threads);
}

uint64_t freivalds_dot_arrays(Contiguous<const uint64_t> coefficients,
                              Contiguous<const int32_t> values) {
  require(coefficients.size() == values.size(), "freivalds_dot: the sizes differ");
  return freivalds_dot(coefficients.data(), values.data(), static_cast<int64_t>(values.size()));
}

}  // namespace

NB_MODULE(_native, m) {
  // An interpreter that exits on an error may leave objects behind; that is nobody's concern.
  nb::set_leak_warnings(false);

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
  m.def("aes_ctr_fill", &aes_ctr_fill_array, nb::arg("key"), nb::arg("nonce"),
        nb::arg("first_block"), nb::arg("out").noconvert());
  m.def("freivalds_adjoint", &freivalds_adjoint_arrays, nb::arg("geometry"), nb::arg("weights"),
        nb::arg("a").noconvert(), nb::arg("b").noconvert(), nb::arg("t").noconvert(),
        nb::arg("threads") = 1);
  m.def("freivalds_dot", &freivalds_dot_arrays, nb::arg("coefficients").noconvert(),
        nb::arg("values").noconvert());
  nb::class_<BoundPass>(m, "Pass")
      .def(nb::init<int64_t, int64_t, int64_t, const std::optional<Contiguous<const float>>&,
                    const std::optional<Contiguous<const float>>&, float, float,
                    const std::optional<std::array<int64_t, 12>>&,
                    const std::vector<std::pair<double, int>>&>(),
           nb::arg("height"), nb::arg("width"), nb::arg("channels"), nb::arg("scale").none(),
           nb::arg("bias").none(), nb::arg("act_lo"), nb::arg("act_hi"), nb::arg("pool").none(),
           nb::arg("sinks"))
      .def("set_check", &BoundPass::set_check, nb::arg("a").noconvert().none(),
           nb::arg("b").noconvert().none())
      .def("set_sink_check", &BoundPass::set_sink_check, nb::arg("sink"),
           nb::arg("t").noconvert().none())
      .def("run", &BoundPass::run, nb::arg("n"), nb::arg("source").noconvert(),
           nb::arg("unblind").noconvert().none(), nb::arg("residual").noconvert().none(),
           nb::arg("store_pre").noconvert().none(), nb::arg("store_post").noconvert().none(),
           nb::arg("sink_out").noconvert(), nb::arg("sink_keys"), nb::arg("sink_nonces"),
           nb::arg("sink_pads").noconvert(), nb::arg("sums_out").noconvert(),
           nb::arg("sums_in").noconvert(), nb::arg("threads") = 1);

  nb::class_<BoundWalker>(m, "Walker")
      .def(nb::init<int64_t, int64_t, int>(), nb::arg("nodes"), nb::arg("batch"),
           nb::arg("threads"))
      .def("add_pass", &BoundWalker::add_pass, nb::arg("native"), nb::keep_alive<1, 2>(),
           nb::arg("node"), nb::arg("unblinds"), nb::arg("accepts"),
           nb::arg("reply").noconvert().none(), nb::arg("residual").noconvert().none(),
           nb::arg("store_pre").noconvert().none(), nb::arg("store_post").noconvert().none(),
           nb::arg("sink_nodes"), nb::arg("sink_out").noconvert())
      .def("set_inputs", &BoundWalker::set_inputs, nb::arg("step"),
           nb::arg("source").noconvert().none(), nb::arg("residual").noconvert().none())
      .def("add_exchange", &BoundWalker::add_exchange, nb::arg("node"), nb::arg("packet"),
           nb::arg("answer"), nb::arg("id_offset"), nb::arg("staged").noconvert().none(),
           nb::arg("place").noconvert().none())
      .def("begin", &BoundWalker::begin, nb::arg("key").none(), nb::arg("pad_ids"),
           nb::arg("hidden"), nb::arg("unblinding").noconvert())
      .def("end", &BoundWalker::end)
      .def("run", &BoundWalker::run, nb::arg("first"), nb::arg("last"), nb::arg("next_request_id"),
           nb::arg("descriptor"), nb::arg("timeout_s"), nb::arg("max_packet_bytes"))
      .def("answered", &BoundWalker::answered, nb::arg("step"))
      .def_prop_ro("outstanding", &BoundWalker::outstanding)
      .def("costs", &BoundWalker::costs);

  // ---- functional encryption: the group
  register_curve(m);
}

// The only file that knows Python: every kernel of native/ as a function of NumPy arrays.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
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

// ---- trusted

void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

const uint8_t* bytes_of(const nb::bytes& bytes, size_t size, const char* name) {
  require(bytes.size() == size, std::string(name) + " must have " + std::to_string(size) +
                                    " bytes, not " + std::to_string(bytes.size()));
  return reinterpret_cast<const uint8_t*>(bytes.c_str());
}

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

using Input = nb::ndarray<nb::ro, nb::device::cpu>;
using Output = nb::ndarray<nb::device::cpu>;
using Coefficients = Contiguous<const uint64_t>;

// A batch of channels-last images, as a pass expects one; `name` says which in messages.
struct Batch {
  int64_t n, h, w, c;

  // The array's memory; it must have this type and shape and no gaps.
  template <typename T, typename Array>
  T* packed(const Array& array, const char* name) const {
    const PixelView<T> view = pixels<T>(array, name);
    require(view.pixel == c && (n <= 1 || view.image == h * w * c),
            std::string(name) + " must be C-contiguous");
    return view.data;
  }

  // The same with pixels a regular distance apart: a channel slice of a wider array.
  template <typename T, typename Array>
  PixelView<T> pixels(const Array& array, const char* name) const {
    require(array.dtype() == nb::dtype<std::remove_const_t<T>>(),
            std::string(name) + " has another dtype than the pass expects");
    const bool fits = array.ndim() == 4 && is(array, 0, n) && is(array, 1, h) && is(array, 2, w) &&
                      is(array, 3, c);
    require(fits, std::string(name) + " must have the shape (" + std::to_string(n) + ", " +
                      std::to_string(h) + ", " + std::to_string(w) + ", " + std::to_string(c) +
                      ")");
    // NumPy's stride of an axis of length 1 means nothing.
    int64_t pixel = c;
    if (w > 1) pixel = array.stride(2);
    if (w == 1 && h > 1) pixel = array.stride(1);
    const bool regular = (c == 1 || array.stride(3) == 1) && pixel >= c &&
                         (w == 1 || h == 1 || array.stride(1) == w * pixel) &&
                         (n <= 1 || array.stride(0) >= h * w * pixel);
    require(regular, std::string(name) + " must be channels-last with evenly spaced pixels");
    return {static_cast<T*>(const_cast<void*>(static_cast<const void*>(array.data()))),
            n > 1 ? static_cast<int64_t>(array.stride(0)) : 0, pixel};
  }

 private:
  template <typename Array>
  static bool is(const Array& array, size_t axis, int64_t size) {
    return static_cast<int64_t>(array.shape(axis)) == size;
  }
};

// A Pass and the arrays its checks read.
class BoundPass {
 public:
  BoundPass(int64_t height, int64_t width, int64_t channels,
            const std::optional<Contiguous<const float>>& scale,
            const std::optional<Contiguous<const float>>& bias, float lo, float hi,
            const std::optional<std::array<int64_t, 12>>& pool,
            const std::vector<std::pair<double, int>>& sinks)
      : pass_(shape_of(height, width, channels, scale, bias, lo, hi, pool, sinks)),
        t_(sinks.size()) {}

  void set_check(const std::optional<Coefficients>& a, const std::optional<Coefficients>& b) {
    const PassShape& s = pass_.shape();
    require(!a || static_cast<int64_t>(a->size()) == s.h * s.w, "a needs one value per pixel");
    require(!b || static_cast<int64_t>(b->size()) == s.c, "b needs one value per channel");
    pass_.set_check(a ? a->data() : nullptr, b ? b->data() : nullptr);
    a_ = a;
    b_ = b;
  }

  void set_sink_check(size_t sink, const std::optional<Coefficients>& t) {
    const int64_t elements = pass_.out_h() * pass_.out_w() * pass_.shape().c;
    require(!t || static_cast<int64_t>(t->size()) == elements, "t needs one value per element");
    pass_.set_sink_check(sink, t ? t->data() : nullptr);
    t_[sink] = t;
  }

  void run(int64_t n, const Input& source, const std::optional<Input>& unblind,
           const std::optional<Input>& residual, const std::optional<Output>& store_pre,
           const std::optional<Output>& store_post, const std::vector<Output>& sink_out,
           const std::vector<std::optional<nb::bytes>>& sink_keys,
           const std::vector<std::optional<nb::bytes>>& sink_nonces,
           const std::vector<std::optional<Input>>& sink_pads,
           const nb::ndarray<uint64_t, nb::ndim<1>, nb::device::cpu>& sums_out,
           const nb::ndarray<uint64_t, nb::ndim<2>, nb::device::cpu>& sums_in, int threads) {
    const PassShape& s = pass_.shape();
    const Batch before{n, s.h, s.w, s.c};
    const Batch after{n, pass_.out_h(), pass_.out_w(), s.c};
    const size_t sinks = s.sinks.size();
    require(n >= 0 && sums_out.shape(0) == static_cast<size_t>(n), "sums_out needs n values");
    require(sums_in.shape(0) == sinks && sums_in.shape(1) == static_cast<size_t>(n),
            "sums_in needs one row per sink and n columns");
    require(sink_out.size() == sinks && sink_keys.size() == sinks && sink_nonces.size() == sinks &&
                sink_pads.size() == sinks,
            "every list needs one entry per sink");
    PassRun run;
    run.n = n;
    if (s.scale.empty()) {
      run.values = before.packed<const float>(source, "source");
    } else {
      run.reply = before.packed<const uint32_t>(source, "source");
    }
    if (unblind) run.unblind = before.packed<const uint32_t>(*unblind, "unblind");
    if (residual) run.residual = before.pixels<const float>(*residual, "residual");
    if (store_pre) run.pre = before.pixels<float>(*store_pre, "store_pre");
    if (store_post) run.post = after.pixels<float>(*store_post, "store_post");
    run.sums_out = sums_out.data();
    run.sums_out_stride = sums_out.stride(0);
    run.sinks.resize(sinks);
    for (size_t i = 0; i < sinks; ++i) {
      SinkRun& sink = run.sinks[i];
      if (sink_out[i].dtype() == nb::dtype<int16_t>()) {
        sink.plain = after.packed<int16_t>(sink_out[i], "sink_out");
      } else {
        sink.blinded = after.packed<uint32_t>(sink_out[i], "sink_out");
      }
      if (sink_keys[i]) sink.key = bytes_of(*sink_keys[i], kAesKeyBytes, "key");
      if (sink_nonces[i]) {
        sink.nonces = bytes_of(*sink_nonces[i], kAesNonceBytes * static_cast<size_t>(n), "nonces");
      }
      if (sink_pads[i]) sink.pad = after.packed<const uint32_t>(*sink_pads[i], "sink_pads");
      sink.sums = sums_in.data() + static_cast<int64_t>(i) * sums_in.stride(0);
      sink.sums_stride = sums_in.stride(1);
    }
    nb::gil_scoped_release release;
    pass_.run(run, threads);
  }

 private:
  static PassShape shape_of(int64_t height, int64_t width, int64_t channels,
                            const std::optional<Contiguous<const float>>& scale,
                            const std::optional<Contiguous<const float>>& bias, float lo, float hi,
                            const std::optional<std::array<int64_t, 12>>& pool,
                            const std::vector<std::pair<double, int>>& sinks) {
    PassShape s{height, width, channels, {}, {}, lo, hi, std::nullopt, {}};
    if (scale) s.scale.assign(scale->data(), scale->data() + scale->size());
    if (bias) s.bias.assign(bias->data(), bias->data() + bias->size());
    if (pool) {
      const auto& v = *pool;
      s.pool = PoolShape{v[0] != 0, v[1], v[2], v[3], v[4],  v[5],
                         v[6],      v[7], v[8], v[9], v[10], v[11] != 0};
    }
    for (const auto& [inv_scale, qmax] : sinks) {
      s.sinks.push_back({static_cast<float>(inv_scale), qmax});
    }
    return s;
  }

  Pass pass_;
  std::optional<Coefficients> a_, b_;
  std::vector<std::optional<Coefficients>> t_;
};

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
}

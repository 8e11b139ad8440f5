// Fused steps with the arrays that they hold on to.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "cloister/aes_ctr.hpp"
#include "cloister/fused_step.hpp"

namespace cloister::bindings {

// A batch of channels-last images, as a fused step expects one; `name` says which in messages.
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
            std::string(name) + " has another dtype than the step expects");
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

inline std::vector<float> copied(const Floats& array) {
  return {array.data(), array.data() + array.size()};
}

inline void make_window(WindowShape* self, const std::string& kind, Pair kernel, Pair stride,
                        Pair dilation, Pair pad, Pair out_size, bool count_include_pad,
                        const std::optional<Floats>& weights, const std::optional<Floats>& bias,
                        float lo, float hi) {
  using Kind = WindowShape::Kind;
  const bool depthwise = kind == "depthwise";
  require(depthwise || kind == "max" || kind == "average", "there is no window " + kind);
  require(depthwise == (weights && bias) && depthwise == (weights || bias),
          "a depthwise window needs weights and bias, and no other has any");
  new (self) WindowShape{depthwise       ? Kind::depthwise
                         : kind == "max" ? Kind::max
                                         : Kind::average,
                         kernel.first,
                         kernel.second,
                         stride.first,
                         stride.second,
                         dilation.first,
                         dilation.second,
                         pad.first,
                         pad.second,
                         out_size.first,
                         out_size.second,
                         count_include_pad,
                         weights ? copied(*weights) : std::vector<float>{},
                         bias ? copied(*bias) : std::vector<float>{},
                         lo,
                         hi};
}

// How a value becomes the request of one linear node, and the arrays of its check.
struct BoundSink {
  SinkRule rule;
  std::optional<Coefficients> rows, columns;
};

inline BoundSink checked_sink(double inv_scale, int qmax, const Coefficients& rows,
                              const std::optional<Coefficients>& columns) {
  return {{static_cast<float>(inv_scale), qmax, {}}, rows, columns};
}

inline BoundSink unchecked_sink(double inv_scale, int qmax) {
  return {{static_cast<float>(inv_scale), qmax, {}}, {}, {}};
}

// What all kinds of fused steps have in common.
struct BoundShape {
  BoundShape(int64_t height, int64_t width, int64_t channels, float lo, float hi,
             const std::optional<WindowShape>& window, std::vector<BoundSink> sinks)
      : shape{height, width, channels, {}, {}, lo, hi, window, {}}, sinks(std::move(sinks)) {
    const int64_t h = window ? window->oh : height, w = window ? window->ow : width;
    for (const BoundSink& sink : this->sinks) {
      SinkRule rule = sink.rule;
      if (sink.rows) rule.check = check_of(*sink.rows, sink.columns, h, w, channels);
      shape.sinks.push_back(rule);
    }
  }

  FusedShape with_answer(const Floats& scale, const Floats& bias) const {
    FusedShape found = shape;
    found.scale = copied(scale);
    found.bias = copied(bias);
    return found;
  }

  FusedShape shape;
  std::vector<BoundSink> sinks;

 private:
  // With columns, t[y, x, c] = sum over k of columns[k][x] * rows[y][k][c]; without, rows is t.
  static InputCheck check_of(const Coefficients& rows, const std::optional<Coefficients>& columns,
                             int64_t h, int64_t w, int64_t c) {
    require(h >= 1 && w >= 1 && c >= 1, "every size must be at least 1");
    const int64_t terms = columns ? static_cast<int64_t>(columns->size()) / w : w;
    require(!columns || static_cast<int64_t>(columns->size()) == terms * w,
            "columns need one value per term and column of the image");
    require(terms >= 1 && static_cast<int64_t>(rows.size()) == h * terms * c,
            "rows need one value per row of the image, term and channel");
    return {rows.data(), columns ? columns->data() : nullptr, terms};
  }
};

// Where one request goes, and its pad: a key with nonces, or the pad itself.
struct SinkArrays {
  Output out;
  std::optional<nb::bytes> key, nonces;
  std::optional<Input> pad;
};

// A FusedStep and the arrays its checks read.
class BoundStep {
 public:
  explicit BoundStep(const BoundShape& shape) : step_(shape.shape), sinks_(shape.sinks) {}

  BoundStep(const BoundShape& shape, const Floats& scale, const Floats& bias)
      : step_(FusedStep::unchecked(shape.with_answer(scale, bias))), sinks_(shape.sinks) {}

  BoundStep(const BoundShape& shape, const Floats& scale, const Floats& bias, const Coefficients& a,
            const Coefficients& b)
      : step_(FusedStep::checked(shape.with_answer(scale, bias), sized(a, pixels(shape), "a"),
                                 sized(b, shape.shape.c, "b"))),
        sinks_(shape.sinks),
        a_(a),
        b_(b) {}

  void run(int64_t n, const Input& source, const std::vector<SinkArrays>& sinks,
           const nb::ndarray<uint64_t, nb::ndim<1>, nb::device::cpu>& answer_sums,
           const nb::ndarray<uint64_t, nb::ndim<2>, nb::device::cpu>& request_sums,
           const nb::ndarray<uint64_t, nb::ndim<2>, nb::device::cpu>& clipped,
           const std::optional<Input>& unblind, const std::optional<Input>& residual,
           const std::optional<Output>& store_pre, const std::optional<Output>& store_post,
           int threads) {
    const FusedShape& s = step_.shape();
    const Batch before{n, s.h, s.w, s.c};
    const Batch after{n, step_.out_h(), step_.out_w(), s.c};
    const auto images = static_cast<size_t>(n);
    require(n >= 0 && answer_sums.shape(0) == images, "answer_sums needs n values");
    for (const auto& table : {request_sums, clipped}) {
      require(table.shape(0) == s.sinks.size() && table.shape(1) == images,
              "request_sums and clipped need one row per sink and n columns");
    }
    require(sinks.size() == s.sinks.size(), "one SinkArrays per sink is needed");
    FusedRun run;
    run.n = n;
    // One key serves all images of a sink.
    std::deque<AesSchedule> schedules;
    std::deque<std::vector<const AesSchedule*>> keys;
    if (step_.reads_answer()) {
      run.reply = before.packed<const uint32_t>(source, "source");
    } else {
      run.values = before.packed<const float>(source, "source");
    }
    if (unblind) run.unblind = before.packed<const uint32_t>(*unblind, "unblind");
    if (residual) run.residual = before.pixels<const float>(*residual, "residual");
    if (store_pre) run.pre = before.pixels<float>(*store_pre, "store_pre");
    if (store_post) run.post = after.pixels<float>(*store_post, "store_post");
    run.sums_out = answer_sums.data();
    run.sums_out_stride = answer_sums.stride(0);
    for (size_t i = 0; i < sinks.size(); ++i) {
      SinkRun& sink = run.sinks.emplace_back(message(sinks[i].out, after));
      if (sinks[i].key) {
        const uint8_t* key = bytes_of(*sinks[i].key, kAesKeyBytes, "key");
        const AesSchedule* schedule = has_aes() ? &schedules.emplace_back(key) : nullptr;
        sink.keys = keys.emplace_back(std::max<size_t>(images, 1), schedule).data();
      }
      if (sinks[i].nonces) {
        sink.nonces = bytes_of(*sinks[i].nonces, kAesNonceBytes * images, "nonces");
      }
      if (sinks[i].pad) sink.pad = after.packed<const uint32_t>(*sinks[i].pad, "pad");
      sink.sums = request_sums.data() + static_cast<int64_t>(i) * request_sums.stride(0);
      sink.sums_stride = request_sums.stride(1);
      sink.clipped = clipped.data() + static_cast<int64_t>(i) * clipped.stride(0);
      sink.clipped_stride = clipped.stride(1);
    }
    // Two runs at once would share scratch memory; one of them is refused instead.
    require(!busy_.test_and_set(), "the step is running in another thread");
    struct Done {
      std::atomic_flag& busy;
      ~Done() { busy.clear(); }
    } done{busy_};
    nb::gil_scoped_release release;
    step_.run(run, threads);
  }

  // Where a request goes: as integers, or blinded.
  static SinkRun message(const Output& out, const Batch& batch) {
    SinkRun sink;
    if (out.dtype() == nb::dtype<int16_t>()) {
      sink.plain = batch.packed<int16_t>(out, "message");
    } else {
      sink.blinded = batch.packed<uint32_t>(out, "message");
    }
    return sink;
  }

  FusedStep& step() { return step_; }
  bool checked() const { return step_.checked(); }

 private:
  static int64_t pixels(const BoundShape& shape) { return shape.shape.h * shape.shape.w; }
  static const uint64_t* sized(const Coefficients& array, int64_t size, const std::string& name) {
    require(static_cast<int64_t>(array.size()) == size,
            name + " needs " + std::to_string(size) + " values");
    return array.data();
  }

  FusedStep step_;
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
  std::vector<BoundSink> sinks_;
  std::optional<Coefficients> a_, b_;
};

inline void register_fused_step(nb::module_& m) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  nb::class_<WindowShape>(m, "Window")
      .def("__init__", &make_window, nb::kw_only(), nb::arg("kind"), nb::arg("kernel"),
           nb::arg("stride"), nb::arg("dilation"), nb::arg("pad"), nb::arg("out_size"),
           nb::arg("count_include_pad") = false, nb::arg("weights").noconvert().none() = nb::none(),
           nb::arg("bias").noconvert().none() = nb::none(), nb::arg("lo") = -kInfinity,
           nb::arg("hi") = kInfinity);
  nb::class_<BoundSink>(m, "Sink")
      .def_static("checked", &checked_sink, nb::kw_only(), nb::arg("inv_scale"), nb::arg("qmax"),
                  nb::arg("rows").noconvert(), nb::arg("columns").noconvert().none())
      .def_static("unchecked", &unchecked_sink, nb::kw_only(), nb::arg("inv_scale"),
                  nb::arg("qmax"));
  nb::class_<BoundShape>(m, "FusedShape")
      .def(nb::init<int64_t, int64_t, int64_t, float, float, const std::optional<WindowShape>&,
                    std::vector<BoundSink>>(),
           nb::kw_only(), nb::arg("height"), nb::arg("width"), nb::arg("channels"),
           nb::arg("lo") = -kInfinity, nb::arg("hi") = kInfinity,
           nb::arg("window").none() = nb::none(), nb::arg("sinks"));
  nb::class_<SinkArrays>(m, "SinkArrays")
      .def(
          "__init__",
          [](SinkArrays* self, const Output& out, const std::optional<nb::bytes>& key,
             const std::optional<nb::bytes>& nonces,
             const std::optional<Input>& pad) { new (self) SinkArrays{out, key, nonces, pad}; },
          nb::arg("out").noconvert(), nb::kw_only(), nb::arg("key").none() = nb::none(),
          nb::arg("nonces").none() = nb::none(), nb::arg("pad").noconvert().none() = nb::none());
  nb::class_<BoundStep>(m, "FusedStep")
      .def_static(
          "of_values", [](const BoundShape& shape) { return new BoundStep(shape); },
          nb::arg("shape"))
      .def_static(
          "checked",
          [](const BoundShape& shape, const Floats& scale, const Floats& bias,
             const Coefficients& a,
             const Coefficients& b) { return new BoundStep(shape, scale, bias, a, b); },
          nb::arg("shape"), nb::kw_only(), nb::arg("scale"), nb::arg("bias"),
          nb::arg("a").noconvert(), nb::arg("b").noconvert())
      .def_static(
          "unchecked",
          [](const BoundShape& shape, const Floats& scale, const Floats& bias) {
            return new BoundStep(shape, scale, bias);
          },
          nb::arg("shape"), nb::kw_only(), nb::arg("scale"), nb::arg("bias"))
      .def_prop_ro("is_checked", &BoundStep::checked)
      .def("run", &BoundStep::run, nb::kw_only(), nb::arg("n"), nb::arg("source").noconvert(),
           nb::arg("sinks"), nb::arg("answer_sums").noconvert(),
           nb::arg("request_sums").noconvert(), nb::arg("clipped").noconvert(),
           nb::arg("unblind").noconvert().none() = nb::none(),
           nb::arg("residual").noconvert().none() = nb::none(),
           nb::arg("store_pre").noconvert().none() = nb::none(),
           nb::arg("store_post").noconvert().none() = nb::none(), nb::arg("threads") = 1);
}

}  // namespace cloister::bindings

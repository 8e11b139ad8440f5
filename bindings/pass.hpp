// Arrays of Python as passes read them, and the pass with the arrays it holds on to.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cloister/aes_ctr.hpp"
#include "cloister/pass.hpp"

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
// weights[kh][kw][c], bias[c] and the clamp [lo, hi] behind a depthwise convolution.
using Depthwise = std::tuple<Contiguous<const float>, Contiguous<const float>, float, float>;

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
            const std::optional<std::array<int64_t, 12>>& window,
            const std::vector<std::pair<double, int>>& sinks,
            const std::optional<Depthwise>& depthwise)
      : pass_(shape_of(height, width, channels, scale, bias, lo, hi, window, sinks, depthwise)),
        rows_(sinks.size()),
        columns_(sinks.size()) {}

  void set_check(const std::optional<Coefficients>& a, const std::optional<Coefficients>& b) {
    const PassShape& s = pass_.shape();
    require(!a || static_cast<int64_t>(a->size()) == s.h * s.w, "a needs one value per pixel");
    require(!b || static_cast<int64_t>(b->size()) == s.c, "b needs one value per channel");
    pass_.set_check(a ? a->data() : nullptr, b ? b->data() : nullptr);
    a_ = a;
    b_ = b;
  }

  // With columns, t[y, x, c] = sum over k of columns[k][x] * rows[y][k][c]; without, rows is t.
  void set_sink_check(size_t sink, const std::optional<Coefficients>& rows,
                      const std::optional<Coefficients>& columns) {
    const int64_t h = pass_.out_h(), w = pass_.out_w(), c = pass_.shape().c;
    require(rows || !columns, "columns need rows");
    const int64_t terms = columns ? static_cast<int64_t>(columns->size()) / w : w;
    require(!columns || static_cast<int64_t>(columns->size()) == terms * w,
            "columns need one value per term and column of the image");
    require(!rows || (terms >= 1 && static_cast<int64_t>(rows->size()) == h * terms * c),
            "rows need one value per row of the image, term and channel");
    pass_.set_sink_check(
        sink, {rows ? rows->data() : nullptr, columns ? columns->data() : nullptr, terms});
    rows_[sink] = rows;
    columns_[sink] = columns;
  }

  void run(int64_t n, const Input& source, const std::optional<Input>& unblind,
           const std::optional<Input>& residual, const std::optional<Output>& store_pre,
           const std::optional<Output>& store_post, const std::vector<Output>& sink_out,
           const std::vector<std::optional<nb::bytes>>& sink_keys,
           const std::vector<std::optional<nb::bytes>>& sink_nonces,
           const std::vector<std::optional<Input>>& sink_pads,
           const nb::ndarray<uint64_t, nb::ndim<1>, nb::device::cpu>& sums_out,
           const nb::ndarray<uint64_t, nb::ndim<2>, nb::device::cpu>& sums_in,
           const nb::ndarray<uint64_t, nb::ndim<2>, nb::device::cpu>& clipped, int threads) {
    const PassShape& s = pass_.shape();
    const Batch before{n, s.h, s.w, s.c};
    const Batch after{n, pass_.out_h(), pass_.out_w(), s.c};
    const size_t sinks = s.sinks.size();
    require(n >= 0 && sums_out.shape(0) == static_cast<size_t>(n), "sums_out needs n values");
    require(sums_in.shape(0) == sinks && sums_in.shape(1) == static_cast<size_t>(n),
            "sums_in needs one row per sink and n columns");
    require(clipped.shape(0) == sinks && clipped.shape(1) == static_cast<size_t>(n),
            "clipped needs one row per sink and n columns");
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
      sink.clipped = clipped.data() + static_cast<int64_t>(i) * clipped.stride(0);
      sink.clipped_stride = clipped.stride(1);
    }
    // Two runs at once would share scratch memory; one of them is refused instead.
    require(!busy_.test_and_set(), "the pass is running in another thread");
    struct Done {
      std::atomic_flag& busy;
      ~Done() { busy.clear(); }
    } done{busy_};
    nb::gil_scoped_release release;
    pass_.run(run, threads);
  }

  Pass& pass() { return pass_; }

 private:
  static PassShape shape_of(int64_t height, int64_t width, int64_t channels,
                            const std::optional<Contiguous<const float>>& scale,
                            const std::optional<Contiguous<const float>>& bias, float lo, float hi,
                            const std::optional<std::array<int64_t, 12>>& window,
                            const std::vector<std::pair<double, int>>& sinks,
                            const std::optional<Depthwise>& depthwise) {
    PassShape s{height, width, channels, {}, {}, lo, hi, std::nullopt, {}};
    if (scale) s.scale.assign(scale->data(), scale->data() + scale->size());
    if (bias) s.bias.assign(bias->data(), bias->data() + bias->size());
    require(!depthwise || (window && (*window)[0] == 2), "depthwise weights need their window");
    if (window) {
      const auto& v = *window;
      require(v[0] >= 0 && v[0] <= 2 && (v[0] < 2 || depthwise), "there is no such window");
      s.window = WindowShape{static_cast<WindowShape::Kind>(v[0]),
                             v[1],
                             v[2],
                             v[3],
                             v[4],
                             v[5],
                             v[6],
                             v[7],
                             v[8],
                             v[9],
                             v[10],
                             v[11] != 0,
                             {},
                             {},
                             lo,
                             hi};
    }
    if (depthwise) {
      const auto& [weights, offsets, low, high] = *depthwise;
      s.window->weights.assign(weights.data(), weights.data() + weights.size());
      s.window->bias.assign(offsets.data(), offsets.data() + offsets.size());
      s.window->lo = low;
      s.window->hi = high;
    }
    for (const auto& [inv_scale, qmax] : sinks) {
      s.sinks.push_back({static_cast<float>(inv_scale), qmax});
    }
    return s;
  }

  Pass pass_;
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
  std::optional<Coefficients> a_, b_;
  std::vector<std::optional<Coefficients>> rows_, columns_;
};

}  // namespace cloister::bindings

#include "cloister/pass.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "cloister/aes_ctr.hpp"
#include "cloister/isa.hpp"
#include "p52.hpp"
#include "pass_backend.hpp"

namespace cloister {
namespace {

constexpr int64_t kTile = 2048;               // elements: 8 KiB of floats and 8 KiB of pad in L1
constexpr int64_t kStreamElements = 1 << 19;  // requests of 2 MiB and more do not stay in L2
constexpr int64_t kMaxElements = int64_t{1} << 34;  // 2^32 AES blocks of four words

const PassBackend& backend() {
  switch (active_isa()) {
    case Isa::avx512: return kPassAvx512;
    case Isa::avx2: return kPassAvx2;
    default: return kPassPortable;
  }
}

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(std::string("pass: ") + message);
}

uint64_t sum_of(const uint64_t* values, int64_t n) {
  U128 sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += values[i];
  return reduce(sum);
}

uint64_t sum_of(const CheckLanes& lanes) { return sum_of(lanes.lane, 8); }

void check_coefficients(const uint64_t* values, int64_t n) {
  // Kernels read the low 52 bits only.
  const bool canonical = std::all_of(values, values + n, [](uint64_t v) { return v < kP52; });
  require(canonical, "a check coefficient is not below 2^52 - 47");
}

// Rows (or columns) from the first to the last one a window touches.
int64_t span(int64_t kernel, int64_t dilation) { return (kernel - 1) * dilation + 1; }

// Does every window contain a pixel of the image?
bool windows_inside(int64_t size, int64_t out, int64_t k, int64_t stride, int64_t dilation,
                    int64_t pad) {
  for (int64_t o = 0; o < out; ++o) {
    bool inside = false;
    for (int64_t i = 0; i < k && !inside; ++i) {
      const int64_t at = o * stride + i * dilation - pad;
      inside = at >= 0 && at < size;
    }
    if (!inside) return false;
  }
  return true;
}

void check_window(const PassShape& s) {
  const WindowShape& p = *s.window;
  require(std::min({p.kh, p.kw, p.sh, p.sw, p.dh, p.dw, p.oh, p.ow}) >= 1,
          "every size of the window must be at least 1");
  require(std::min(p.pt, p.pl) >= 0 && std::max({p.oh, p.ow, p.kh, p.kw}) < (1 << 24),
          "the window has a negative padding or is too large");
  require(windows_inside(s.h, p.oh, p.kh, p.sh, p.dh, p.pt) &&
              windows_inside(s.w, p.ow, p.kw, p.sw, p.dw, p.pl),
          "a window lies outside the image");
  if (p.kind != WindowShape::Kind::depthwise) return;
  require(static_cast<int64_t>(p.weights.size()) == p.kh * p.kw * s.c &&
              static_cast<int64_t>(p.bias.size()) == s.c,
          "a depthwise convolution needs kh * kw weights and one bias per channel");
  require(p.lo <= p.hi, "the clamp needs lo <= hi");
}

}  // namespace

struct Pass::Scratch {
  std::vector<float> ring;  // the last rows of the value before the window
  std::vector<float> tile;  // the value a sink is about to quantise
  std::vector<uint32_t> pad;
  std::vector<const float*> rows;
  std::vector<CheckLanes> lanes;  // of the reply, then of every sink
};

Pass::Pass(PassShape shape) : shape_(std::move(shape)) {
  const PassShape& s = shape_;
  require(std::min({s.h, s.w, s.c}) >= 1, "every size must be at least 1");
  require(std::max({s.h, s.w, s.c}) < (1 << 24), "a size is beyond 2^24");
  require(s.scale.size() == s.bias.size() &&
              (s.scale.empty() || static_cast<int64_t>(s.scale.size()) == s.c),
          "scale and bias need one value per channel");
  require(s.lo <= s.hi, "the clamp needs lo <= hi");
  if (s.window) check_window(s);
  for (const SinkRule& sink : s.sinks) {
    require(sink.qmax >= 1 && sink.qmax < (1 << 13), "qmax must be within 1 and 8191");
    require(std::isfinite(sink.inv_scale), "inv_scale must be finite");
  }
  require(s.h * s.w <= kMaxElements / s.c && out_h() * out_w() <= kMaxElements / s.c,
          "more than 2^34 elements");
  t_.assign(s.sinks.size(), {});
  in_bias_.assign(s.sinks.size(), 0);
}

Pass::~Pass() = default;

void Pass::set_check(const uint64_t* a, const uint64_t* b) {
  require((a == nullptr) == (b == nullptr), "a check needs both a and b");
  require(a == nullptr || !shape_.scale.empty(), "only a reply can be checked");
  if (a != nullptr) {
    check_coefficients(a, shape_.h * shape_.w);
    check_coefficients(b, shape_.c);
  }
  a_ = a;
  b_ = b;
  if (a == nullptr) return;
  const uint64_t sums = multiply(sum_of(a, shape_.h * shape_.w), sum_of(b, shape_.c));
  out_bias_ = multiply(sums, uint64_t{1} << 31);
}

void Pass::set_sink_check(size_t sink, const InputCheck& check) {
  require(sink < t_.size(), "there is no such sink");
  t_[sink] = check;
  in_bias_[sink] = 0;
  if (check.rows == nullptr) return;
  const int64_t w = out_w();
  const int64_t blocks = check.columns ? check.terms : w;  // of c coefficients in a row
  require(blocks >= 1, "a check needs at least one term");
  check_coefficients(check.rows, out_h() * blocks * shape_.c);
  if (check.columns != nullptr) check_coefficients(check.columns, blocks * w);
  uint64_t total = 0;
  for (int64_t block = 0; block < out_h() * blocks; ++block) {
    const uint64_t sum = sum_of(check.rows + block * shape_.c, shape_.c);
    const uint64_t* factors = check.columns ? check.columns + block % blocks * w : nullptr;
    total = add(total, factors ? multiply(sum, sum_of(factors, w)) : sum);
  }
  in_bias_[sink] = multiply(total, uint64_t{1} << 13);
}

// One thread's walk over one band of one image.
class Pass::Walk {
 public:
  Walk(const Pass& pass, const PassRun& run, const std::vector<std::unique_ptr<AesSchedule>>& keys,
       int64_t image, Scratch& scratch)
      : pass_(pass),
        s_(pass.shape_),
        run_(run),
        keys_(keys),
        kernels_(backend()),
        image_(image),
        scratch_(scratch),
        direct_(run.reply == nullptr && run.residual.data == nullptr && std::isinf(s_.lo) &&
                std::isinf(s_.hi)) {
    scratch_.lanes.assign(1 + s_.sinks.size(), CheckLanes{});
  }

  // Pixels begin .. end, no window.
  void pixels(int64_t begin, int64_t end) {
    const int64_t step = std::max<int64_t>(kTile / s_.c, 1);
    for (int64_t p = begin; p < end; p += step) {
      const int64_t count = std::min(step, end - p);
      const float* values = produce(p, count, scratch_.tile.data());
      keep(run_.post, values, p, count);
      emit(values, p, count);
    }
  }

  // Output rows begin .. end, and every source row they stand for, the ones no window reads
  // included: the check covers the whole reply.
  void windowed_rows(int64_t begin, int64_t end) {
    const WindowShape& window = *s_.window;
    int64_t next = begin == 0 ? 0 : first_source_row(begin);
    const int64_t last = end == window.oh ? s_.h : first_source_row(end);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t top = r * window.sh - window.pt;
      const int64_t needed = std::min(top + span(window.kh, window.dh), s_.h);
      for (; next < needed; ++next) produce_row(next);
      scratch_.rows.clear();
      int64_t first_row = window.kh;
      for (int64_t i = 0; i < window.kh; ++i) {
        const int64_t y = top + i * window.dh;
        if (y < 0 || y >= s_.h) continue;
        first_row = std::min(first_row, i);
        scratch_.rows.push_back(row_at(y));
      }
      window_row(r, first_row);
    }
    for (; next < last; ++next) produce_row(next);
  }

  void finish() const {
    if (kernels_.finish != nullptr) kernels_.finish();
  }

 private:
  int64_t first_source_row(int64_t r) const {
    return std::clamp<int64_t>(r * s_.window->sh - s_.window->pt, 0, s_.h);
  }

  int64_t ring_rows() const { return std::min(span(s_.window->kh, s_.window->dh), s_.h); }

  const float* row_at(int64_t y) const {
    const int64_t row = s_.w * s_.c;
    if (direct_) return run_.values + (image_ * s_.h + y) * row;
    return scratch_.ring.data() + (y % ring_rows()) * row;
  }

  void produce_row(int64_t y) {
    // The row that is overwritten lies above every window still to come.
    float* out = direct_ ? nullptr : scratch_.ring.data() + (y % ring_rows()) * s_.w * s_.c;
    produce(y * s_.w, s_.w, out);
  }

  // The value before the window of pixels p .. p + count; in `out`, or where the source has it.
  const float* produce(int64_t p, int64_t count, float* out) {
    const int64_t at = (image_ * s_.h * s_.w + p) * s_.c;
    const PixelView<const float>& more = run_.residual;
    const float* residual = more.data ? more.data + image_ * more.image + p * more.pixel : nullptr;
    if (run_.reply != nullptr) {
      const uint32_t* terms = run_.unblinding(image_, s_.h * s_.w * s_.c);
      kernels_.reply({run_.reply + at, terms ? terms + p * s_.c : nullptr, s_.scale.data(),
                      s_.bias.data(), residual, more.pixel, s_.lo, s_.hi,
                      pass_.a_ ? pass_.a_ + p : nullptr, pass_.b_, count, s_.c, out},
                     scratch_.lanes[0]);
    } else if (!direct_) {
      kernels_.values({run_.values + at, residual, more.pixel, s_.lo, s_.hi, count, s_.c, out});
    }
    const float* values = direct_ ? run_.values + at : out;
    keep(run_.pre, values, p, count);
    return values;
  }

  void window_row(int64_t r, int64_t first_row) {
    const WindowShape& window = *s_.window;
    const int64_t step = std::max<int64_t>(kTile / s_.c, 1);
    for (int64_t x = 0; x < window.ow; x += step) {
      const int64_t count = std::min(step, window.ow - x);
      float* out = scratch_.tile.data();
      kernels_.window({&window, scratch_.rows.data(), static_cast<int64_t>(scratch_.rows.size()),
                       first_row, s_.w, s_.c, x, x + count, out});
      keep(run_.post, out, r * window.ow + x, count);
      emit(out, r * window.ow + x, count);
    }
  }

  void keep(const PixelView<float>& view, const float* values, int64_t p, int64_t count) const {
    if (view.data == nullptr) return;
    float* out = view.data + image_ * view.image + p * view.pixel;
    if (view.pixel == s_.c) {
      std::memcpy(out, values, static_cast<size_t>(count * s_.c) * sizeof(float));
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(out + i * view.pixel, values + i * s_.c,
                  static_cast<size_t>(s_.c) * sizeof(float));
    }
  }

  // Pixels p .. p + count of every request.
  void emit(const float* values, int64_t p, int64_t count) {
    const int64_t w = pass_.out_w();
    for (size_t i = 0; i < s_.sinks.size(); ++i) {
      if (pass_.t_[i].columns == nullptr) {
        emit_channels(i, values, p * s_.c, count * s_.c, [&](EmitRow& row, int64_t at) {
          if (pass_.t_[i].rows == nullptr) return;
          row.t = pass_.t_[i].rows + at;
        });
        continue;
      }
      for (int64_t q = p; q < p + count;) {
        const int64_t pixels = std::min({w - q % w, p + count - q, kColumnPixels});
        emit_pixels(i, values + (q - p) * s_.c, q, pixels);
        q += pixels;
      }
    }
  }

  // `count` elements from `at` on, a tile at a time; `check` enters the coefficients of a tile.
  template <typename Check>
  void emit_channels(size_t i, const float* values, int64_t at, int64_t count, const Check& check) {
    for (int64_t done = 0; done < count; done += kTile) {
      EmitRow row{};
      row.values = values + done;
      row.pixels = 1;
      row.channels = std::min(kTile, count - done);
      check(row, at + done);
      emit_row(i, row, at + done);
    }
  }

  // Pixels of one row of the image whose coefficients are products.
  void emit_pixels(size_t i, const float* values, int64_t p, int64_t pixels) {
    const InputCheck& t = pass_.t_[i];
    const int64_t w = pass_.out_w();
    const auto check = [&](EmitRow& row, int64_t channel) {
      row.t = t.rows + p / w * t.terms * s_.c + channel;
      row.terms = t.terms;
      row.term_stride = s_.c;
      row.factors = t.columns + p % w;
      row.factor_stride = w;
    };
    if (s_.c > kTile) {  // a tile has one pixel then
      return emit_channels(i, values, p * s_.c, s_.c,
                           [&](EmitRow& row, int64_t at) { check(row, at - p * s_.c); });
    }
    EmitRow row{};
    row.values = values;
    row.pixels = pixels;
    row.channels = s_.c;
    check(row, 0);
    emit_row(i, row, p * s_.c);
  }

  void emit_row(size_t i, EmitRow& row, int64_t at) {
    const SinkRun& sink = run_.sinks[i];
    const int64_t elements = pass_.out_h() * pass_.out_w() * s_.c;
    const int64_t offset = image_ * elements + at;
    row.inv_scale = s_.sinks[i].inv_scale;
    row.qmax = static_cast<float>(s_.sinks[i].qmax);
    if (sink.plain != nullptr) {
      row.plain = sink.plain + offset;
    } else {
      row.blinded = sink.blinded + offset;
      row.pad = sink.pad ? sink.pad + offset : nullptr;
      if (row.pad == nullptr) {
        const uint8_t* nonce = sink.nonces + image_ * static_cast<int64_t>(kAesNonceBytes);
        const auto block = static_cast<uint64_t>(at / 4);
        const bool whole_blocks = at % 4 == 0 && (row.pixels == 1 || row.channels % 4 == 0);
        if (kernels_.emit_blinded != nullptr && whole_blocks) {
          row.rounds = keys_[i]->rounds();
          row.nonce = nonce;
          row.first_block = static_cast<uint32_t>(block);
          row.stream = elements >= kStreamElements;
          return kernels_.emit_blinded(row, scratch_.lanes[1 + i]);
        }
        const int64_t words = row.pixels * row.channels + at % 4;
        aes_ctr_fill(*keys_[i], nonce, block, scratch_.pad.data(), words);
        row.pad = scratch_.pad.data() + at % 4;
      }
    }
    kernels_.emit(row, scratch_.lanes[1 + i]);
  }

  const Pass& pass_;
  const PassShape& s_;
  const PassRun& run_;
  const std::vector<std::unique_ptr<AesSchedule>>& keys_;
  const PassBackend& kernels_;
  int64_t image_;
  Scratch& scratch_;
  bool direct_;  // the value before the window is the source itself
};

void Pass::validate(const PassRun& run) const {
  require(run.n >= 0, "a negative number of images");
  require((run.reply != nullptr) != (run.values != nullptr) &&
              (run.reply != nullptr) == !shape_.scale.empty(),
          "the source must be a reply exactly when there is a scale");
  require(!run.unblinding(0, 0) || run.reply != nullptr, "only a reply can be unblinded");
  require(run.sinks.size() == shape_.sinks.size(), "one output per sink is needed");
  require(a_ == nullptr || run.sums_out != nullptr, "a checked reply needs sums_out");
  for (size_t i = 0; i < run.sinks.size(); ++i) {
    const SinkRun& sink = run.sinks[i];
    require((sink.blinded != nullptr) != (sink.plain != nullptr), "a sink has one output");
    const bool padded = sink.pad != nullptr || (sink.key != nullptr && sink.nonces != nullptr);
    require(sink.blinded == nullptr || padded,
            "a blinded sink needs a key with nonces, or an explicit pad");
    require(sink.blinded == nullptr || sink.pad != nullptr || has_aes(),
            "this CPU has no AES instructions: pass the pad as an array");
    require(sink.plain == nullptr || (sink.pad == nullptr && sink.key == nullptr),
            "a plain sink takes no pad");
    require(t_[i].rows == nullptr || sink.sums != nullptr, "a checked sink needs its sums");
  }
}

int64_t Pass::bands_per_image(int64_t n, int threads) const {
  if (threads <= 1 || n >= threads) return 1;
  // A source row that two bands need would be read twice, and could differ.
  const auto& window = shape_.window;
  if (window && span(window->kh, window->dh) > window->sh) return 1;
  const int64_t units = window ? window->oh : (shape_.h * shape_.w * shape_.c + kTile - 1) / kTile;
  return std::min<int64_t>((threads + n - 1) / std::max<int64_t>(n, 1), units);
}

void Pass::run(const PassRun& run, int threads) {
  validate(run);
  const int64_t bands = bands_per_image(run.n, threads);
  const int64_t jobs = run.n * bands;
  if (jobs == 0) return;
  std::vector<std::unique_ptr<AesSchedule>> keys(run.sinks.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    const SinkRun& sink = run.sinks[i];
    if (sink.blinded && !sink.pad) keys[i] = std::make_unique<AesSchedule>(sink.key);
  }

  // Everything is allocated here, so that the threads below cannot throw.
  const int64_t workers = std::min<int64_t>(std::max(threads, 1), jobs);
  while (static_cast<int64_t>(scratch_.size()) < workers) {
    auto scratch = std::make_unique<Scratch>();
    const auto& window = shape_.window;
    const int64_t ring = window ? std::min(span(window->kh, window->dh), shape_.h) : 0;
    scratch->ring.resize(static_cast<size_t>(ring * shape_.w * shape_.c));
    scratch->tile.resize(static_cast<size_t>(std::max(kTile, shape_.c)));
    scratch->pad.resize(static_cast<size_t>(kTile + 4));
    scratch->rows.reserve(static_cast<size_t>(ring));
    scratch->lanes.reserve(1 + shape_.sinks.size());
    scratch_.push_back(std::move(scratch));
  }
  const size_t columns = 1 + shape_.sinks.size();
  std::vector<uint64_t> sums(static_cast<size_t>(jobs) * columns);

  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t worker) {
    Scratch& scratch = *scratch_[static_cast<size_t>(worker)];
    for (int64_t job; (job = next.fetch_add(1)) < jobs;) {
      const int64_t band = job % bands;
      Walk walk(*this, run, keys, job / bands, scratch);
      const int64_t units = shape_.window ? shape_.window->oh : shape_.h * shape_.w;
      const int64_t begin = units * band / bands;
      const int64_t end = units * (band + 1) / bands;
      shape_.window ? walk.windowed_rows(begin, end) : walk.pixels(begin, end);
      walk.finish();
      for (size_t i = 0; i < columns; ++i) {
        sums[static_cast<size_t>(job) * columns + i] = sum_of(scratch.lanes[i]);
      }
    }
  };
  std::vector<std::thread> pool;
  pool.reserve(static_cast<size_t>(workers - 1));
  try {
    for (int64_t i = 1; i < workers; ++i) pool.emplace_back(work, i);
  } catch (const std::system_error&) {
    // No more threads to be had: those that run take all jobs.
  }
  work(0);
  for (std::thread& thread : pool) thread.join();

  for (int64_t image = 0; image < run.n; ++image) {
    for (size_t i = 0; i < columns; ++i) {
      uint64_t sum = 0;
      for (int64_t band = 0; band < bands; ++band) {
        sum = add(sum, sums[static_cast<size_t>(image * bands + band) * columns + i]);
      }
      if (i == 0) {
        if (run.sums_out == nullptr) continue;
        run.sums_out[image * run.sums_out_stride] = a_ ? subtract(sum, out_bias_) : 0;
      } else if (run.sinks[i - 1].sums != nullptr) {
        const SinkRun& sink = run.sinks[i - 1];
        sink.sums[image * sink.sums_stride] = t_[i - 1].rows ? subtract(sum, in_bias_[i - 1]) : 0;
      }
    }
  }
}

}  // namespace cloister

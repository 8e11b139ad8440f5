// One thread's work on a band of an image: tile by tile, from the reply to the requests.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "cloister/aes_ctr.hpp"
#include "fused/fused_kernels.hpp"
#include "fused/limbs.hpp"
#include "isa/debug_assert.hpp"
#include "pads/wipe.hpp"

namespace cloister {

inline constexpr size_t kPage = 4096;
inline constexpr int64_t kMaxElements = int64_t{1} << 34;  // 2^32 AES blocks of four words

// Rows (or columns) from the first to the last one a window touches.
inline int64_t span(int64_t kernel, int64_t dilation) { return (kernel - 1) * dilation + 1; }

// Floats that begin so many bytes behind the begin of a page.
class Placed {
 public:
  explicit Placed(size_t behind) : behind_(behind) {}

  void resize(int64_t elements) {
    if (elements == 0) return;
    memory_.resize(static_cast<size_t>(elements) + kPage / sizeof(float));
    const size_t begin = address(memory_.data()) % kPage;
    data_ = memory_.data() + (kPage + behind_ - begin) % kPage / sizeof(float);
  }
  float* data() { return data_; }

 private:
  size_t behind_;
  std::vector<float> memory_;
  float* data_ = nullptr;
};

struct FusedStep::Scratch {
  ~Scratch() {
    for (auto* words : {&pad, &terms}) wipe(words->data(), words->size() * sizeof(uint32_t));
  }

  // The last rows of the value before the window, and the value a sink is about to quantise.
  // Messages and kept values begin with a page, and so neither of these does: a load waits for a
  // store just before whose address has the same low 12 bits (measured: up to 10 % of a step).
  Placed ring{kPage / 4};
  Placed tile{kPage / 2 + kPage / 8 + kPage / 32};
  std::vector<float> zeros;  // a row outside the image, for a window that wants one
  std::vector<uint32_t> pad;
  std::vector<uint32_t> terms;  // of a tile, without their mask
  std::vector<const float*> rows;
  std::vector<CheckLanes> lanes;  // of the reply, then of every sink
};

class FusedStep::Band {
 public:
  // Where rows of the value before the window lie: row y in place y modulo `count`.
  struct Rows {
    float* data;
    int64_t count;
    bool ready;  // somebody has produced all of them
  };

  Band(const FusedStep& step, const FusedRun& run, const FusedKernels& kernels,
       const Tuning& tuning, int64_t image, Scratch& scratch, const Rows& rows)
      : step_(step),
        s_(step.shape_),
        run_(run),
        kernels_(kernels),
        tuning_(tuning),
        image_(image),
        scratch_(scratch),
        rows_(rows),
        direct_(run.reply == nullptr && run.residual.data == nullptr && std::isinf(s_.lo) &&
                std::isinf(s_.hi)) {
    scratch_.lanes.assign(1 + s_.sinks.size(), CheckLanes{});
  }

  // Pixels begin .. end, no window.
  void pixels(int64_t begin, int64_t end) {
    const int64_t step = tile_pixels();
    for (int64_t p = begin; p < end; p += step) {
      const int64_t count = std::min(step, end - p);
      const float* values = produce(p, count, place(p));
      keep(run_.post, values, p, count);
      look_ahead(p + step, values);
      emit(values, p, count);
    }
  }

  // Output rows begin .. end, and every source row they stand for, the ones no window reads
  // included: the check covers the whole reply.
  void windowed_rows(int64_t begin, int64_t end) {
    const WindowShape& window = *s_.window;
    int64_t next = rows_.ready ? s_.h : begin == 0 ? 0 : first_source_row(begin);
    const int64_t last = end == window.oh ? s_.h : first_source_row(end);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t top = r * window.sh - window.pt;
      const int64_t needed = std::min(top + span(window.kh, window.dh), s_.h);
      for (; next < needed; ++next) produce_row(next);
      scratch_.rows.clear();
      int64_t first_row = window.kh;
      for (int64_t i = 0; i < window.kh; ++i) {
        const int64_t y = top + i * window.dh;
        const bool inside = y >= 0 && y < s_.h;
        if (!inside && scratch_.zeros.empty()) continue;
        first_row = std::min(first_row, i);
        scratch_.rows.push_back(inside ? row_at(y) : scratch_.zeros.data());
      }
      window_row(r, first_row);
    }
    for (; next < last; ++next) produce_row(next);
  }

  // Source rows begin .. end alone, for windows that other bands compute.
  void source_rows(int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y) produce_row(y);
  }

  void finish() const {
    if (kernels_.finish != nullptr) kernels_.finish();
  }

 private:
  int64_t tile_pixels() const { return std::max<int64_t>(tuning_.tile / s_.c, 1); }

  int64_t first_source_row(int64_t r) const {
    return std::clamp<int64_t>(r * s_.window->sh - s_.window->pt, 0, s_.h);
  }

  const float* row_at(int64_t y) const {
    const int64_t row = s_.w * s_.c;
    if (direct_) return run_.values + (image_ * s_.h + y) * row;
    return rows_.data + (y % rows_.count) * row;
  }

  void produce_row(int64_t y) {
    // The row that is overwritten lies above every window still to come.
    float* out = direct_ ? nullptr : rows_.data + (y % rows_.count) * s_.w * s_.c;
    produce(y * s_.w, s_.w, out);
  }

  // The value before the window of pixels p .. p + count; in `out`, or where the source has it.
  const float* produce(int64_t p, int64_t count, float* out) {
    const float* values = out;
    if (run_.reply != nullptr) {
      // Terms without their mask stay in the first-level cache: a tile of them.
      const int64_t step = mask() != nullptr ? tile_pixels() : count;
      for (int64_t done = 0; done < count; done += step) {
        read_reply(p + done, std::min(step, count - done), out + done * s_.c);
      }
    } else if (direct_) {
      values = run_.values + element(p);
    } else {
      kernels_.values({run_.values + element(p), residual(p), run_.residual.pixel, s_.lo, s_.hi,
                       count, s_.c, out});
    }
    keep(run_.pre, values, p, count);
    return values;
  }

  void read_reply(int64_t p, int64_t count, float* out) {
    kernels_.reply(
        {run_.reply + element(p), terms(p, count), s_.scale.data(), s_.bias.data(), residual(p),
         run_.residual.pixel, s_.lo, s_.hi, step_.a_ ? step_.a_ + p : nullptr, step_.b_,
         step_.halves_.data(), step_.pairs_.data(), count, s_.c, alone(), far_bytes(), out},
        scratch_.lanes[0]);
  }

  // The key of the mask over this image's terms, or null.
  const AesSchedule* mask() const {
    return run_.mask_keys != nullptr ? run_.mask_keys[image_] : nullptr;
  }

  // What unblinds pixels p .. p + count, or null; the only read of masked terms.
  const uint32_t* terms(int64_t p, int64_t count) {
    const uint32_t* all = run_.unblinding(image_, s_.h * s_.w * s_.c);
    if (all == nullptr || mask() == nullptr) return all ? all + p * s_.c : nullptr;
    const int64_t words = count * s_.c;
    CLOISTER_DEBUG_ASSERT(words <= static_cast<int64_t>(scratch_.terms.size()));
    const uint8_t* nonce = run_.mask_nonces + image_ * static_cast<int64_t>(kAesNonceBytes);
    aes_ctr_subtract(*mask(), nonce, static_cast<uint64_t>(p * s_.c), all + p * s_.c,
                     scratch_.terms.data(), words,
                     alone() ? std::max<int64_t>(far_bytes(), kPage) : 0);
    return scratch_.terms.data();
  }

  // No emit() that brings the next tile into the cache comes between two tiles of the reply.
  bool alone() const { return s_.window.has_value() || s_.sinks.empty(); }

  // So far ahead do answers and terms come into the second-level cache.
  int64_t far_bytes() const {
    return tuning_.far_tiles * tuning_.tile * static_cast<int64_t>(sizeof(uint32_t));
  }

  int64_t element(int64_t p) const { return (image_ * s_.h * s_.w + p) * s_.c; }

  const float* residual(int64_t p) const {
    const PixelView<const float>& more = run_.residual;
    return more.data ? more.data + image_ * more.image + p * more.pixel : nullptr;
  }

  void window_row(int64_t r, int64_t first_row) {
    const WindowShape& window = *s_.window;
    const int64_t step = tile_pixels();
    for (int64_t x = 0; x < window.ow; x += step) {
      const int64_t count = std::min(step, window.ow - x);
      float* out = scratch_.tile.data();
      kernels_.window({&window, scratch_.rows.data(), static_cast<int64_t>(scratch_.rows.size()),
                       first_row, s_.w, s_.c, x, x + count, out});
      keep(run_.post, out, r * window.ow + x, count);
      emit(out, r * window.ow + x, count);
    }
  }

  // Pixels from p on come after the tile that begins at `values`.
  void look_ahead(int64_t p, const float* values) {
    if (run_.reply == nullptr) return;  // a float32 source is read in order, or not at all
    const int64_t elements = s_.h * s_.w * s_.c;
    const uint32_t* terms = run_.unblinding(image_, elements);
    const auto begin = static_cast<uintptr_t>(p * s_.c) * sizeof(uint32_t) - address(values);
    ahead_.reply = address(run_.reply + image_ * elements) + begin;
    ahead_.unblind = terms ? address(terms) + begin : 0;
    ahead_.far = static_cast<uintptr_t>(far_bytes());
  }

  // Where the value before the window goes: straight to where it is kept, if that has no gaps.
  float* place(int64_t p) {
    const PixelView<float>& view = run_.pre;
    if (view.data == nullptr || view.pixel != s_.c || direct_) return scratch_.tile.data();
    return view.data + image_ * view.image + p * view.pixel;
  }

  void keep(const PixelView<float>& view, const float* values, int64_t p, int64_t count) const {
    if (view.data == nullptr) return;
    float* out = view.data + image_ * view.image + p * view.pixel;
    if (out == values) return;
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
    const int64_t w = step_.out_w();
    for (size_t i = 0; i < s_.sinks.size(); ++i) {
      if (s_.sinks[i].check.columns == nullptr) {
        emit_channels(i, values, p * s_.c, count * s_.c, [&](EmitRow& row, int64_t at) {
          if (s_.sinks[i].check.rows == nullptr) return;
          row.t = s_.sinks[i].check.rows + at;
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
    for (int64_t done = 0; done < count; done += tuning_.tile) {
      EmitRow row{};
      row.values = values + done;
      row.pixels = 1;
      row.channels = std::min(tuning_.tile, count - done);
      check(row, at + done);
      emit_row(i, row, at + done);
    }
  }

  // Pixels of one row of the image whose coefficients are products.
  void emit_pixels(size_t i, const float* values, int64_t p, int64_t pixels) {
    const InputCheck& t = s_.sinks[i].check;
    const int64_t w = step_.out_w();
    const auto check = [&](EmitRow& row, int64_t channel) {
      row.t = t.rows + p / w * t.terms * s_.c + channel;
      row.terms = t.terms;
      row.term_stride = s_.c;
      row.factors = t.columns + p % w;
      row.factor_stride = w;
      row.limbs = step_.limbs(kernels_, i);
      row.limb_pairs = limb_pairs(s_.sinks[i].qmax);
      row.y = p / w;
      row.x = p % w;
      row.first_channel = channel;
    };
    if (s_.c > tuning_.tile) {  // a tile has one pixel then
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
    const int64_t elements = step_.out_h() * step_.out_w() * s_.c;
    const int64_t offset = image_ * elements + at;
    row.inv_scale = s_.sinks[i].inv_scale;
    row.ahead = ahead_;
    row.stream = elements >= tuning_.stream_from;
    row.limit = clip_limit(s_.sinks[i].qmax);
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
          row.rounds = sink.keys[image_]->rounds();
          row.nonce = nonce;
          row.first_block = static_cast<uint32_t>(block);
          return kernels_.emit_blinded(row, scratch_.lanes[1 + i]);
        }
        const int64_t words = row.pixels * row.channels + at % 4;
        CLOISTER_DEBUG_ASSERT(words <= static_cast<int64_t>(scratch_.pad.size()));
        aes_ctr_fill(*sink.keys[image_], nonce, block, scratch_.pad.data(), words);
        row.pad = scratch_.pad.data() + at % 4;
      }
    }
    kernels_.emit(row, scratch_.lanes[1 + i]);
  }

  const FusedStep& step_;
  const FusedShape& s_;
  const FusedRun& run_;
  const FusedKernels& kernels_;
  const Tuning& tuning_;
  int64_t image_;
  Scratch& scratch_;
  Rows rows_;
  Ahead ahead_{};
  bool direct_;  // the value before the window is the source itself
};

}  // namespace cloister

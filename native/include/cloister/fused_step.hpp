// Everything between two linear layers in one step: memory is read and written once, instead of
// once per operation.
//
//   z = reply - unblind (mod 2^32, read as centred)      sums_out = sum a[p] b[o] z[p, o] mod P
//   f = float(z) * scale + bias, + residual, clamped, then pooled or convolved depthwise;
//                                                        each operation rounded on its own
//   q = clip(round(f * inv_scale)) for every sink        sums_in  = sum t[q, c] q[q, c] mod P
//                                                        clipped  = how many clip() changed
//   request = q + pad (mod 2^32), or q as it is
//
// The reply may lie in memory a malicious worker can still write to, and the request in memory it
// can already read. So every word of the reply is read exactly once, and that copy serves both the
// check and the value; every word of the request is written exactly once, with its final value.
//
// Kernels count what is clipped by the same instructions whatever is clipped: the time that a step
// takes must not tell the worker.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "cloister/aes_ctr.hpp"
#include "cloister/geometry.hpp"

namespace cloister {

// Max or average pooling, or a depthwise convolution: channels do not mix.
struct WindowShape {
  enum class Kind { max, average, depthwise };
  Kind kind;
  int64_t kh, kw, sh, sw, dh, dw;
  int64_t pt, pl;  // padding before the first row and column
  int64_t oh, ow;
  bool count_include_pad;  // average over kh * kw, not over the positions inside the image
  // Depthwise only: weights[kh][kw][c], bias[c], and the clamp behind it.
  std::vector<float> weights, bias;
  float lo, hi;

  // The depthwise convolution that networks are made of; back ends have a kernel for it, which
  // wants all three rows of every window, a row of zeros where the image has none.
  bool three_by_three() const {
    return kind == Kind::depthwise && kh == 3 && kw == 3 && dh == 1 && dw == 1 && sw <= 2;
  }
};

// Secret coefficients of one request's elements: t[y, x, c] = sum over k < terms of
// columns[k][x] * rows[y][k][c]; without columns, rows[y][x][c] is t itself. All are below P.
struct InputCheck {
  const uint64_t* rows = nullptr;
  const uint64_t* columns = nullptr;
  int64_t terms = 0;
};

// How a value becomes the request of one linear node.
struct SinkRule {
  float inv_scale;
  int32_t qmax;      // 1 to 8191
  InputCheck check;  // without rows: the node's answer is not checked

  bool checked() const { return check.rows != nullptr; }
};

struct FusedShape {
  int64_t h, w, c;                 // of the source
  std::vector<float> scale, bias;  // c each: the source is a reply; empty: it is float32
  float lo, hi;                    // clamp; infinite: none
  std::optional<WindowShape> window;
  std::vector<SinkRule> sinks;
};

// Pixels of a float32 image: pixel p of image i begins at data + i * image + p * pixel.
template <typename T>
struct PixelView {
  T* data = nullptr;
  int64_t image = 0;
  int64_t pixel = 0;
};

struct SinkRun {
  uint32_t* blinded = nullptr;  // exactly one of these two
  int16_t* plain = nullptr;
  const uint32_t* pad = nullptr;             // blinded: an explicit pad, else keys and nonces
  const AesSchedule* const* keys = nullptr;  // one per image
  const uint8_t* nonces = nullptr;           // 12 bytes per image
  uint64_t* sums = nullptr;                  // one per image, `sums_stride` apart
  int64_t sums_stride = 1;
  uint64_t* clipped = nullptr;  // one per image, `clipped_stride` apart; nullptr: not wanted
  int64_t clipped_stride = 1;
};

struct FusedRun {
  int64_t n = 0;
  const uint32_t* reply = nullptr;  // one of these two, as the shape says
  const float* values = nullptr;
  const uint32_t* unblind = nullptr;                // one array, or
  const uint32_t* const* unblind_images = nullptr;  // one pointer per image, and
  int64_t unblind_offset = 0;                       // how far behind it the terms begin
  // Of masked terms: the keystream under mask_keys[i], unless that is nullptr, and mask_nonces +
  // 12 * i is added to those of image i, and is subtracted while they are read.
  const AesSchedule* const* mask_keys = nullptr;
  const uint8_t* mask_nonces = nullptr;
  PixelView<const float> residual;
  PixelView<float> pre;   // keep the value before the window
  PixelView<float> post;  // and behind it
  std::vector<SinkRun> sinks;
  uint64_t* sums_out = nullptr;
  int64_t sums_out_stride = 1;

  // Where the terms of an image begin, or nullptr.
  const uint32_t* unblinding(int64_t i, int64_t elements) const {
    if (unblind_images != nullptr) return unblind_images[i] + unblind_offset;
    return unblind != nullptr ? unblind + i * elements : nullptr;
  }
};

// Check coefficients of eight channels in halves of 26 bits, for kernels without wider products;
// zeros where there is no channel.
constexpr int64_t kHalfChannels = 8;
struct HalfBlock {
  alignas(64) uint32_t low[kHalfChannels];
  uint32_t high[kHalfChannels];
};

// The same coefficients, of sixteen channels: the even ones, then the odd ones, as the lower and
// the upper words of vectors of 64-bit lanes are; zeros where there is no channel.
constexpr int64_t kPairChannels = 16;
struct PairBlock {
  alignas(64) uint64_t even[kPairChannels / 2];
  uint64_t odd[kPairChannels / 2];
};

class LimbCheck;
struct FusedKernels;

// A step is checked or not for good: new coefficients make a new step. The arrays of all
// coefficients must outlive it. Not for use by several threads at once: scratch memory is used
// again.
class FusedStep {
 public:
  // From a float32 value. Throws std::invalid_argument, as the other two do.
  explicit FusedStep(FusedShape shape);
  // From an answer that a[h * w] and b[c] check.
  static FusedStep checked(FusedShape shape, const uint64_t* a, const uint64_t* b);
  // From an answer that the plan leaves unchecked: its sums stay 0.
  static FusedStep unchecked(FusedShape shape);
  ~FusedStep();
  FusedStep(const FusedStep&) = delete;
  FusedStep& operator=(const FusedStep&) = delete;

  const FusedShape& shape() const { return shape_; }
  int64_t out_h() const { return shape_.window ? shape_.window->oh : shape_.h; }
  int64_t out_w() const { return shape_.window ? shape_.window->ow : shape_.w; }
  bool reads_answer() const { return !shape_.scale.empty(); }
  bool checked() const { return a_ != nullptr; }

  // How many of `threads` threads a run over n images uses.
  int worthwhile(int64_t n, int threads) const;

  // Throws std::invalid_argument before anything is written.
  void run(const FusedRun& run, int threads);

 private:
  enum class Source { values, checked, unchecked };
  struct Scratch;
  class Band;

  FusedStep(FusedShape shape, Source source, const uint64_t* a, const uint64_t* b);
  void set_answer_check(const uint64_t* a, const uint64_t* b);
  uint64_t request_bias(const InputCheck& check) const;
  int64_t bands_per_image(int64_t n, int threads) const;
  void prepare(const FusedKernels& kernels, int64_t tile, int64_t workers, bool masked);
  void validate(const FusedRun& run) const;
  const LimbCheck* limbs(const FusedKernels& kernels, size_t sink) const;  // or null

  FusedShape shape_;
  const uint64_t* a_ = nullptr;
  const uint64_t* b_ = nullptr;
  std::vector<HalfBlock> halves_;  // of b
  std::vector<PairBlock> pairs_;
  uint64_t out_bias_ = 0;          // 2^31 * sum(a) * sum(b): z is accumulated as z + 2^31
  std::vector<LimbCheck> limbs_;   // factored checks as digits, for back ends that want them
  std::vector<uint64_t> in_bias_;  // 2^13 * sum(t): q is accumulated as q + 2^13
  std::vector<std::unique_ptr<Scratch>> scratch_;
  std::vector<float> image_;  // the value before the window, where all of it is needed at once
};

}  // namespace cloister

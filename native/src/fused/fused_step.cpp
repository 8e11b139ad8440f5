#include "cloister/fused_step.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "check/p52.hpp"
#include "cloister/tuning.hpp"
#include "fused/fused_band.hpp"
#include "fused/limbs.hpp"
#include "threads/thread_pool.hpp"

namespace cloister {
namespace {

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(std::string("fused step: ") + message);
}

uint64_t sum_of(const uint64_t* values, int64_t n) {
  U128 sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += values[i];
  return reduce(sum);
}

uint64_t sum_of(const CheckLanes& lanes) {
  uint64_t sum = 0;
  for (size_t i = 0; i < kParts; ++i) {
    sum = add(sum, multiply(sum_of(lanes.part[i], 8), kPartWeights[i]));
  }
  return sum;
}

uint64_t clipped_in(const CheckLanes& lanes) {
  return std::accumulate(std::begin(lanes.clipped), std::end(lanes.clipped), uint64_t{0});
}

void check_coefficients(const uint64_t* values, int64_t n) {
  // Kernels read the low 52 bits only.
  const bool canonical = std::all_of(values, values + n, [](uint64_t v) { return v < kP52; });
  require(canonical, "a check coefficient is not below 2^52 - 47");
}

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

void check_window(const FusedShape& s) {
  const WindowShape& p = *s.window;
  require(std::min({p.kh, p.kw, p.sh, p.sw, p.dh, p.dw, p.oh, p.ow}) >= 1,
          "every size of the window must be at least 1");
  const int64_t largest = std::max({p.oh, p.ow, p.kh, p.kw, p.sh, p.sw, p.dh, p.dw, p.pt, p.pl});
  require(std::min(p.pt, p.pl) >= 0 && largest < (1 << 24),
          "the window has a negative padding or is too large");
  require(windows_inside(s.h, p.oh, p.kh, p.sh, p.dh, p.pt) &&
              windows_inside(s.w, p.ow, p.kw, p.sw, p.dw, p.pl),
          "a window lies outside the image");
  if (p.kind != WindowShape::Kind::depthwise) return;
  require(p.kh * p.kw <= kMaxElements / s.c &&
              static_cast<int64_t>(p.weights.size()) == p.kh * p.kw * s.c &&
              static_cast<int64_t>(p.bias.size()) == s.c,
          "a depthwise convolution needs kh * kw weights and one bias per channel");
  require(p.lo <= p.hi, "the clamp needs lo <= hi");
  const auto finite = [](const std::vector<float>& values) {
    return std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
  };
  require(finite(p.weights) && finite(p.bias),
          "weights and bias of a depthwise convolution must be finite");
}

}  // namespace

FusedStep::FusedStep(FusedShape shape)
    : FusedStep(std::move(shape), Source::values, nullptr, nullptr) {}

FusedStep FusedStep::checked(FusedShape shape, const uint64_t* a, const uint64_t* b) {
  return {std::move(shape), Source::checked, a, b};
}

FusedStep FusedStep::unchecked(FusedShape shape) {
  return {std::move(shape), Source::unchecked, nullptr, nullptr};
}

FusedStep::FusedStep(FusedShape shape, Source source, const uint64_t* a, const uint64_t* b)
    : shape_(std::move(shape)) {
  const FusedShape& s = shape_;
  require(std::min({s.h, s.w, s.c}) >= 1, "every size must be at least 1");
  require(std::max({s.h, s.w, s.c}) < (1 << 24), "a size is beyond 2^24");
  require(s.scale.size() == s.bias.size() &&
              (s.scale.empty() || static_cast<int64_t>(s.scale.size()) == s.c),
          "scale and bias need one value per channel");
  require(reads_answer() == (source != Source::values),
          "an answer has a scale and is checked or not; a float32 value has neither");
  for (const auto* values : {&s.scale, &s.bias}) {
    require(std::none_of(values->begin(), values->end(), [](float v) { return std::isnan(v); }),
            "scale and bias must be numbers");
  }
  require(s.lo <= s.hi, "the clamp needs lo <= hi");
  if (s.window) check_window(s);
  for (const SinkRule& sink : s.sinks) {
    require(sink.qmax >= 1 && sink.qmax < (1 << 13), "qmax must be within 1 and 8191");
    require(std::isfinite(sink.inv_scale), "inv_scale must be finite");
  }
  require(s.h * s.w <= kMaxElements / s.c && out_h() * out_w() <= kMaxElements / s.c,
          "more than 2^34 elements");
  limbs_.resize(s.sinks.size());
  for (size_t i = 0; i < s.sinks.size(); ++i) {
    const InputCheck& check = s.sinks[i].check;
    require(check.rows != nullptr || check.columns == nullptr, "columns need rows");
    in_bias_.push_back(s.sinks[i].checked() ? request_bias(check) : 0);
    limbs_[i].set(check, out_h(), out_w(), s.c, fused_kernels().digits);
  }
  if (source == Source::checked) set_answer_check(a, b);
}

FusedStep::~FusedStep() {
  wipe(halves_.data(), halves_.size() * sizeof(HalfBlock));
  wipe(pairs_.data(), pairs_.size() * sizeof(PairBlock));
}

void FusedStep::set_answer_check(const uint64_t* a, const uint64_t* b) {
  require(a != nullptr && b != nullptr, "a checked answer needs both a and b");
  check_coefficients(a, shape_.h * shape_.w);
  check_coefficients(b, shape_.c);
  halves_.resize(static_cast<size_t>(shape_.c / kHalfChannels + 1));
  pairs_.resize(static_cast<size_t>(shape_.c / kPairChannels + 1));
  for (int64_t i = 0; i < shape_.c; ++i) {
    HalfBlock& block = halves_[static_cast<size_t>(i / kHalfChannels)];
    block.low[i % kHalfChannels] = static_cast<uint32_t>(b[i] & ((1 << 26) - 1));
    block.high[i % kHalfChannels] = static_cast<uint32_t>(b[i] >> 26);
    PairBlock& pairs = pairs_[static_cast<size_t>(i / kPairChannels)];
    (i % 2 == 0 ? pairs.even : pairs.odd)[i % kPairChannels / 2] = b[i];
  }
  const uint64_t sums = multiply(sum_of(a, shape_.h * shape_.w), sum_of(b, shape_.c));
  out_bias_ = multiply(sums, uint64_t{1} << 31);
  a_ = a;
  b_ = b;
}

uint64_t FusedStep::request_bias(const InputCheck& check) const {
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
  return multiply(total, uint64_t{1} << 13);
}

const LimbCheck* FusedStep::limbs(const FusedKernels& kernels, size_t sink) const {
  return kernels.digits != Digits::none && shape_.sinks[sink].check.columns ? &limbs_[sink]
                                                                            : nullptr;
}

void FusedStep::validate(const FusedRun& run) const {
  require(run.n >= 0, "a negative number of images");
  require(
      (run.reply != nullptr) != (run.values != nullptr) && (run.reply != nullptr) == reads_answer(),
      "the source must be a reply exactly when there is a scale");
  require(!run.unblinding(0, 0) || run.reply != nullptr, "only a reply can be unblinded");
  require(run.mask_keys == nullptr || (run.mask_nonces != nullptr && run.unblinding(0, 0)),
          "only terms can be masked, under keys with nonces");
  require(run.sinks.size() == shape_.sinks.size(), "one output per sink is needed");
  require(a_ == nullptr || run.sums_out != nullptr, "a checked reply needs sums_out");
  for (size_t i = 0; i < run.sinks.size(); ++i) {
    const SinkRun& sink = run.sinks[i];
    require((sink.blinded != nullptr) != (sink.plain != nullptr), "a sink has one output");
    const bool padded = sink.pad != nullptr || (sink.keys != nullptr && sink.nonces != nullptr);
    require(sink.blinded == nullptr || padded,
            "a blinded sink needs keys with nonces, or an explicit pad");
    require(sink.blinded == nullptr || sink.pad != nullptr || has_aes(),
            "this CPU has no AES instructions: give the pad as an array");
    require(sink.plain == nullptr || (sink.pad == nullptr && sink.keys == nullptr),
            "a plain sink takes no pad");
    require(!shape_.sinks[i].checked() || sink.sums != nullptr, "a checked sink needs its sums");
  }
}

int64_t FusedStep::bands_per_image(int64_t n, int threads) const {
  if (threads <= 1) return 1;
  // Several bands per thread: a thread that comes late takes fewer.
  constexpr int64_t kPerThread = 8;
  constexpr int64_t kLeast = int64_t{1} << 13;
  const int64_t wanted = (kPerThread * threads + n - 1) / std::max<int64_t>(n, 1);
  const auto& window = shape_.window;
  const int64_t units = window ? window->oh : shape_.h * shape_.w;
  const int64_t elements = shape_.h * shape_.w * shape_.c;
  return std::clamp<int64_t>(std::min(wanted, elements / kLeast), 1, units);
}

// Everything is allocated here, so that threads cannot throw.
void FusedStep::prepare(const FusedKernels& kernels, int64_t tile, int64_t workers, bool masked) {
  for (size_t i = 0; i < limbs_.size(); ++i) {
    // Another instruction set than when the step was made.
    if (limbs(kernels, i) == nullptr || limbs_[i].digits() == kernels.digits) continue;
    limbs_[i].set(shape_.sinks[i].check, out_h(), out_w(), shape_.c, kernels.digits);
  }
  while (static_cast<int64_t>(scratch_.size()) < workers) {
    auto scratch = std::make_unique<Scratch>();
    const auto& window = shape_.window;
    const int64_t ring = window ? std::min(span(window->kh, window->dh), shape_.h) : 0;
    scratch->ring.resize(ring * shape_.w * shape_.c);
    if (window && window->three_by_three()) {
      scratch->zeros.resize(static_cast<size_t>(shape_.w * shape_.c));
    }
    scratch->rows.reserve(static_cast<size_t>(ring));
    scratch->lanes.reserve(1 + shape_.sinks.size());
    scratch_.push_back(std::move(scratch));
  }
  for (const auto& scratch : scratch_) {
    if (masked) scratch->terms.resize(static_cast<size_t>(std::max(tile, shape_.c)));
    if (scratch->pad.size() == static_cast<size_t>(tile + 4)) continue;
    wipe(scratch->pad.data(), scratch->pad.size() * sizeof(uint32_t));
    scratch->pad.resize(static_cast<size_t>(tile + 4));
    scratch->tile.resize(std::max(tile, shape_.c));
  }
}

int FusedStep::worthwhile(int64_t n, int threads) const {
  // Less is done before a second thread has begun.
  constexpr int64_t kWorthSharing = int64_t{1} << 16;
  return n * shape_.h * shape_.w * shape_.c < kWorthSharing ? 1 : threads;
}

void FusedStep::run(const FusedRun& run, int threads) {
  validate(run);
  if (run.n == 0) return;
  threads = worthwhile(run.n, threads);
  const FusedKernels& kernels = fused_kernels();  // one for the whole run
  const auto& window = shape_.window;
  const int64_t bands = bands_per_image(run.n, threads);
  // A source row that two bands need would be read twice, and could differ: all rows first then.
  const bool rows_first = bands > 1 && window && span(window->kh, window->dh) > window->sh;
  const int64_t row = shape_.w * shape_.c;
  if (rows_first) image_.resize(static_cast<size_t>(run.n * shape_.h * row));
  const Tuning tuned = tuning();
  prepare(kernels, tuned.tile, std::min<int64_t>(std::max(threads, 1), run.n * bands),
          run.mask_keys != nullptr);
  const size_t columns = 1 + shape_.sinks.size();
  const size_t phase_sums = static_cast<size_t>(run.n * bands) * columns;
  std::vector<uint64_t> sums(2 * phase_sums), clipped(phase_sums);

  const auto work = [&](int64_t worker, int64_t job, bool sources) {
    Scratch& scratch = *scratch_[static_cast<size_t>(worker)];
    const int64_t image = job / bands;
    Band::Rows rows{scratch.ring.data(), 0, false};
    if (window) rows.count = std::min(span(window->kh, window->dh), shape_.h);
    if (rows_first) rows = {image_.data() + image * shape_.h * row, shape_.h, !sources};
    Band band(*this, run, kernels, tuned, image, scratch, rows);
    const int64_t units = sources ? shape_.h : window ? window->oh : shape_.h * shape_.w;
    const int64_t begin = units * (job % bands) / bands;
    const int64_t end = units * (job % bands + 1) / bands;
    if (sources) {
      band.source_rows(begin, end);
    } else if (window) {
      band.windowed_rows(begin, end);
    } else {
      band.pixels(begin, end);
    }
    band.finish();
    const size_t first = static_cast<size_t>(job) * columns + (sources ? phase_sums : 0);
    for (size_t i = 0; i < columns; ++i) {
      sums[first + i] = sum_of(scratch.lanes[i]);
      if (!sources) clipped[first + i] = clipped_in(scratch.lanes[i]);
    }
  };
  if (rows_first) {
    in_parallel(run.n * bands, threads, [&](int64_t w, int64_t job) { work(w, job, true); });
  }
  in_parallel(run.n * bands, threads, [&](int64_t w, int64_t job) { work(w, job, false); });

  for (int64_t image = 0; image < run.n; ++image) {
    for (size_t i = 0; i < columns; ++i) {
      uint64_t sum = 0, beyond = 0;
      for (int64_t job = image * bands; job < (image + 1) * bands; ++job) {
        const size_t at = static_cast<size_t>(job) * columns + i;
        sum = add(sum, add(sums[at], sums[at + phase_sums]));
        beyond += clipped[at];
      }
      if (i == 0) {
        if (run.sums_out == nullptr) continue;
        run.sums_out[image * run.sums_out_stride] = a_ ? subtract(sum, out_bias_) : 0;
        continue;
      }
      const SinkRun& sink = run.sinks[i - 1];
      if (sink.sums != nullptr) {
        const uint64_t bias = limbs(kernels, i - 1) ? 0 : in_bias_[i - 1];
        sink.sums[image * sink.sums_stride] =
            shape_.sinks[i - 1].checked() ? subtract(sum, bias) : 0;
      }
      if (sink.clipped != nullptr) sink.clipped[image * sink.clipped_stride] = beyond;
    }
  }
}

}  // namespace cloister

// Every instruction set gives the portable back end's bits, in buffers without slack, and that the
// definition's sums.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <vector>

#include "cloister/aes_ctr.hpp"
#include "cloister/freivalds.hpp"
#include "cloister/fused_step.hpp"
#include "cloister/isa.hpp"
#include "cloister/tuning.hpp"
#include "expect.hpp"

using namespace cloister;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Memory that begins with a cache line, so that kernels may store past the caches.
template <typename T>
struct LineAllocator {
  using value_type = T;
  T* allocate(size_t n) {
    return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t{64}));
  }
  void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t{64}); }
  bool operator==(const LineAllocator&) const = default;
};
using Lines = std::vector<uint32_t, LineAllocator<uint32_t>>;

struct Result {
  std::vector<float> pre, post;
  Lines blinded;
  std::vector<int16_t, LineAllocator<int16_t>> plain;
  std::vector<uint64_t> sums;
  std::vector<uint64_t> clipped;  // two sinks, an image after the other
  bool operator==(const Result&) const = default;
};

struct Setting {
  int64_t h, w, c;
  std::optional<WindowShape> window;
  bool reply;
  bool full;  // unblinding, residual and checks
  bool extreme;
  int64_t terms = 0;    // of the coefficients of requests; 0: every element has its own
  bool slides = false;  // the factors of a column are those of the one before, a term further
};

constexpr int64_t kImages = 2;

struct Inputs {
  std::vector<uint32_t> reply, unblind;
  std::vector<float> values, residual;
  std::vector<uint64_t> a, b, rows, columns;
  uint8_t key[32];
  std::vector<uint8_t> nonces;
  std::vector<uint32_t> pad;
  std::vector<uint32_t> masked;  // `unblind` with a keystream added, under a key per image
  uint8_t mask_keys[kImages][32];
};

// Kernels cut coefficients of requests into four digits of 13 bits: the largest of either sign.
// With -4096 as the highest one, others would be positive: half of P is less than 2^51.
constexpr uint64_t kTopDigit = uint64_t{4095} << 39;
constexpr uint64_t kDigits = 1 + (uint64_t{1} << 13) + (uint64_t{1} << 26);
constexpr uint64_t kLargestDigits = kTopDigit + 4095 * kDigits;
constexpr uint64_t kSmallestDigits = kP52 - kTopDigit - 4096 * kDigits;

FusedShape shape_of(const Setting& s) {
  const float hi = s.c % 2 == 1 ? 1.0f : kInfinity;  // back ends have a kernel for [0, infinity]
  FusedShape shape{s.h, s.w, s.c, {}, {}, s.full ? 0.0f : -kInfinity, hi, s.window, {}};
  if (s.window && s.window->kind == WindowShape::Kind::depthwise) {
    WindowShape& window = *shape.window;
    std::mt19937 random(3);
    const auto value = [&] { return static_cast<float>(static_cast<int32_t>(random())) * 1e-9f; };
    for (int64_t i = 0; i < window.kh * window.kw * s.c; ++i) window.weights.push_back(value());
    for (int64_t i = 0; i < s.c; ++i) window.bias.push_back(value());
  }
  if (s.reply) {
    shape.scale.assign(static_cast<size_t>(s.c), 1.1e-9f);
    shape.bias.assign(static_cast<size_t>(s.c), 0.25f);
  }
  shape.sinks = {{s.extreme ? 1e9f : 900.0f, 8191, {}}, {1e9f, 3, {}}};
  return shape;
}

Inputs inputs_of(const Setting& s) {
  const int64_t out_h = s.window ? s.window->oh : s.h, out_w = s.window ? s.window->ow : s.w;
  const int64_t out_elements = out_h * out_w * s.c;
  std::mt19937_64 random(2);
  const auto in = static_cast<size_t>(kImages * s.h * s.w * s.c);
  Inputs x;
  // The largest integer that is multiplied, 2^32 - 1: an answer is accumulated as z + 2^31.
  const auto word = [&] { return s.extreme ? 0x7fffffffu : static_cast<uint32_t>(random()); };
  const auto element = [&] { return s.extreme ? kP52 - 1 : random() % kP52; };
  const auto digits = [&] {
    if (!s.extreme) return random() % kP52;
    return s.terms % 2 != 0 ? kLargestDigits : kSmallestDigits;
  };
  const auto value = [&] { return static_cast<float>(static_cast<int32_t>(random())) * 1e-9f; };
  for (size_t i = 0; i < in; ++i) {
    x.reply.push_back(word());
    x.unblind.push_back(s.extreme ? 0 : word());
    x.values.push_back(value());
    x.residual.push_back(value());
  }
  for (int64_t i = 0; i < s.h * s.w; ++i) x.a.push_back(element());
  for (int64_t i = 0; i < s.c; ++i) x.b.push_back(element());
  const int64_t blocks = s.terms > 0 ? s.terms : out_w;
  for (int64_t i = 0; i < out_h * blocks * s.c; ++i) x.rows.push_back(digits());
  for (int64_t i = 0; i < s.terms * out_w; ++i) {
    const bool moved = s.slides && i > out_w && i % out_w != 0;
    x.columns.push_back(moved ? x.columns[static_cast<size_t>(i - out_w - 1)] : digits());
  }
  for (uint8_t& byte : x.key) byte = static_cast<uint8_t>(random());
  for (int64_t i = 0; i < 12 * kImages; ++i) x.nonces.push_back(static_cast<uint8_t>(random()));
  for (auto& key : x.mask_keys) {
    for (uint8_t& byte : key) byte = static_cast<uint8_t>(random());
  }
  x.pad.resize(static_cast<size_t>(kImages * out_elements));
  x.masked.resize(in);
  if (best_isa() != Isa::portable) {
    force_isa(Isa::avx2);
    const AesSchedule schedule(x.key);
    for (int64_t i = 0; i < kImages; ++i) {
      aes_ctr_fill(schedule, x.nonces.data() + 12 * i, 0, x.pad.data() + i * out_elements,
                   out_elements);
      const int64_t elements = s.h * s.w * s.c;
      aes_ctr_fill(AesSchedule(x.mask_keys[i]), x.nonces.data() + 12 * i, 0,
                   x.masked.data() + i * elements, elements);
    }
    for (size_t i = 0; i < in; ++i) x.masked[i] += x.unblind[i];
  }
  return x;
}

FusedStep made(const Setting& s, const Inputs& x) {
  FusedShape shape = shape_of(s);
  if (s.full) {
    const InputCheck check{x.rows.data(), s.terms > 0 ? x.columns.data() : nullptr, s.terms};
    for (SinkRule& sink : shape.sinks) sink.check = check;
  }
  if (!s.reply) return FusedStep(shape);
  return s.full ? FusedStep::checked(shape, x.a.data(), x.b.data()) : FusedStep::unchecked(shape);
}

enum class Pads { explicit_pad, generated, first_masked, masked };  // the last two: its terms

Result run(const Setting& s, const Inputs& x, FusedStep& step, Pads pads, int threads) {
  const auto in = static_cast<size_t>(kImages * s.h * s.w * s.c);
  const auto out = static_cast<size_t>(kImages * step.out_h() * step.out_w() * s.c);
  Result r{std::vector<float>(in),
           std::vector<float>(out),
           Lines(out),
           decltype(Result::plain)(out),
           std::vector<uint64_t>(3 * kImages),
           std::vector<uint64_t>(2 * kImages)};
  FusedRun run;
  run.n = kImages;
  if (s.reply) run.reply = x.reply.data();
  run.pre = {r.pre.data(), s.h * s.w * s.c, s.c};
  run.post = {r.post.data(), step.out_h() * step.out_w() * s.c, s.c};
  run.sums_out = r.sums.data();
  run.sinks.resize(2);
  run.sinks[0].blinded = r.blinded.data();
  run.sinks[0].sums = r.sums.data() + kImages;
  run.sinks[1].plain = r.plain.data();
  run.sinks[1].sums = r.sums.data() + 2 * kImages;
  for (size_t i = 0; i < 2; ++i) {
    run.sinks[i].clipped = r.clipped.data() + i;
    run.sinks[i].clipped_stride = 2;
  }
  std::optional<AesSchedule> schedule;
  std::vector<const AesSchedule*> keys;
  if (pads == Pads::explicit_pad) {
    run.sinks[0].pad = x.pad.data();
  } else {
    keys.assign(kImages, &schedule.emplace(x.key));
    run.sinks[0].keys = keys.data();
    run.sinks[0].nonces = x.nonces.data();
  }
  if (!s.reply) run.values = x.values.data();
  if (s.full) {
    if (s.reply) run.unblind = x.unblind.data();
    run.residual = {x.residual.data(), s.h * s.w * s.c, s.c};
  }
  std::vector<std::unique_ptr<AesSchedule>> schedules;
  std::vector<const AesSchedule*> mask_keys;
  std::vector<const uint32_t*> terms;
  if (pads == Pads::first_masked || pads == Pads::masked) {
    for (int64_t i = 0; i < kImages; ++i) {
      const bool masked = pads == Pads::masked || i == 0;
      terms.push_back((masked ? x.masked : x.unblind).data() + i * s.h * s.w * s.c);
      schedules.push_back(std::make_unique<AesSchedule>(x.mask_keys[i]));
      mask_keys.push_back(masked ? schedules.back().get() : nullptr);
    }
    run.unblind = nullptr;
    run.unblind_images = terms.data();
    run.mask_keys = mask_keys.data();
    run.mask_nonces = x.nonces.data();
  }
  step.run(run, threads);
  return r;
}

uint64_t mod_mul(uint64_t x, uint64_t y) {
  __extension__ using U128 = unsigned __int128;
  return static_cast<uint64_t>(static_cast<U128>(x) * y % kP52);
}

// The sum over one image of its request's integers times their coefficients.
uint64_t sum_by_definition(const Setting& s, const Inputs& x, const FusedStep& step,
                           const int16_t* q) {
  const auto at = [](const std::vector<uint64_t>& values, int64_t i) {
    return values[static_cast<size_t>(i)];
  };
  const int64_t w = step.out_w();
  uint64_t sum = 0;
  for (int64_t i = 0; i < step.out_h() * w * s.c; ++i) {
    const int64_t y = i / s.c / w, column = i / s.c % w, c = i % s.c;
    uint64_t t = s.terms > 0 ? 0 : at(x.rows, i);
    for (int64_t k = 0; k < s.terms; ++k) {
      t += mod_mul(at(x.columns, k * w + column), at(x.rows, (y * s.terms + k) * s.c + c));
    }
    const int64_t value = q[i];
    const auto canonical =
        value < 0 ? kP52 - static_cast<uint64_t>(-value) : static_cast<uint64_t>(value);
    sum = (sum + mod_mul(t % kP52, canonical)) % kP52;
  }
  return sum;
}

// How many of a request's integers would lie beyond qmax, had they not been clipped.
uint64_t clipped_by_definition(const FusedStep& step, const Result& r, size_t sink, int64_t image) {
  const FusedShape& s = step.shape();
  const int64_t elements = step.out_h() * step.out_w() * s.c;
  const float* values = (s.window ? r.post : r.pre).data() + image * elements;
  return static_cast<uint64_t>(std::count_if(values, values + elements, [&](float v) {
    // volatile: the product is rounded to float.
    const volatile float scaled = v * s.sinks[sink].inv_scale;
    return !(std::abs(std::nearbyint(scaled)) <= static_cast<float>(s.sinks[sink].qmax));
  }));
}

// Channel c of output (y, x) of a depthwise window over one image.
float depthwise_by_definition(const FusedShape& s, const float* pre, int64_t y, int64_t x,
                              int64_t c) {
  const WindowShape& window = *s.window;
  float f = 0.0f;
  for (int64_t i = 0; i < window.kh; ++i) {
    for (int64_t j = 0; j < window.kw; ++j) {
      const int64_t r = y * window.sh + i * window.dh - window.pt;
      const int64_t q = x * window.sw + j * window.dw - window.pl;
      if (r < 0 || r >= s.h || q < 0 || q >= s.w) continue;
      // volatile: the product is rounded before it is added.
      const volatile float product =
          pre[(r * s.w + q) * s.c + c] *
          window.weights[static_cast<size_t>((i * window.kw + j) * s.c + c)];
      f += product;
    }
  }
  return std::min(std::max(f + window.bias[static_cast<size_t>(c)], window.lo), window.hi);
}

void check_depthwise(const FusedStep& step, const Result& r) {
  const FusedShape& s = step.shape();
  size_t at = 0;
  for (int64_t image = 0; image < kImages; ++image) {
    const float* pre = r.pre.data() + image * s.h * s.w * s.c;
    for (int64_t y = 0; y < step.out_h(); ++y) {
      for (int64_t x = 0; x < step.out_w(); ++x) {
        for (int64_t c = 0; c < s.c; ++c, ++at) {
          expect(r.post[at] == depthwise_by_definition(s, pre, y, x, c), "a depthwise window");
        }
      }
    }
  }
}

bool refused(const auto& action) {
  try {
    action();
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

// Results are the same under all of them.
constexpr Tuning kTunings[] = {{.tile = 512, .far_tiles = 1, .stream_from = 1},
                               {.tile = 4096, .far_tiles = 2, .stream_from = int64_t{1} << 34}};

void test(const Setting& s) {
  const Inputs x = inputs_of(s);
  FusedStep step = made(s, x);
  force_isa(Isa::portable);
  const Result expected = run(s, x, step, Pads::explicit_pad, 1);
  if (s.window && s.window->kind == WindowShape::Kind::depthwise) check_depthwise(step, expected);
  for (int64_t i = 0; i < kImages; ++i) {
    for (size_t sink : {0, 1}) {
      expect(expected.clipped[static_cast<size_t>(2 * i) + sink] ==
                 clipped_by_definition(step, expected, sink, i),
             "how many were clipped");
    }
  }
  for (int64_t i = 0; s.full && i < kImages; ++i) {
    const int16_t* q = expected.plain.data() + i * step.out_h() * step.out_w() * s.c;
    expect(expected.sums[static_cast<size_t>(2 * kImages + i)] == sum_by_definition(s, x, step, q),
           "the sum of a request");
  }
  for (int i = 0; i <= static_cast<int>(best_isa()); ++i) {
    force_isa(static_cast<Isa>(i));
    for (int threads : {1, 5}) {
      expect(run(s, x, step, Pads::explicit_pad, threads) == expected, "explicit pad");
      if (!has_aes()) continue;
      expect(run(s, x, step, Pads::generated, threads) == expected, "generated pad");
      if (!s.reply || !s.full) continue;
      expect(run(s, x, step, Pads::masked, threads) == expected, "masked terms");
      expect(run(s, x, step, Pads::first_masked, threads) == expected, "one image's terms masked");
    }
    for (const Tuning& tuned : kTunings) {
      set_tuning(tuned);
      const Pads pads = !has_aes()          ? Pads::explicit_pad
                        : s.reply && s.full ? Pads::masked
                                            : Pads::generated;
      expect(run(s, x, step, pads, 1) == expected, "another tuning");
    }
    set_tuning({});
  }
}

void test_tunings() {
  expect(tuning() == Tuning{}, "the defaults");
  set_tuning(kTunings[0]);
  expect(tuning() == kTunings[0], "the tuning in force");
  for (const Tuning& wrong : {Tuning{.tile = 0}, Tuning{.tile = 513}, Tuning{.tile = 8192},
                              Tuning{.far_tiles = -1}, Tuning{.far_tiles = 65},
                              Tuning{.stream_from = 0}, Tuning{.stream_from = int64_t{1} << 40}}) {
    expect(refused([&] { set_tuning(wrong); }), "a parameter out of range");
  }
  expect(tuning() == kTunings[0], "a refused tuning changes nothing");
  set_tuning({});
}

void test_no_pad() {
  FusedStep step({1, 1, 4, {}, {}, -kInfinity, kInfinity, std::nullopt, {{1.0f, 10, {}}}});
  const float values[4] = {1, 2, 3, 4};
  uint32_t request[4] = {};
  FusedRun run;
  run.n = 1;
  run.values = values;
  run.sinks.resize(1);
  run.sinks[0].blinded = request;
  bool refused = false;
  try {
    step.run(run, 1);
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  expect(refused && request[0] == 0, "a blinded sink without a pad");
}

void test_refused_masks() {
  if (!has_aes()) return;
  FusedStep step = FusedStep::unchecked({1, 1, 4, {1, 1, 1, 1}, {0, 0, 0, 0}, 0, 1, {}, {}});
  const uint32_t words[4] = {};
  float out[4];
  const uint8_t bytes[32] = {};
  const AesSchedule schedule(bytes);
  const AesSchedule* const keys[] = {&schedule};
  FusedRun run;
  run.n = 1;
  run.reply = words;
  run.unblind = words;
  run.pre = {out, 4, 4};
  run.mask_keys = keys;
  expect(refused([&] { step.run(run, 1); }), "a mask without nonces");
  run.mask_nonces = bytes;
  run.unblind = nullptr;
  expect(refused([&] { step.run(run, 1); }), "a mask without terms");
}

FusedShape of_one_sink(const InputCheck& check) {
  return {1, 2, 3, {}, {}, -kInfinity, kInfinity, std::nullopt, {{1.0f, 10, check}}};
}

void test_refused_checks() {
  const std::vector<uint64_t> rows(6, 5), columns(4, 7);
  std::vector<uint64_t> wrong(rows);
  wrong.back() = kP52;
  for (const InputCheck& check :
       {InputCheck{wrong.data(), nullptr, 0}, InputCheck{wrong.data(), columns.data(), 2},
        InputCheck{rows.data(), columns.data(), 0}, InputCheck{nullptr, columns.data(), 2}}) {
    expect(refused([&] { FusedStep step(of_one_sink(check)); }), "coefficients of a request");
  }
  FusedShape answer = of_one_sink({});
  answer.scale.assign(3, 1.0f);
  answer.bias.assign(3, 0.0f);
  const uint64_t* some = rows.data();
  expect(refused([&] { FusedStep::checked(answer, nullptr, some); }), "no a");
  expect(refused([&] { FusedStep::checked(answer, some, nullptr); }), "no b");
  expect(refused([&] { FusedStep::checked(answer, nullptr, nullptr); }), "no coefficients at all");
  expect(refused([&] { FusedStep::checked(answer, wrong.data() + 4, some); }), "beyond the prime");
  expect(refused([&] { FusedStep step(answer); }), "an answer that is neither checked nor not");
  expect(refused([&] { FusedStep::checked(of_one_sink({}), some, some); }), "a checked value");
  expect(refused([&] { FusedStep::unchecked(of_one_sink({})); }), "an unchecked value");
  expect(FusedStep::checked(answer, some, some).checked(), "a checked answer");
  expect(!FusedStep::unchecked(answer).checked(), "an unchecked answer");
}

// Sizes whose product wraps around must not step for a small one.
void test_a_huge_filter() {
  FusedShape shape{1, 1, 1 << 20, {}, {}, -kInfinity, kInfinity, std::nullopt, {}};
  const int64_t side = 1 << 22;
  WindowShape window{WindowShape::Kind::depthwise,
                     side,
                     side,
                     1,
                     1,
                     1,
                     1,
                     0,
                     0,
                     1,
                     1,
                     false,
                     {},
                     {},
                     -kInfinity,
                     kInfinity};
  window.bias.resize(1 << 20);
  shape.window = window;
  bool thrown = false;
  try {
    FusedStep step(shape);
  } catch (const std::invalid_argument&) {
    thrown = true;
  }
  expect(thrown, "a filter of 2^64 weights");
}

using Kind = WindowShape::Kind;

WindowShape pooling(Kind kind, int64_t k, int64_t kw, int64_t stride, int64_t pad, int64_t oh,
                    int64_t ow) {
  return {kind, k, kw, stride, stride, 1, 1, pad, pad, oh, ow, false, {}, {}, 0.0f, 6.0f};
}

}  // namespace

int main() {
  const WindowShape windows[] = {
      pooling(Kind::max, 2, 2, 2, 0, 4, 5),
      pooling(Kind::max, 3, 3, 2, 1, 4, 5),
      pooling(Kind::average, 7, 9, 1, 0, 1, 1),
      pooling(Kind::depthwise, 3, 3, 1, 1, 7, 9),
      pooling(Kind::depthwise, 3, 3, 2, 1, 4, 5),
      pooling(Kind::depthwise, 5, 5, 1, 2, 7, 9),
      pooling(Kind::depthwise, 7, 7, 1, 3, 7, 9),
      {Kind::depthwise, 3, 3, 2, 1, 2, 3, 2, 3, 4, 9, false, {}, {}, -0.5f, 0.5f},
  };
  for (bool extreme : {false, true}) {
    for (bool full : {false, true}) {
      for (bool reply : {false, true}) {
        for (int64_t c : {1, 3, 16, 37, 64}) {
          test({7, 9, c, std::nullopt, reply, full, extreme});
          for (const WindowShape& window : windows) {
            test({7, 9, c, window, reply, full, extreme});
            if (full) test({7, 9, c, window, reply, full, extreme, 1 + c % 7});
          }
        }
        test({1, 1, 5000, std::nullopt, reply, full, extreme});
      }
    }
    for (int64_t terms : {1, 2, 3, 4, 7}) {
      for (int64_t c : {1, 4, 16, 20, 33, 64}) {
        test({2, 35, c, std::nullopt, true, true, extreme, terms});
        test({2, 15, c, std::nullopt, false, true, extreme, terms});
      }
      for (int64_t c : {2048, 2049, 2500, 4101}) {
        test({2, 2, c, std::nullopt, true, true, extreme, terms});
      }
      test({2, 1500, 1, std::nullopt, true, true, extreme, terms});
    }
  }
  for (bool extreme : {false, true}) {  // large enough to be stored past the caches
    // Three terms of pixels that are taken by twos, and of others.
    for (int64_t c : {32, 33, 96, 512, 4128}) {
      test({2, c > 4096 ? 3 : 15, c, std::nullopt, true, true, extreme, 3, true});
      test({2, 4, c, std::nullopt, false, true, extreme, 3, true});
    }
    test({2, 1, 96, std::nullopt, true, true, extreme, 3, true});
    for (int64_t terms : {0, 1, 3, 4}) {
      test({96, 90, 64, std::nullopt, true, true, extreme, terms});
      test({64, 8, 1024, std::nullopt, true, true, extreme, terms});
    }
    test({96, 90, 64, std::nullopt, true, false, extreme});
  }
  for (bool full : {false, true}) {  // answers of many channels, whose pixels go by twos
    for (int64_t w : {1, 3, 5}) test({1, w, 300, std::nullopt, true, full, true, full ? 3 : 0});
    test({3, 40, 128, std::nullopt, true, full, false, full ? 3 : 0});
  }
  test_tunings();
  test_no_pad();
  test_refused_masks();
  test_refused_checks();
  test_a_huge_filter();
  return 0;
}

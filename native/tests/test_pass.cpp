// Every instruction set gives the portable back end's bits, in buffers without slack.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

#include "cloister/aes_ctr.hpp"
#include "cloister/freivalds.hpp"
#include "cloister/isa.hpp"
#include "cloister/pass.hpp"

using namespace cloister;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void expect(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "%s: failed: %s\n", isa_name(active_isa()), what);
  std::exit(1);
}

struct Result {
  std::vector<float> pre, post;
  std::vector<uint32_t> blinded;
  std::vector<int16_t> plain;
  std::vector<uint64_t> sums;
  bool operator==(const Result&) const = default;
};

struct Setting {
  int64_t h, w, c;
  std::optional<PoolShape> pool;
  bool reply;
  bool full;  // unblinding, residual and checks
  bool extreme;
};

struct Inputs {
  std::vector<uint32_t> reply, unblind;
  std::vector<float> values, residual;
  std::vector<uint64_t> a, b, t;
  uint8_t key[32];
  std::vector<uint8_t> nonces;
  std::vector<uint32_t> pad;
};

constexpr int64_t kImages = 2;

PassShape shape_of(const Setting& s) {
  PassShape shape{s.h, s.w, s.c, {}, {}, s.full ? 0.0f : -kInfinity, kInfinity, s.pool, {}};
  if (s.reply) {
    shape.scale.assign(static_cast<size_t>(s.c), 1.1e-9f);
    shape.bias.assign(static_cast<size_t>(s.c), 0.25f);
  }
  shape.sinks = {{900.0f, 8191}, {1e9f, 3}};
  return shape;
}

Inputs inputs_of(const Setting& s, int64_t out_elements) {
  std::mt19937_64 random(2);
  const auto in = static_cast<size_t>(kImages * s.h * s.w * s.c);
  Inputs x;
  const auto word = [&] { return s.extreme ? 0x80000000u : static_cast<uint32_t>(random()); };
  const auto element = [&] { return s.extreme ? kP52 - 1 : random() % kP52; };
  const auto value = [&] { return static_cast<float>(static_cast<int32_t>(random())) * 1e-9f; };
  for (size_t i = 0; i < in; ++i) {
    x.reply.push_back(word());
    x.unblind.push_back(s.extreme ? 0 : word());
    x.values.push_back(value());
    x.residual.push_back(value());
  }
  for (int64_t i = 0; i < s.h * s.w; ++i) x.a.push_back(element());
  for (int64_t i = 0; i < s.c; ++i) x.b.push_back(element());
  for (int64_t i = 0; i < out_elements; ++i) x.t.push_back(element());
  for (uint8_t& byte : x.key) byte = static_cast<uint8_t>(random());
  for (int64_t i = 0; i < 12 * kImages; ++i) x.nonces.push_back(static_cast<uint8_t>(random()));
  x.pad.resize(static_cast<size_t>(kImages * out_elements));
  if (best_isa() != Isa::portable) {
    force_isa(Isa::avx2);
    const AesSchedule schedule(x.key);
    for (int64_t i = 0; i < kImages; ++i) {
      aes_ctr_fill(schedule, x.nonces.data() + 12 * i, 0, x.pad.data() + i * out_elements,
                   out_elements);
    }
  }
  return x;
}

Result run(const Setting& s, const Inputs& x, Pass& pass, bool explicit_pad, int threads) {
  const auto in = static_cast<size_t>(kImages * s.h * s.w * s.c);
  const auto out = static_cast<size_t>(kImages * pass.out_h() * pass.out_w() * s.c);
  Result r{std::vector<float>(in), std::vector<float>(out), std::vector<uint32_t>(out),
           std::vector<int16_t>(out), std::vector<uint64_t>(3 * kImages)};
  PassRun run;
  run.n = kImages;
  if (s.reply) run.reply = x.reply.data();
  run.pre = {r.pre.data(), s.h * s.w * s.c, s.c};
  run.post = {r.post.data(), pass.out_h() * pass.out_w() * s.c, s.c};
  run.sums_out = r.sums.data();
  run.sinks.resize(2);
  run.sinks[0].blinded = r.blinded.data();
  run.sinks[0].sums = r.sums.data() + kImages;
  run.sinks[1].plain = r.plain.data();
  run.sinks[1].sums = r.sums.data() + 2 * kImages;
  if (explicit_pad) {
    run.sinks[0].pad = x.pad.data();
  } else {
    run.sinks[0].key = x.key;
    run.sinks[0].nonces = x.nonces.data();
  }
  if (!s.reply) run.values = x.values.data();
  if (s.full) {
    if (s.reply) run.unblind = x.unblind.data();
    run.residual = {x.residual.data(), s.h * s.w * s.c, s.c};
  }
  pass.run(run, threads);
  return r;
}

void test(const Setting& s) {
  Pass pass(shape_of(s));
  const Inputs x = inputs_of(s, pass.out_h() * pass.out_w() * s.c);
  if (s.full) {
    if (s.reply) pass.set_check(x.a.data(), x.b.data());
    pass.set_sink_check(0, x.t.data());
    pass.set_sink_check(1, x.t.data());
  }
  force_isa(Isa::portable);
  const Result expected = run(s, x, pass, true, 1);
  for (int i = 0; i <= static_cast<int>(best_isa()); ++i) {
    force_isa(static_cast<Isa>(i));
    for (int threads : {1, 5}) {
      expect(run(s, x, pass, true, threads) == expected, "explicit pad");
      if (has_aes()) expect(run(s, x, pass, false, threads) == expected, "generated pad");
    }
  }
}

void test_no_pad() {
  Pass pass({1, 1, 4, {}, {}, -kInfinity, kInfinity, std::nullopt, {{1.0f, 10}}});
  const float values[4] = {1, 2, 3, 4};
  uint32_t request[4] = {};
  PassRun run;
  run.n = 1;
  run.values = values;
  run.sinks.resize(1);
  run.sinks[0].blinded = request;
  bool refused = false;
  try {
    pass.run(run, 1);
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  expect(refused && request[0] == 0, "a blinded sink without a pad");
}

}  // namespace

int main() {
  const PoolShape max2{false, 2, 2, 2, 2, 1, 1, 0, 0, 4, 5, false};
  const PoolShape max3{false, 3, 3, 2, 2, 1, 1, 1, 1, 4, 5, false};
  const PoolShape mean{true, 7, 9, 1, 1, 1, 1, 0, 0, 1, 1, false};
  for (bool extreme : {false, true}) {
    for (bool full : {false, true}) {
      for (bool reply : {false, true}) {
        for (int64_t c : {1, 3, 16, 37, 64}) {
          test({7, 9, c, std::nullopt, reply, full, extreme});
          for (const PoolShape& pool : {max2, max3, mean}) {
            test({7, 9, c, pool, reply, full, extreme});
          }
        }
        test({1, 1, 5000, std::nullopt, reply, full, extreme});
        test({96, 90, 64, std::nullopt, reply, full, extreme});  // large enough to stream
      }
    }
  }
  test_no_pad();
  return 0;
}

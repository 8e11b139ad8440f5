// Digits of shares and their sums, and sums of answers, against the definition in 128-bit integers.
#include <random>
#include <vector>

#include "cloister/freivalds.hpp"
#include "cloister/isa.hpp"
#include "cloister/pad_shares.hpp"
#include "expect.hpp"

using namespace cloister;

namespace {

__extension__ using I128 = __int128;

uint64_t modulo(I128 v) {
  const I128 rest = v % static_cast<I128>(kP52);
  return static_cast<uint64_t>(rest < 0 ? rest + static_cast<I128>(kP52) : rest);
}

uint64_t product(uint64_t x, uint64_t y) { return modulo(static_cast<I128>(x) * y); }

void test_split(int64_t n, const std::vector<int>& widths, bool extreme) {
  std::mt19937_64 random(1);
  std::vector<uint32_t> share(static_cast<size_t>(n));
  std::vector<uint64_t> t(share.size());
  for (uint32_t& v : share) v = extreme ? 0x7fff'8000u : static_cast<uint32_t>(random());
  for (uint64_t& v : t) v = extreme ? kP52 - 1 : random() % kP52;
  std::vector<int16_t> digits(widths.size() * share.size(), 77);
  std::vector<uint64_t> sums(widths.size(), 77);
  split_share(share.data(), t.data(), n, widths, digits.data(), sums.data());
  std::vector<uint32_t> whole(share.size(), 0);
  int shift = 0;
  for (size_t k = 0; k < widths.size(); ++k) {
    I128 sum = 0;
    for (size_t i = 0; i < share.size(); ++i) {
      const int16_t digit = digits[k * share.size() + i];
      const int half = 1 << (widths[k] - 1);
      expect(digit >= -half && digit < half, "a digit within its range");
      whole[i] += static_cast<uint32_t>(static_cast<int32_t>(digit)) << shift;
      sum += static_cast<I128>(t[i]) * digit;
    }
    expect(sums[k] == modulo(sum), "the sum of a digit");
    shift += widths[k];
  }
  expect(whole == share, "digits that make up the share");
}

void test_answers(int64_t pixels, int64_t channels, bool extreme) {
  std::mt19937_64 random(2);
  const std::vector<int> widths{11, 11, 10};
  const auto size = static_cast<size_t>(pixels * channels);
  std::vector<uint32_t> answers(3 * size), out(size);
  std::vector<uint64_t> a(static_cast<size_t>(pixels)), b(static_cast<size_t>(channels)), sums(3);
  for (uint32_t& v : answers) v = extreme ? 0x8000'0000u : static_cast<uint32_t>(random());
  for (uint32_t& v : out) v = static_cast<uint32_t>(random());
  for (auto* secrets : {&a, &b}) {
    for (uint64_t& v : *secrets) v = extreme ? kP52 - 1 : random() % kP52;
  }
  std::vector<uint32_t> wanted = out;
  add_answers(answers.data(), a.data(), pixels, b.data(), channels, widths, out.data(),
              sums.data());
  int shift = 0;
  for (size_t k = 0; k < 3; ++k) {
    I128 sum = 0;
    for (size_t i = 0; i < size; ++i) {
      const uint32_t word = answers[k * size + i];
      wanted[i] += word << shift;
      const uint64_t coefficient =
          product(a[i / static_cast<size_t>(channels)], b[i % static_cast<size_t>(channels)]);
      sum += static_cast<I128>(coefficient) * static_cast<int32_t>(word);
    }
    expect(sums[k] == modulo(sum), "the sum of an answer");
    shift += widths[k];
  }
  expect(out == wanted, "the sum of all answers");
}

}  // namespace

int main() {
  for (int i = 0; i <= static_cast<int>(best_isa()); ++i) {
    force_isa(static_cast<Isa>(i));
    for (const bool extreme : {false, true}) {
      for (const int64_t n : {0, 1, 7, 8, 33, 2048, 5003}) {
        for (const std::vector<int>& widths :
             {std::vector<int>{16, 16}, {11, 11, 10}, std::vector<int>(32, 1)}) {
          test_split(n, widths, extreme);
        }
      }
      for (const int64_t pixels : {0, 1, 5, 130}) {
        for (const int64_t channels : {1, 3, 8, 64, 257, 4099}) {
          test_answers(pixels, channels, extreme);
        }
      }
    }
  }
  return 0;
}

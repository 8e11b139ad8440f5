// Factored check coefficients cut into small digits, for kernels that multiply 16-bit integers.
//
// A coefficient is congruent to d0 + d1 2^13 + d2 2^26 + d3 2^39 (mod P) with digits of at most
// 2^12, so a request's integers (14 bits) need no widening: one instruction multiplies and adds 32
// of them. The four sums of digits are put together once per row, column or pixel.
//
// Where the factors of one column are those of the column before, moved on by a term (a kernel
// three wide that slides by one pixel), the products of two pixels q, p with three terms are
// products of a Toeplitz matrix, of which four multiplications make six (Winograd's minimal
// filter): with d0 .. d3 the factors of column x for the third to the first term and of column
// x + 1 for the first, and rows r0 .. r2 of the terms, the sum over the terms is
//
//   (q + p) (d1 + d2) / 2 (r0 + r1 + r2) + (q - p) (d1 - d2) / 2 (r1 - r0 - r2)
//     + q (d0 - d2) r2 + p (d3 - d1) r0     (mod P)
//
// so that a check of four terms, pairs of pixels in place of pixels, has the same sum.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "check/p52.hpp"
#include "cloister/fused_step.hpp"
#include "fused/fused_kernels.hpp"

namespace cloister {

constexpr int kLimbs = 4;
constexpr int kLimbBits = 13;
constexpr int64_t kLimbChannels = 32;  // of one LimbBlock

using Limbs = std::array<int32_t, kLimbs>;

// Digits of a canonical residue, each within -2^12 and 2^12.
constexpr Limbs limbs_of(uint64_t residue) {
  int64_t v = static_cast<int64_t>(residue);
  if (residue > kP52 / 2) v -= static_cast<int64_t>(kP52);
  Limbs limbs{};
  for (int i = 0; i + 1 < kLimbs; ++i) {
    const int64_t low = ((v + (1 << 12)) & ((1 << kLimbBits) - 1)) - (1 << 12);
    limbs[static_cast<size_t>(i)] = static_cast<int32_t>(low);
    v = (v - low) >> kLimbBits;
  }
  limbs[kLimbs - 1] = static_cast<int32_t>(v);
  for (const int32_t limb : limbs) CLOISTER_DEBUG_ASSERT(-(1 << 12) <= limb && limb <= 1 << 12);
  return limbs;
}

// What the four sums start from: close to 2^31, so that they never are negative when read as
// unsigned numbers, and together a multiple of P, so that nothing has to be subtracted.
constexpr std::array<uint32_t, kLimbs> limb_start() {
  U128 sum = 0;
  for (int i = 0; i < kLimbs; ++i) sum += U128{1} << (31 + kLimbBits * i);
  const Limbs rest = limbs_of(kP52 - static_cast<uint64_t>(sum % kP52));
  std::array<uint32_t, kLimbs> start{};
  for (size_t i = 0; i < kLimbs; ++i) {
    start[i] = static_cast<uint32_t>((int64_t{1} << 31) + rest[i]);
  }
  return start;
}

// How many pairs of integers of magnitude up to `qmax` each sum of digits takes.
constexpr int64_t limb_pairs(int64_t qmax) {
  return ((int64_t{1} << 31) - (1 << 13)) / (2 * qmax * (1 << 12));
}

// Digits of 32 channels: 32-bit lane i has those of channels i and 16 + i.
struct LimbBlock {
  alignas(64) int16_t limb[kLimbs][kLimbChannels];
};

// Digits of two neighbouring columns.
struct LimbPairs {
  uint32_t limb[kLimbs];
};

// An InputCheck with columns, as digits: of the columns where a channel's pixels are summed first
// (long rows of few channels, in back ends that do so), else of the rows.
class LimbCheck {
 public:
  LimbCheck() = default;
  ~LimbCheck() { wipe(); }
  LimbCheck(LimbCheck&&) = default;
  LimbCheck& operator=(LimbCheck&&) = default;

  // Secret, like the coefficients: what was there is overwritten.
  void set(const InputCheck& check, int64_t h, int64_t w, int64_t c, Digits digits);
  static constexpr int kPairTerms = 4;
  void wipe();

  Digits digits() const { return digits_; }  // what set() was asked for
  bool by_channels() const { return !columns_.empty(); }
  // The terms are kPairTerms, each of the pair of pixels that begins in a column.
  bool by_pairs() const { return by_pairs_; }

  // by_channels(): the digits of term k at columns x and x + 1, of which the lower half of a word
  // has the first; behind the last column is a zero. The next term lies behind, then column x + 1.
  const LimbPairs* columns(int64_t x, int64_t k) const { return columns_.data() + x * terms_ + k; }
  // Otherwise: blocks of row y and term k, and the factor of column x, once as it is
  // and once times 2^26.
  const LimbBlock* row(int64_t y, int64_t k) const {
    return rows_.data() + (y * terms_ + k) * blocks_;
  }
  const uint64_t* factors(int64_t k, int64_t x) const { return factors_.data() + 2 * (k * w_ + x); }

 private:
  void set_pairs(const InputCheck& check, int64_t h, int64_t c);
  void set_columns(const InputCheck& check);
  void set_rows(const InputCheck& check, int64_t h, int64_t c);

  Digits digits_ = Digits::none;
  bool by_pairs_ = false;
  int64_t w_ = 0, terms_ = 0, blocks_ = 0;
  std::vector<LimbPairs> columns_;
  std::vector<LimbBlock> rows_;
  std::vector<uint64_t> factors_;
};

}  // namespace cloister

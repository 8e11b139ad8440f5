#include "fused/limbs.hpp"

#include <algorithm>

#include "fused/fused_kernels.hpp"
#include "pads/wipe.hpp"

namespace cloister {
namespace {

constexpr int64_t kFewChannels = 64;

template <typename T>
void overwrite(std::vector<T>& secret) {
  cloister::wipe(secret.data(), secret.size() * sizeof(T));
  secret.clear();
}

// Is every column the one before, moved on by a term?
bool slides(const InputCheck& check, int64_t w) {
  if (check.terms != 3) return false;
  const uint64_t* of = check.columns;
  return std::equal(of, of + w - 1, of + w + 1) &&
         std::equal(of + w, of + 2 * w - 1, of + 2 * w + 1);
}

}  // namespace

void LimbCheck::wipe() {
  digits_ = Digits::none;
  by_pairs_ = false;
  overwrite(columns_);
  overwrite(rows_);
  overwrite(factors_);
}

void LimbCheck::set(const InputCheck& check, int64_t h, int64_t w, int64_t c, Digits digits) {
  wipe();
  if (check.columns == nullptr || digits == Digits::none) return;
  w_ = w;
  terms_ = check.terms;
  const bool channels = digits == Digits::of_either && c <= kFewChannels && w >= kLongRow;
  by_pairs_ =
      digits == Digits::of_either && !channels && c % kLimbChannels == 0 && slides(check, w);
  if (channels) {
    set_columns(check);
  } else if (by_pairs_) {
    set_pairs(check, h, c);
  } else {
    set_rows(check, h, c);
  }
  digits_ = digits;  // last: there is memory for all of them
}

void LimbCheck::set_pairs(const InputCheck& check, int64_t h, int64_t c) {
  terms_ = kPairTerms;
  std::vector<uint64_t> columns(static_cast<size_t>(kPairTerms * w_));
  std::vector<uint64_t> rows(static_cast<size_t>(h * kPairTerms * c));
  constexpr uint64_t kHalf = (kP52 + 1) / 2;
  const uint64_t* of = check.columns;
  for (int64_t x = 0; x < w_; ++x) {
    const uint64_t d0 = of[2 * w_ + x], d1 = of[w_ + x], d2 = of[x];
    const uint64_t d3 = x + 1 < w_ ? of[x + 1] : 0;  // no pixel
    uint64_t* out = columns.data() + x;
    out[0] = multiply(add(d1, d2), kHalf);
    out[w_] = multiply(subtract(d1, d2), kHalf);
    out[2 * w_] = subtract(d0, d2);
    out[3 * w_] = subtract(d3, d1);
  }
  for (int64_t y = 0; y < h; ++y) {
    const uint64_t* row = check.rows + 3 * y * c;
    uint64_t* out = rows.data() + kPairTerms * y * c;
    for (int64_t i = 0; i < c; ++i) {
      const uint64_t r0 = row[i], r1 = row[c + i], r2 = row[2 * c + i];
      const uint64_t outer = add(r0, r2);
      out[i] = add(outer, r1);
      out[c + i] = subtract(r1, outer);
      out[2 * c + i] = r2;
      out[3 * c + i] = r0;
    }
  }
  set_rows({rows.data(), columns.data(), kPairTerms}, h, c);
  overwrite(columns);
  overwrite(rows);
}

void LimbCheck::set_columns(const InputCheck& check) {
  columns_.resize(static_cast<size_t>(w_ * terms_));
  for (int64_t k = 0; k < terms_; ++k) {
    Limbs next{};
    for (int64_t x = w_ - 1; x >= 0; --x) {
      const Limbs limbs = limbs_of(check.columns[k * w_ + x]);
      LimbPairs& pairs = columns_[static_cast<size_t>(x * terms_ + k)];
      for (size_t i = 0; i < kLimbs; ++i) {
        pairs.limb[i] = static_cast<uint32_t>(limbs[i] & 0xffff) | static_cast<uint32_t>(next[i])
                                                                       << 16;
      }
      next = limbs;
    }
  }
}

void LimbCheck::set_rows(const InputCheck& check, int64_t h, int64_t c) {
  blocks_ = (c + kLimbChannels - 1) / kLimbChannels;
  rows_.resize(static_cast<size_t>(h * terms_ * blocks_));
  factors_.resize(static_cast<size_t>(2 * terms_ * w_));
  for (int64_t row = 0; row < h * terms_; ++row) {
    for (int64_t channel = 0; channel < c; ++channel) {
      const Limbs limbs = limbs_of(check.rows[row * c + channel]);
      LimbBlock& block = rows_[static_cast<size_t>(row * blocks_ + channel / kLimbChannels)];
      const int64_t place = channel % kLimbChannels;
      for (int i = 0; i < kLimbs; ++i) {
        block.limb[i][2 * (place % 16) + place / 16] =
            static_cast<int16_t>(limbs[static_cast<size_t>(i)]);
      }
    }
  }
  for (int64_t i = 0; i < terms_ * w_; ++i) {
    factors_[static_cast<size_t>(2 * i)] = check.columns[i];
    factors_[static_cast<size_t>(2 * i + 1)] = multiply(check.columns[i], uint64_t{1} << 26);
  }
}

}  // namespace cloister

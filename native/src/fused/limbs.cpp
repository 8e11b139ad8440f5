#include "fused/limbs.hpp"

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

}  // namespace

void LimbCheck::wipe() {
  digits_ = Digits::none;
  overwrite(columns_);
  overwrite(rows_);
  overwrite(factors_);
}

void LimbCheck::set(const InputCheck& check, int64_t h, int64_t w, int64_t c, Digits digits) {
  wipe();
  if (check.columns == nullptr || digits == Digits::none) return;
  w_ = w;
  terms_ = check.terms;
  if (digits == Digits::of_either && c <= kFewChannels && w >= kLongRow) {
    set_columns(check);
  } else {
    set_rows(check, h, c);
  }
  digits_ = digits;  // last: there is memory for all of them
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

#include "cloister/aes_ctr.hpp"

#include <cstring>
#include <stdexcept>

#include "isa/kernels.hpp"
#include "pads/wipe.hpp"

namespace cloister {

bool has_aes() { return kernels().aes.fill != nullptr; }

AesSchedule::AesSchedule(const uint8_t key[kAesKeyBytes]) {
  if (!has_aes()) {
    throw std::invalid_argument("this CPU has no AES instructions: pass the pad as an array");
  }
  kernels().aes.expand_key(key, rounds_);
}

AesSchedule::~AesSchedule() { wipe(rounds_, sizeof rounds_); }

void aes_ctr_fill(const AesSchedule& key, const uint8_t nonce[kAesNonceBytes], uint64_t first_block,
                  uint32_t* out, int64_t n) {
  if (n < 0 || first_block > kAesBlocks ||
      (static_cast<uint64_t>(n) + 3) / 4 > kAesBlocks - first_block) {
    throw std::invalid_argument("AES-CTR: more than 2^32 blocks under one nonce");
  }
  if (n == 0) return;
  const auto fill = kernels().aes.fill;
  const int64_t whole = n / 4;
  const auto first = static_cast<uint32_t>(first_block);
  fill(key.rounds(), nonce, first, whole, out);
  if (n % 4 != 0) {
    uint32_t last[4];
    fill(key.rounds(), nonce, static_cast<uint32_t>(first_block + static_cast<uint64_t>(whole)), 1,
         last);
    std::memcpy(out + 4 * whole, last, static_cast<size_t>(n % 4) * sizeof(uint32_t));
    wipe(last, sizeof last);
  }
}

}  // namespace cloister

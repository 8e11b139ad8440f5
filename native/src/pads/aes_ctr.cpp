#include "cloister/aes_ctr.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "isa/kernels.hpp"
#include "pads/wipe.hpp"

namespace cloister {

namespace {

void check_range(uint64_t first_block, int64_t words) {
  if (words < 0 || first_block > kAesBlocks ||
      (static_cast<uint64_t>(words) + 3) / 4 > kAesBlocks - first_block) {
    throw std::invalid_argument("AES-CTR: more than 2^32 blocks under one nonce");
  }
}

}  // namespace

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
  check_range(first_block, n);
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

void aes_ctr_subtract(const AesSchedule& key, const uint8_t nonce[kAesNonceBytes],
                      uint64_t first_word, const uint32_t* in, uint32_t* out, int64_t n,
                      int64_t far_bytes) {
  check_range(first_word / 4, n < 0 ? n : n + static_cast<int64_t>(first_word % 4));
  while (n > 0) {
    const auto block = static_cast<uint32_t>(first_word / 4);
    const auto behind = static_cast<int64_t>(first_word % 4);
    int64_t done = n / 4 * 4;
    if (behind == 0 && done > 0) {
      kernels().aes.subtract(key.rounds(), nonce, block, done / 4, in, out, far_bytes);
    } else {  // a part of one block
      uint32_t words[4];
      kernels().aes.fill(key.rounds(), nonce, block, 1, words);
      done = std::min(4 - behind, n);
      for (int64_t i = 0; i < done; ++i) out[i] = in[i] - words[behind + i];
      wipe(words, sizeof words);
    }
    in += done;
    out += done;
    first_word += static_cast<uint64_t>(done);
    n -= done;
  }
}

}  // namespace cloister

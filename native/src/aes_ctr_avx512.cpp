#include "aes_ctr_avx512.hpp"

#include <algorithm>

#include "aes_ctr_backend.hpp"

namespace cloister {

void aes_fill_avx512(const uint8_t* rounds, const uint8_t* nonce, uint32_t first, int64_t blocks,
                     uint32_t* out) {
  const VaesKeys keys(rounds);
  __m512i counter = vaes_counter(nonce, first);
  __m512i state[4];
  int64_t i = 0;
  for (; i + 16 <= blocks; i += 16) {
    vaes_keystream<4>(keys, counter, state);
    counter = _mm512_add_epi32(counter, vaes_step(16));
    for (int j = 0; j < 4; ++j) _mm512_storeu_si512(out + 4 * i + 16 * j, state[j]);
  }
  for (; i < blocks; i += 4) {
    vaes_keystream<1>(keys, counter, state);
    counter = _mm512_add_epi32(counter, vaes_step(4));
    const auto words = static_cast<unsigned>(4 * std::min<int64_t>(blocks - i, 4));
    _mm512_mask_storeu_epi32(out + 4 * i, static_cast<__mmask16>((1u << words) - 1), state[0]);
  }
}

}  // namespace cloister

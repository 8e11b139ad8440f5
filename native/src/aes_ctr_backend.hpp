// What a back end of aes_ctr provides.
#pragma once
#include <cstdint>

namespace cloister {

// `blocks` blocks of 16 bytes from block number `first` on; it does not wrap.
using AesFill = void (*)(const uint8_t* rounds, const uint8_t* nonce, uint32_t first,
                         int64_t blocks, uint32_t* out);

void aes_expand_key(const uint8_t key[32], uint8_t rounds[15 * 16]);  // needs AES-NI
void aes_fill_avx2(const uint8_t* rounds, const uint8_t* nonce, uint32_t first, int64_t blocks,
                   uint32_t* out);
void aes_fill_avx512(const uint8_t* rounds, const uint8_t* nonce, uint32_t first, int64_t blocks,
                     uint32_t* out);

}  // namespace cloister

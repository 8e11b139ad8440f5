// AES-256-CTR with AES-NI, eight blocks in flight, and the key's rounds. Included by back ends for
// processors with AES instructions.
#pragma once
#include "isa/avx2.hpp"
#include "isa/prefetch.hpp"

namespace cloister {
namespace {

template <int kRcon>
__m128i even_round(__m128i before, __m128i last) {
  const __m128i word = _mm_shuffle_epi32(_mm_aeskeygenassist_si128(last, kRcon), 0xff);
  before = _mm_xor_si128(before, _mm_slli_si128(before, 4));
  before = _mm_xor_si128(before, _mm_slli_si128(before, 8));
  return _mm_xor_si128(before, word);
}

inline __m128i odd_round(__m128i before, __m128i last) {
  const __m128i word = _mm_shuffle_epi32(_mm_aeskeygenassist_si128(last, 0), 0xaa);
  before = _mm_xor_si128(before, _mm_slli_si128(before, 4));
  before = _mm_xor_si128(before, _mm_slli_si128(before, 8));
  return _mm_xor_si128(before, word);
}

// Blocks of the keystream, or the words at `in` minus them.
template <int kBlocks, bool kSubtract>
void stream_blocks(const uint8_t* rounds, __m128i counter, const uint32_t* in, uint32_t* out) {
  __m128i state[kBlocks];
  aes_keystream<kBlocks>(rounds, counter, state);
  for (int i = 0; i < kBlocks; ++i) {
    if constexpr (kSubtract) {
      const auto* from = reinterpret_cast<const __m128i*>(in + 4 * i);
      state[i] = _mm_sub_epi32(_mm_loadu_si128(from), state[i]);
    }
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 4 * i), state[i]);
  }
}

template <bool kSubtract>
void stream(const uint8_t* rounds, const uint8_t* nonce, uint32_t first, int64_t blocks,
            const uint32_t* in, uint32_t* out, int64_t far_bytes) {
  __m128i counter = aes_counter(nonce, first);
  int64_t i = 0;
  for (; i + 8 <= blocks; i += 8) {
    if constexpr (kSubtract) {
      if (far_bytes != 0) {
        prefetch_behind(in + 4 * i, far_bytes);
        prefetch_behind(in + 4 * i + 16, far_bytes);
      }
    }
    stream_blocks<8, kSubtract>(rounds, counter, kSubtract ? in + 4 * i : nullptr, out + 4 * i);
    counter = _mm_add_epi32(counter, _mm_setr_epi32(0, 0, 0, 8));
  }
  for (; i < blocks; ++i) {
    stream_blocks<1, kSubtract>(rounds, counter, kSubtract ? in + 4 * i : nullptr, out + 4 * i);
    counter = _mm_add_epi32(counter, _mm_setr_epi32(0, 0, 0, 1));
  }
}

inline void aes_expand_key(const uint8_t key[32], uint8_t* rounds) {
  __m128i k[15];
  k[0] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(key));
  k[1] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(key + 16));
  k[2] = even_round<0x01>(k[0], k[1]);
  k[3] = odd_round(k[1], k[2]);
  k[4] = even_round<0x02>(k[2], k[3]);
  k[5] = odd_round(k[3], k[4]);
  k[6] = even_round<0x04>(k[4], k[5]);
  k[7] = odd_round(k[5], k[6]);
  k[8] = even_round<0x08>(k[6], k[7]);
  k[9] = odd_round(k[7], k[8]);
  k[10] = even_round<0x10>(k[8], k[9]);
  k[11] = odd_round(k[9], k[10]);
  k[12] = even_round<0x20>(k[10], k[11]);
  k[13] = odd_round(k[11], k[12]);
  k[14] = even_round<0x40>(k[12], k[13]);
  auto* copies = reinterpret_cast<__m128i*>(rounds);
  for (int i = 0; i < 4 * 15; ++i) _mm_store_si128(copies + i, k[i / 4]);
}

inline void aes_fill(const uint8_t* rounds, const uint8_t* nonce, uint32_t first, int64_t blocks,
                     uint32_t* out) {
  stream<false>(rounds, nonce, first, blocks, nullptr, out, 0);
}

inline void aes_subtract(const uint8_t* rounds, const uint8_t* nonce, uint32_t first,
                         int64_t blocks, const uint32_t* in, uint32_t* out, int64_t far_bytes) {
  stream<true>(rounds, nonce, first, blocks, in, out, far_bytes);
}

}  // namespace
}  // namespace cloister

// AES-256-CTR with AES-NI: one block per register. Included by AVX2 back ends only.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace cloister {

// Counter block `first` with the number still little endian, so that it can be added to.
inline __m128i aes_counter(const uint8_t* nonce, uint32_t first) {
  int last;
  std::memcpy(&last, nonce + 8, sizeof last);
  const __m128i start = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(nonce));
  return _mm_insert_epi32(_mm_insert_epi32(start, last, 2), static_cast<int>(first), 3);
}

// Keystream of kBlocks blocks from `counter` on. One round has a latency of 4 cycles and two start
// per cycle: eight blocks keep the unit busy.
template <int kBlocks>
inline __attribute__((always_inline)) void aes_keystream(const uint8_t* rounds, __m128i counter,
                                                         __m128i* state) {
  const auto* keys = reinterpret_cast<const __m128i*>(rounds);
  const __m128i order = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15, 14, 13, 12);
  const __m128i first = _mm_loadu_si128(keys);
#pragma GCC unroll 8
  for (int i = 0; i < kBlocks; ++i) {
    const __m128i number = _mm_add_epi32(counter, _mm_setr_epi32(0, 0, 0, i));
    state[i] = _mm_xor_si128(_mm_shuffle_epi8(number, order), first);
  }
#pragma GCC unroll 16
  for (int round = 1; round < 14; ++round) {
    const __m128i key = _mm_loadu_si128(keys + round);
#pragma GCC unroll 8
    for (int i = 0; i < kBlocks; ++i) state[i] = _mm_aesenc_si128(state[i], key);
  }
  const __m128i last = _mm_loadu_si128(keys + 14);
#pragma GCC unroll 8
  for (int i = 0; i < kBlocks; ++i) state[i] = _mm_aesenclast_si128(state[i], last);
}

}  // namespace cloister

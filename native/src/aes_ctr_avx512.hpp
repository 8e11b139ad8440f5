// AES-256-CTR with VAES: four blocks per register. Included by AVX-512 back ends only.
#pragma once
// GCC 12 takes the undefined pass-through operand inside its own intrinsics for a bug of ours.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace cloister {

struct VaesKeys {
  __m512i round[15];

  explicit VaesKeys(const uint8_t* rounds) {
    for (int i = 0; i < 15; ++i) {
      round[i] = _mm512_broadcast_i32x4(
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(rounds + 16 * i)));
    }
  }
};

// Counter blocks `first` .. `first` + 3 with the number still little endian, so that it can be
// added to; `counter_blocks` turns it round.
inline __m512i vaes_counter(const uint8_t* nonce, uint32_t first) {
  alignas(16) uint8_t start[16] = {};
  std::memcpy(start, nonce, 12);
  const __m512i base =
      _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(start)));
  const __m512i number = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3);
  const __m512i one = _mm512_set4_epi32(static_cast<int>(first), 0, 0, 0);
  return _mm512_add_epi32(base, _mm512_add_epi32(number, one));
}

inline __m512i vaes_step(uint32_t blocks) {
  return _mm512_set4_epi32(static_cast<int>(blocks), 0, 0, 0);
}

inline __m512i vaes_big_endian(__m512i counter) {
  const __m512i order =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15, 14, 13, 12));
  return _mm512_shuffle_epi8(counter, order);
}

// Keystream of kVectors runs of 16 words, which begin `stride` blocks apart: one run unless said.
template <int kVectors>
inline void vaes_keystream(const VaesKeys& keys, __m512i counter, __m512i* state,
                           uint32_t stride = 4) {
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) {
    const __m512i number = _mm512_add_epi32(counter, vaes_step(stride * static_cast<uint32_t>(i)));
    state[i] = _mm512_xor_si512(vaes_big_endian(number), keys.round[0]);
  }
#pragma GCC unroll 16
  for (int round = 1; round < 14; ++round) {
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      state[i] = _mm512_aesenc_epi128(state[i], keys.round[round]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) {
    state[i] = _mm512_aesenclast_epi128(state[i], keys.round[14]);
  }
}

}  // namespace cloister

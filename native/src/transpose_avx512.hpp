// The transposition of a square of 32-bit words that fills sixteen registers.
#pragma once
#include <immintrin.h>

namespace cloister {
namespace {

// Lane j of v[i] becomes lane i of v[j].
void transpose_square(__m512i (&v)[16]) {
  __m512i t[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  constexpr int kEven = 0x88, kOdd = 0xdd;  // of the four quarters of either operand
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(v[i], v[4 + i], kEven);
    t[4 + i] = _mm512_shuffle_i32x4(v[i], v[4 + i], kOdd);
    t[8 + i] = _mm512_shuffle_i32x4(v[8 + i], v[12 + i], kEven);
    t[12 + i] = _mm512_shuffle_i32x4(v[8 + i], v[12 + i], kOdd);
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], kEven);
    v[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], kEven);
    v[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], kOdd);
    v[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], kOdd);
  }
}

}  // namespace
}  // namespace cloister

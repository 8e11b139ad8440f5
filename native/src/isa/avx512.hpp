// AVX-512 as vectors of the kernels (portable.hpp says what they offer), squares of words, and
// VAES. Included by AVX-512 back ends only.
#pragma once
// GCC 12 takes the undefined pass-through operand inside its own intrinsics for a bug of ours.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "isa/int128.hpp"

namespace cloister {
namespace {

struct Avx512 {
  using F = __m512;
  using I = __m512i;
  using M = __mmask16;
  using L = __m512i;
  static constexpr int64_t kLanes = 16, kLongLanes = 8;
  static M first(int count) { return static_cast<M>((1u << count) - 1); }

  // ---- floats
  static F set(float v) { return _mm512_set1_ps(v); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load(const float* p, M m) { return _mm512_maskz_loadu_ps(m, p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static void store(float* p, F v, M m) { _mm512_mask_storeu_ps(p, m, v); }
  static F add(F x, F y) { return _mm512_add_ps(x, y); }
  static F sub(F x, F y) { return _mm512_sub_ps(x, y); }
  static F mul(F x, F y) { return _mm512_mul_ps(x, y); }
  static F div(F x, F y) { return _mm512_div_ps(x, y); }
  static F max(F x, F y) { return _mm512_max_ps(x, y); }
  static F min(F x, F y) { return _mm512_min_ps(x, y); }
  // max(v, 0), where v is no NaN, or one with a sign.
  static F from_zero(F v) {
    const __m512i bits = _mm512_castps_si512(v);
    return _mm512_castsi512_ps(_mm512_max_epi32(bits, _mm512_setzero_si512()));
  }
  // The smaller magnitude, with the sign of v.
  static F within(F v, F limit) { return _mm512_range_ps(v, limit, 0x2); }

  // ---- words
  static I set(uint32_t v) { return _mm512_set1_epi32(static_cast<int>(v)); }
  static I zero() { return _mm512_setzero_si512(); }
  static I load(const uint32_t* p) { return _mm512_loadu_si512(p); }
  static I load(const uint32_t* p, M m) { return _mm512_maskz_loadu_epi32(m, p); }
  static I load(const int16_t* p) { return _mm512_loadu_si512(p); }
  // The empty statement makes the loaded value opaque: the compiler cannot load it again.
  static I load_once(const uint32_t* p, auto... m) {
    I v = load(p, m...);
    __asm__ volatile("" : "+v"(v));
    return v;
  }
  static void store(uint32_t* p, I v) { _mm512_storeu_si512(p, v); }
  static void store(uint32_t* p, I v, M m) { _mm512_mask_storeu_epi32(p, m, v); }
  static void store_narrow(int16_t* p, I v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(v));
  }
  static void store_narrow(int16_t* p, I v, M m) {
    _mm256_mask_storeu_epi16(p, m, _mm512_cvtepi32_epi16(v));
  }
  static I add(I x, I y) { return _mm512_add_epi32(x, y); }
  static I sub(I x, I y) { return _mm512_sub_epi32(x, y); }
  static I mul(I x, I y) { return _mm512_mullo_epi32(x, y); }
  // The masked form of the shift: GCC 12 takes the plain one's header for a use of an unset value.
  static I shift_left_16(I v) { return _mm512_maskz_slli_epi32(0xFFFF, v, 16); }
  static I flip_sign(I v) { return _mm512_xor_si512(v, _mm512_set1_epi32(INT32_MIN)); }
  // vpdpwssd wraps (vpdpwssds would saturate), also inside the sum of the pair.
  static I multiply_add(I acc, I x, I w) { return _mm512_dpwssd_epi32(acc, x, w); }
  static F to_float(I v) { return _mm512_cvtepi32_ps(v); }
  static I round(F v) { return _mm512_cvtps_epi32(v); }
  // Without a mask: comparisons into masks wait for the units that multiply (Zen 4).
  static I count_changed(I counts, F before, F after) {
    const I changed = _mm512_xor_si512(_mm512_castps_si512(before), _mm512_castps_si512(after));
    return _mm512_add_epi32(counts, _mm512_min_epu32(changed, _mm512_set1_epi32(1)));
  }
  static uint32_t total(I counts) { return static_cast<uint32_t>(_mm512_reduce_add_epi32(counts)); }

  // ---- longs
  static L zero_long() { return _mm512_setzero_si512(); }
  static L set_long(uint64_t v) { return _mm512_set1_epi64(static_cast<long long>(v)); }
  static L load(const uint64_t* p) { return _mm512_loadu_si512(p); }
  static L widen(const uint32_t* p) {
    return _mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void narrow_long(int16_t* p, L v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi64_epi16(v));
  }
  static L add_long(L x, L y) { return _mm512_add_epi64(x, y); }
  static L sub_long(L x, L y) { return _mm512_sub_epi64(x, y); }
  static L and_long(L x, L y) { return _mm512_and_si512(x, y); }
  static L shift_right_long(L v, int bits) { return _mm512_srl_epi64(v, _mm_cvtsi32_si128(bits)); }
  static L multiply_long(L x, L y) { return _mm512_mul_epi32(x, y); }
  static I128 sum_long(L v) {
    // By halves, which leave room for the sum of eight.
    const __m512i low = _mm512_and_si512(v, _mm512_set1_epi64(UINT32_MAX));
    return I128{_mm512_reduce_add_epi64(_mm512_srai_epi64(v, 32))} * (int64_t{1} << 32) +
           _mm512_reduce_add_epi64(low);
  }
  static bool within_long(L v, int bits) {
    return below(add_long(v, set_long(uint64_t{1} << bits)), uint64_t{2} << bits);
  }
  static bool below(L v, uint64_t bound) {  // in every lane
    return _mm512_cmplt_epu64_mask(v, set_long(bound)) == 0xff;
  }
};

// Lane j of v[i] becomes lane i of v[j].
inline void transpose_square(__m512i (&v)[16]) {
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

// Round keys as AesSchedule has them: a broadcast would take the units that shuffle (Zen 4).
struct VaesKeys {
  const uint8_t* rounds;

  explicit VaesKeys(const uint8_t* of) : rounds(of) {}
  inline __attribute__((always_inline)) __m512i round(int i) const {
    return _mm512_load_si512(rounds + 64 * i);
  }
};

// Counter blocks `first` .. `first` + 3 with the number still little endian, so that it can be
// added to; `vaes_big_endian` turns it round.
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

// Keystream of kVectors runs of 16 words: by twos, which begin `stride` blocks apart, and the next
// two `pair` blocks further. One run unless said.
// beside(round) is what the caller wants done between two rounds, each of which waits for the one
// before.
constexpr int kVaesRounds = 14;
constexpr auto kNothing = [](int) {};

template <int kVectors, class Beside = decltype(kNothing)>
inline __attribute__((always_inline)) void vaes_keystream(const VaesKeys& keys, __m512i counter,
                                                          __m512i* state, uint32_t stride = 4,
                                                          uint32_t pair = 8,
                                                          const Beside& beside = kNothing) {
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) {
    const auto n = static_cast<uint32_t>(i);
    const __m512i number = _mm512_add_epi32(counter, vaes_step(n / 2 * pair + n % 2 * stride));
    state[i] = _mm512_xor_si512(vaes_big_endian(number), keys.round(0));
  }
#pragma GCC unroll 16
  for (int round = 1; round < kVaesRounds; ++round) {
    const __m512i key = keys.round(round);
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      state[i] = _mm512_aesenc_epi128(state[i], key);
    }
    beside(round - 1);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) {
    state[i] = _mm512_aesenclast_epi128(state[i], keys.round(kVaesRounds));
  }
  beside(kVaesRounds - 1);
}

}  // namespace
}  // namespace cloister

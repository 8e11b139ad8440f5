// AVX2 as vectors of the kernels (portable.hpp says what they offer), and AES-NI. Included by AVX2
// back ends only.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "isa/int128.hpp"

namespace cloister {
namespace {

struct Avx2 {
  using F = __m256;
  using I = __m256i;
  using M = __m256i;
  using L = __m256i;
  static constexpr int64_t kLanes = 8, kLongLanes = 4;
  static M first(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  // ---- floats
  static F set(float v) { return _mm256_set1_ps(v); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F load(const float* p, M m) { return _mm256_maskload_ps(p, m); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static void store(float* p, F v, M m) { _mm256_maskstore_ps(p, m, v); }
  static F add(F x, F y) { return _mm256_add_ps(x, y); }
  static F sub(F x, F y) { return _mm256_sub_ps(x, y); }
  static F mul(F x, F y) { return _mm256_mul_ps(x, y); }
  static F div(F x, F y) { return _mm256_div_ps(x, y); }
  static F max(F x, F y) { return _mm256_max_ps(x, y); }
  static F min(F x, F y) { return _mm256_min_ps(x, y); }
  static F within(F v, F limit) { return min(max(v, sub(_mm256_setzero_ps(), limit)), limit); }

  // ---- words
  static I set(uint32_t v) { return _mm256_set1_epi32(static_cast<int>(v)); }
  static I zero() { return _mm256_setzero_si256(); }
  static I load(const uint32_t* p) { return _mm256_loadu_si256(as<const I>(p)); }
  static I load(const uint32_t* p, M m) { return _mm256_maskload_epi32(as<const int>(p), m); }
  static I load(const int16_t* p) { return _mm256_loadu_si256(as<const I>(p)); }
  // The empty statement makes the loaded value opaque: the compiler cannot load it again.
  static I load_once(const uint32_t* p, auto... m) {
    I v = load(p, m...);
    __asm__ volatile("" : "+x"(v));
    return v;
  }
  static void store(uint32_t* p, I v) { _mm256_storeu_si256(as<I>(p), v); }
  static void store(uint32_t* p, I v, M m) { _mm256_maskstore_epi32(as<int>(p), m, v); }
  static void store_narrow(int16_t* p, I v) { _mm_storeu_si128(as<__m128i>(p), narrow(v)); }
  static void store_narrow(int16_t* p, I v, M m) {
    alignas(16) int16_t all[8];
    _mm_store_si128(as<__m128i>(all), narrow(v));
    const int count =
        __builtin_popcount(static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(m))));
    for (int i = 0; i < count; ++i) p[i] = all[i];
  }
  static I add(I x, I y) { return _mm256_add_epi32(x, y); }
  static I sub(I x, I y) { return _mm256_sub_epi32(x, y); }
  static I mul(I x, I y) { return _mm256_mullo_epi32(x, y); }
  static I shift_left_16(I v) { return _mm256_slli_epi32(v, 16); }
  static I flip_sign(I v) { return _mm256_xor_si256(v, _mm256_set1_epi32(INT32_MIN)); }
  // vpmaddwd's only overflow is 2 * (-2^15)^2 = 2^31, which it returns as -2^31: equal mod 2^32.
  static I multiply_add(I acc, I x, I w) { return _mm256_add_epi32(acc, _mm256_madd_epi16(x, w)); }
  static F to_float(I v) { return _mm256_cvtepi32_ps(v); }
  static I round(F v) { return _mm256_cvtps_epi32(v); }
  static I count_changed(I counts, F before, F after) {
    return sub(counts, _mm256_castps_si256(_mm256_cmp_ps(before, after, _CMP_NEQ_UQ)));
  }
  static uint32_t total(I counts) {
    const I pairs = _mm256_hadd_epi32(counts, counts);
    const I sums = _mm256_hadd_epi32(pairs, pairs);  // lanes 0 and 4: of either half
    return static_cast<uint32_t>(_mm256_extract_epi32(sums, 0)) +
           static_cast<uint32_t>(_mm256_extract_epi32(sums, 4));
  }

  // ---- longs
  static L zero_long() { return _mm256_setzero_si256(); }
  static L set_long(uint64_t v) { return _mm256_set1_epi64x(static_cast<long long>(v)); }
  static L load(const uint64_t* p) { return _mm256_loadu_si256(as<const L>(p)); }
  static L widen(const uint32_t* p) {
    return _mm256_cvtepu32_epi64(_mm_loadu_si128(as<const __m128i>(p)));
  }
  static void narrow_long(int16_t* p, L v) {
    const __m256i low = _mm256_shuffle_epi8(
        v, _mm256_set1_epi64x(0x0908'0100));  // two digits at the bottom of each half
    const auto first = static_cast<uint32_t>(_mm256_extract_epi32(low, 0));
    const auto second = static_cast<uint32_t>(_mm256_extract_epi32(low, 4));
    _mm_storeu_si64(p, _mm_cvtsi64_si128(static_cast<long long>(first | uint64_t{second} << 32)));
  }
  static L add_long(L x, L y) { return _mm256_add_epi64(x, y); }
  static L sub_long(L x, L y) { return _mm256_sub_epi64(x, y); }
  static L and_long(L x, L y) { return _mm256_and_si256(x, y); }
  static L shift_right_long(L v, int bits) { return _mm256_srl_epi64(v, _mm_cvtsi32_si128(bits)); }
  static L multiply_long(L x, L y) { return _mm256_mul_epi32(x, y); }
  static I128 sum_long(L v) {
    alignas(32) int64_t lanes[4];
    _mm256_store_si256(as<L>(lanes), v);
    return I128{lanes[0]} + lanes[1] + lanes[2] + lanes[3];
  }
  static bool within_long(L v, int bits) {
    bool inside = true;
    for (int i = 0; i < 4; ++i) {
      inside &= static_cast<uint64_t>(v[i]) + (uint64_t{1} << bits) < uint64_t{2} << bits;
    }
    return inside;
  }

 private:
  template <typename T>
  static T* as(auto* p) {
    return reinterpret_cast<T*>(p);
  }
  static __m128i narrow(I v) {
    return _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  }
};

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
    const __m128i key = _mm_loadu_si128(keys + 4 * round);  // each is there four times
#pragma GCC unroll 8
    for (int i = 0; i < kBlocks; ++i) state[i] = _mm_aesenc_si128(state[i], key);
  }
  const __m128i last = _mm_loadu_si128(keys + 4 * 14);
#pragma GCC unroll 8
  for (int i = 0; i < kBlocks; ++i) state[i] = _mm_aesenclast_si128(state[i], last);
}

}  // namespace
}  // namespace cloister

// The vectors that kernels are written over, in plain C++: the description of what the structs of
// avx2.hpp and avx512.hpp offer. A vector has kLanes floats (F) or words (I) of 32 bits, or
// kLongLanes longs (L) of 64 bits. A mask (M) selects the first lanes; lanes that a masked load
// does not select are zero.
//
// Everything here and in every kernel header is in an unnamed namespace: each instruction set has a
// translation unit of its own, and the linker must never merge two copies of one function.
// tools/weak_symbols.py looks for copies that it could merge.
#pragma once
#include <cstdint>
#include <cstring>

#include "isa/int128.hpp"

namespace cloister {
namespace {

// Four lanes in the compilers' own vector type, which every x86-64 has registers for.
struct Portable {
  using F = float __attribute__((vector_size(16)));
  using I = uint32_t __attribute__((vector_size(16)));  // words, so that arithmetic wraps
  using M = int;                                        // how many lanes
  using L = uint64_t;
  static constexpr int64_t kLanes = 4, kLongLanes = 1;
  static M first(int count) { return count; }

  // ---- floats; max and min give y where neither operand is larger, and where one is NaN
  static F set(float v) { return F{} + v; }
  static F load(const float* p) { return copied<F>(p, sizeof(F)); }
  static F load(const float* p, M m) { return copied<F>(p, m * sizeof(float)); }
  static void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }
  static void store(float* p, F v, M m) { std::memcpy(p, &v, m * sizeof(float)); }
  static F add(F x, F y) { return x + y; }
  static F sub(F x, F y) { return x - y; }
  static F mul(F x, F y) { return x * y; }
  static F div(F x, F y) { return x / y; }
  static F max(F x, F y) { return x > y ? x : y; }
  static F min(F x, F y) { return x < y ? x : y; }
  // v between -limit and limit; a NaN becomes the lowest.
  static F within(F v, F limit) { return min(max(v, -limit), limit); }

  // ---- words
  static I set(uint32_t v) { return I{} + v; }
  static I zero() { return I{}; }
  static I load(const uint32_t* p) { return copied<I>(p, sizeof(I)); }
  static I load(const uint32_t* p, M m) { return copied<I>(p, m * sizeof(uint32_t)); }
  static I load(const int16_t* p) { return copied<I>(p, sizeof(I)); }  // pairs of them
  // Reads memory that another process may write to, once. volatile: the compiler must not read it
  // a second time.
  static I load_once(const uint32_t* p) { return *reinterpret_cast<const volatile Anywhere*>(p); }
  static I load_once(const uint32_t* p, M m) {
    I v = {};
    for (M i = 0; i < m; ++i) v[i] = static_cast<const volatile uint32_t*>(p)[i];
    return v;
  }
  static void store(uint32_t* p, I v) { *reinterpret_cast<volatile Anywhere*>(p) = v; }
  static void store(uint32_t* p, I v, M m) {
    for (M i = 0; i < m; ++i) static_cast<volatile uint32_t*>(p)[i] = v[i];
  }
  static void store_narrow(int16_t* p, I v, M m = kLanes) {
    for (M i = 0; i < m; ++i) static_cast<volatile int16_t*>(p)[i] = static_cast<int16_t>(v[i]);
  }
  static I add(I x, I y) { return x + y; }
  static I sub(I x, I y) { return x - y; }
  static I mul(I x, I y) { return x * y; }
  static I shift_left_16(I v) { return v << 16; }
  static I flip_sign(I v) { return v ^ 0x80000000u; }
  // acc + the sum of both products of a lane's signed 16-bit halves; wraps. |x * w| <= 2^30 fits an
  // int, and the sums are taken in uint32. Which half comes first in memory does not matter: x and
  // w are read the same way.
  static I multiply_add(I acc, I x, I w) {
    return acc + (I)(low(x) * low(w)) + (I)(high(x) * high(w));
  }
  static F to_float(I v) { return __builtin_convertvector((Signed)v, F); }
  // The nearest integer, half to even; |v| <= 2^22. Beside 1.5 * 2^23 a float has no digits behind
  // the point, so that adding it rounds.
  static I round(F v) {
    const F shift = set(0x1.8p23f);
    return (I)(v + shift) - (I)shift;
  }
  static I count_changed(I count, F before, F after) { return count - (I)(before != after); }
  static uint32_t total(I count) { return uint64_t{count[0]} + count[1] + count[2] + count[3]; }

  // ---- longs
  static L zero_long() { return 0; }
  static L set_long(uint64_t v) { return v; }
  static L load(const uint64_t* p) { return *p; }
  static L widen(const uint32_t* p) { return *p; }
  static void narrow_long(int16_t* p, L v) { *p = static_cast<int16_t>(v); }
  static L add_long(L x, L y) { return x + y; }
  static L sub_long(L x, L y) { return x - y; }
  static L and_long(L x, L y) { return x & y; }
  static L shift_right_long(L v, int bits) { return v >> bits; }
  // Of the low words: the first without, the second with a sign.
  static L multiply_long(L x, L y) {
    return static_cast<L>(static_cast<int64_t>(x) * static_cast<int32_t>(y));
  }
  static I128 sum_long(L v) { return static_cast<int64_t>(v); }
  static bool within_long(L v, int bits) {  // |v| < 2^bits, in every lane
    return v + (L{1} << bits) < L{2} << bits;
  }

 private:
  using Signed = int32_t __attribute__((vector_size(16)));
  using Anywhere = uint32_t __attribute__((vector_size(16), aligned(4), may_alias));

  template <typename V>
  static V copied(const void* p, size_t bytes) {
    V v = {};
    std::memcpy(&v, p, bytes);
    return v;
  }
  static Signed low(I v) { return (Signed)(v << 16) >> 16; }
  static Signed high(I v) { return (Signed)v >> 16; }
};

}  // namespace
}  // namespace cloister

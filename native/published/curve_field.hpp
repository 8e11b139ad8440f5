// Arithmetic modulo p = 2^255 - 19 in five limbs of 51 bits, over one number (uint64_t) or eight at
// once (a vector of eight). Everything here takes the same time and touches the same memory for all
// values.
//
// Bounds. "Carried" means every limb below 2^51 + 2^15; products and `carry` are carried. A factor
// may have limbs below 2^54 in the portable form (128-bit accumulators: 5 * 19 * 2^108 < 2^128) and
// below 2^52 in the vector form, whose instruction ignores higher bits. `add` and `sub` therefore
// carry in the vector form and leave the limbs as they are in the portable one; there
//   add: carried + carried < 2^52.1;  sub: (anything < 2^53) + 2p - carried < 2^53.6,
// so one `add` or `sub` of products, or a `sub` or `add` of such a sum, is still a factor. The
// second argument of `sub` must be carried: 2p has limbs of at least 2^52 - 38.
//
// Everything is in an unnamed namespace on purpose: each back end is compiled for its own
// instruction set, and the linker must never merge the two copies of one function.
#pragma once
#include <cstdint>
#include <cstring>

#include "isa/debug_assert.hpp"
#include "isa/int128.hpp"

namespace cloister {
namespace {

constexpr uint64_t kMask51 = (uint64_t{1} << 51) - 1;
constexpr uint64_t kTwoP0 = 2 * (kMask51 - 18), kTwoP = 2 * kMask51;

// The word a limb lives in. A mask is a word of all ones or all zeros per lane.
template <class W>
constexpr int kLanes = sizeof(W) / sizeof(uint64_t);

template <class W>
inline W splat(uint64_t x) {
  return W{} + x;
}

// The compiler must not learn that a mask has only two values: it could branch on it. (There is no
// branch per lane that it could make of a vector.)
template <class W>
inline W opaque(W mask) {
  if constexpr (kLanes<W> == 1) __asm__("" : "+r"(mask));
  return mask;
}

template <class W>
inline W equal_mask(W a, W b) {
  const W differs = a ^ b;
  return opaque(((differs | (W{} - differs)) >> 63) - 1);
}

template <class W>
struct Fe {
  W v[5];
};

using Fe1 = Fe<uint64_t>;

// Is every limb, in every lane, below this bound?
template <class W>
inline bool limbs_below(const Fe<W>& a, uint64_t bound) {
  for (const W& limb : a.v) {
    uint64_t lanes[kLanes<W>];
    std::memcpy(lanes, &limb, sizeof(limb));
    for (const uint64_t lane : lanes) {
      if (lane >= bound) return false;
    }
  }
  return true;
}

constexpr uint64_t kCarried = (uint64_t{1} << 51) + (1 << 15);
template <class W>
constexpr uint64_t kFactor = uint64_t{1} << (kLanes<W> == 1 ? 54 : 52);

template <class W>
inline Fe<W> constant(const uint64_t (&limbs)[5]) {
  Fe<W> r;
  for (int i = 0; i < 5; ++i) r.v[i] = splat<W>(limbs[i]);
  return r;
}

template <class W>
inline Fe<W> small(uint64_t x) {
  return constant<W>({x, 0, 0, 0, 0});
}

// d of the curve -x^2 + y^2 = 1 + d x^2 y^2, 2d, sqrt(-1) and 1 / sqrt(-1 - d): RFC 9496, 4.1.
constexpr uint64_t kD[5] = {0x34dca135978a3, 0x1a8283b156ebd, 0x5e7a26001c029, 0x739c663a03cbb,
                            0x52036cee2b6ff};
constexpr uint64_t kTwoD[5] = {0x69b9426b2f159, 0x35050762add7a, 0x3cf44c0038052, 0x6738cc7407977,
                               0x2406d9dc56dff};
constexpr uint64_t kSqrtM1[5] = {0x61b274a0ea0b0, 0x0d5a5fc8f189d, 0x7ef5e9cbd0c60, 0x78595a6804c9e,
                                 0x2b8324804fc1d};
constexpr uint64_t kInvSqrtAMinusD[5] = {0x0fdaa805d40ea, 0x2eb482e57d339, 0x007610274bc58,
                                         0x6510b613dc8ff, 0x786c8905cfaff};

// ---- the two forms differ in this much

inline U128 wide(uint64_t x, uint64_t y) { return static_cast<U128>(x) * y; }

// Columns below 2^115 to carried limbs. c4 >> 51 is below 2^59.4 (column 4 has no factor 19) and 19
// times it may not fit in 64 bits, hence 128.
inline Fe1 carry_columns(U128 c0, U128 c1, U128 c2, U128 c3, U128 c4) {
  CLOISTER_DEBUG_ASSERT((c0 | c1 | c2 | c3 | c4) >> 115 == 0);
  Fe1 r;
  c1 += static_cast<uint64_t>(c0 >> 51);
  c2 += static_cast<uint64_t>(c1 >> 51);
  c3 += static_cast<uint64_t>(c2 >> 51);
  c4 += static_cast<uint64_t>(c3 >> 51);
  const U128 low = (static_cast<uint64_t>(c0) & kMask51) + (c4 >> 51) * 19;
  r.v[0] = static_cast<uint64_t>(low) & kMask51;
  r.v[1] = (static_cast<uint64_t>(c1) & kMask51) + static_cast<uint64_t>(low >> 51);
  r.v[2] = static_cast<uint64_t>(c2) & kMask51;
  r.v[3] = static_cast<uint64_t>(c3) & kMask51;
  r.v[4] = static_cast<uint64_t>(c4) & kMask51;
  CLOISTER_DEBUG_ASSERT(limbs_below(r, kCarried));
  return r;
}

inline Fe1 mul(const Fe1& a, const Fe1& b) {
  CLOISTER_DEBUG_ASSERT(limbs_below(a, kFactor<uint64_t>) && limbs_below(b, kFactor<uint64_t>));
  const uint64_t *x = a.v, *y = b.v;
  const uint64_t y1 = 19 * y[1], y2 = 19 * y[2], y3 = 19 * y[3], y4 = 19 * y[4];
  const U128 c0 =
      wide(x[0], y[0]) + wide(x[4], y1) + wide(x[3], y2) + wide(x[2], y3) + wide(x[1], y4);
  const U128 c1 =
      wide(x[1], y[0]) + wide(x[0], y[1]) + wide(x[4], y2) + wide(x[3], y3) + wide(x[2], y4);
  const U128 c2 =
      wide(x[2], y[0]) + wide(x[1], y[1]) + wide(x[0], y[2]) + wide(x[4], y3) + wide(x[3], y4);
  const U128 c3 =
      wide(x[3], y[0]) + wide(x[2], y[1]) + wide(x[1], y[2]) + wide(x[0], y[3]) + wide(x[4], y4);
  const U128 c4 =
      wide(x[4], y[0]) + wide(x[3], y[1]) + wide(x[2], y[2]) + wide(x[1], y[3]) + wide(x[0], y[4]);
  return carry_columns(c0, c1, c2, c3, c4);
}

inline Fe1 sqr(const Fe1& a) {
  CLOISTER_DEBUG_ASSERT(limbs_below(a, kFactor<uint64_t>));
  const uint64_t* x = a.v;
  const uint64_t x0 = 2 * x[0], x1 = 2 * x[1], x3 = 19 * x[3], x4 = 19 * x[4];
  const U128 c0 = wide(x[0], x[0]) + wide(x1, x4) + wide(2 * x[2], x3);
  const U128 c1 = wide(x[3], x3) + wide(x0, x[1]) + wide(2 * x[2], x4);
  const U128 c2 = wide(x[1], x[1]) + wide(x0, x[2]) + wide(2 * x[3], x4);
  const U128 c3 = wide(x[4], x4) + wide(x0, x[3]) + wide(x1, x[2]);
  const U128 c4 = wide(x[2], x[2]) + wide(x0, x[4]) + wide(x1, x[3]);
  return carry_columns(c0, c1, c2, c3, c4);
}

// ---- everything else is the same

// Limbs below 2^51 + 19 * 2^13 from limbs of any 64 bits.
template <class W>
inline Fe<W> carry(const Fe<W>& a) {
  Fe<W> r;
  const W c4 = a.v[4] >> 51;
  r.v[0] = (a.v[0] & kMask51) + c4 + (c4 << 1) + (c4 << 4);
  for (int i = 1; i < 5; ++i) r.v[i] = (a.v[i] & kMask51) + (a.v[i - 1] >> 51);
  CLOISTER_DEBUG_ASSERT(limbs_below(r, (uint64_t{1} << 51) + (19 << 13)));
  return r;
}

template <class W>
inline Fe<W> add(const Fe<W>& a, const Fe<W>& b) {
  Fe<W> r;
  for (int i = 0; i < 5; ++i) r.v[i] = a.v[i] + b.v[i];
  if constexpr (kLanes<W> > 1) return carry(r);
  return r;
}

template <class W>
inline Fe<W> sub(const Fe<W>& a, const Fe<W>& b) {
  CLOISTER_DEBUG_ASSERT(limbs_below(a, uint64_t{1} << 53) && limbs_below(b, kTwoP0 + 1));
  Fe<W> r;
  r.v[0] = a.v[0] + kTwoP0 - b.v[0];
  for (int i = 1; i < 5; ++i) r.v[i] = a.v[i] + kTwoP - b.v[i];
  if constexpr (kLanes<W> > 1) return carry(r);
  return r;
}

// The carried negative of a carried number.
template <class W>
inline Fe<W> neg(const Fe<W>& a) {
  return carry(sub(small<W>(0), a));
}

template <class W>
inline Fe<W> select(W mask, const Fe<W>& yes, const Fe<W>& no) {
  Fe<W> r;
  for (int i = 0; i < 5; ++i) r.v[i] = no.v[i] ^ (mask & (no.v[i] ^ yes.v[i]));
  return r;
}

// Canonical limbs. After `carry` the number is below 2p, so it exceeds p at most once, and does so
// exactly if adding 19 carries out of bit 255.
template <class W>
inline Fe<W> canonical(const Fe<W>& a) {
  Fe<W> t = carry(carry(a));
  W q = (t.v[0] + 19) >> 51;
  for (int i = 1; i < 5; ++i) q = (t.v[i] + q) >> 51;
  t.v[0] = t.v[0] + q + (q << 1) + (q << 4);
  for (int i = 0; i < 4; ++i) {
    t.v[i + 1] = t.v[i + 1] + (t.v[i] >> 51);
    t.v[i] = t.v[i] & kMask51;
  }
  t.v[4] = t.v[4] & kMask51;
  CLOISTER_DEBUG_ASSERT(limbs_below(t, uint64_t{1} << 51));
  return t;
}

// Little-endian 64-bit words of a canonical number, and back (bit 255 is dropped).
template <class W>
inline void to_words(const Fe<W>& a, W (&w)[4]) {
  w[0] = a.v[0] | a.v[1] << 51;
  w[1] = a.v[1] >> 13 | a.v[2] << 38;
  w[2] = a.v[2] >> 26 | a.v[3] << 25;
  w[3] = a.v[3] >> 39 | a.v[4] << 12;
}

template <class W>
inline Fe<W> from_words(const W (&w)[4]) {
  return {{w[0] & kMask51, (w[0] >> 51 | w[1] << 13) & kMask51, (w[1] >> 38 | w[2] << 26) & kMask51,
           (w[2] >> 25 | w[3] << 39) & kMask51, (w[3] >> 12) & kMask51}};
}

template <class W>
inline W same(const Fe<W>& a, const Fe<W>& b) {
  const Fe<W> x = canonical(a), y = canonical(b);
  W differs = W{};
  for (int i = 0; i < 5; ++i) differs = differs | (x.v[i] ^ y.v[i]);
  return equal_mask(differs, W{});
}

template <class W>
inline W is_zero(const Fe<W>& a) {
  return same(a, small<W>(0));
}

// RFC 9496: a number is negative when its canonical form is odd.
template <class W>
inline W is_negative(const Fe<W>& a) {
  return opaque(W{} - (canonical(a).v[0] & 1));
}

template <class W>
inline Fe<W> magnitude(const Fe<W>& a) {
  const Fe<W> t = carry(a);
  return select(is_negative(t), neg(t), t);
}

template <class W>
inline Fe<W> sqr_times(Fe<W> a, int times) {
  for (int i = 0; i < times; ++i) a = sqr(a);
  return a;
}

// a^(2^250 - 1) and a^11, from which both exponents below are a few steps.
template <class W>
inline Fe<W> pow_chain(const Fe<W>& a, Fe<W>& a11) {
  const Fe<W> a2 = sqr(a), a9 = mul(sqr_times(a2, 2), a);
  a11 = mul(a9, a2);
  const Fe<W> e5 = mul(sqr(a11), a9);
  const Fe<W> e10 = mul(sqr_times(e5, 5), e5);
  const Fe<W> e20 = mul(sqr_times(e10, 10), e10);
  const Fe<W> e40 = mul(sqr_times(e20, 20), e20);
  const Fe<W> e50 = mul(sqr_times(e40, 10), e10);
  const Fe<W> e100 = mul(sqr_times(e50, 50), e50);
  const Fe<W> e200 = mul(sqr_times(e100, 100), e100);
  return mul(sqr_times(e200, 50), e50);
}

// a^(p - 2): the inverse, and 0 for 0.
template <class W>
inline Fe<W> invert(const Fe<W>& a) {
  Fe<W> a11;
  const Fe<W> e250 = pow_chain(a, a11);
  return mul(sqr_times(e250, 5), a11);
}

// 1 / sqrt(v), or 1 / sqrt(sqrt(-1) v) where v is no square; the mask says which. RFC 9496, 4.2,
// with u = 1. v carried.
template <class W>
inline W inverse_sqrt(const Fe<W>& v, Fe<W>& root) {
  const Fe<W> v3 = mul(sqr(v), v), v7 = mul(sqr(v3), v);
  Fe<W> ignored;
  Fe<W> r = mul(v3, mul(sqr_times(pow_chain(v7, ignored), 2), v7));  // v3 * v7^((p - 5) / 8)
  const Fe<W> check = mul(v, sqr(r)), i = constant<W>(kSqrtM1);
  const Fe<W> one = small<W>(1), minus_one = neg(one);
  const W correct = same(check, one), flipped = same(check, minus_one);
  const W flipped_i = same(check, mul(minus_one, i));
  r = select(flipped | flipped_i, mul(r, i), r);
  root = magnitude(r);
  return correct | flipped;
}

}  // namespace
}  // namespace cloister

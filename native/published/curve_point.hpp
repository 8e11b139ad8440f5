// Points of edwards25519 (-x^2 + y^2 = 1 + d x^2 y^2) as representatives of ristretto255 elements
// (RFC 9496). The group is 2E / E[4], of prime order l: nothing of small order is left in it, and
// every element has one encoding.
//
// The addition law is complete (-1 is a square, d is not), so no case needs an exception. Source:
// Hisil, Wong, Carter, Dawson, "Twisted Edwards Curves Revisited", sections 3.1 and 3.3.
#pragma once
#include "curve_field.hpp"

namespace cloister {
namespace {

// x = X / Z, y = Y / Z, x y = T / Z. Coordinates are products, hence carried.
template <class W>
struct Point {
  Fe<W> x, y, z, t;
};

// A point prepared for being added: Y + X, Y - X, 2 Z, 2 d T; the last is carried.
template <class W>
struct Cached {
  Fe<W> plus, minus, z2, t2d;
};

template <class W>
inline Point<W> identity() {
  return {small<W>(0), small<W>(1), small<W>(1), small<W>(0)};
}

template <class W>
inline Point<W> generator() {
  return {constant<W>({0x62d608f25d51a, 0x412a4b4f6592a, 0x75b7171a4b31d, 0x1ff60527118fe,
                       0x216936d3cd6e5}),
          constant<W>({0x6666666666658, 0x4cccccccccccc, 0x1999999999999, 0x3333333333333,
                       0x6666666666666}),
          small<W>(1),
          constant<W>({0x68ab3a5b7dda3, 0x0eea2a5eadbb, 0x2af8df483c27e, 0x332b375274732,
                       0x67875f0fd78b7})};
}

template <class W>
inline Cached<W> cached(const Point<W>& p) {
  return {add(p.y, p.x), sub(p.y, p.x), add(p.z, p.z), mul(p.t, constant<W>(kTwoD))};
}

template <class W>
inline Point<W> negated(const Point<W>& p) {
  return {neg(p.x), p.y, p.z, neg(p.t)};
}

// The four factors of a sum: X = E F, Y = G H, Z = F G, T = E H.
template <class W>
struct Factors {
  Fe<W> e, f, g, h;

  Fe<W> x() const { return mul(e, f); }
  Fe<W> y() const { return mul(g, h); }
  Point<W> point() const { return {x(), y(), mul(f, g), mul(e, h)}; }
};

// p + q or, with `minus`, p - q: a negative swaps Y + X with Y - X and negates T.
template <class W>
inline Factors<W> sum(const Point<W>& p, const Cached<W>& q, bool minus) {
  const Fe<W> a = mul(sub(p.y, p.x), minus ? q.plus : q.minus);
  const Fe<W> b = mul(add(p.y, p.x), minus ? q.minus : q.plus);
  const Fe<W> c = mul(p.t, q.t2d), d = mul(p.z, q.z2);
  if (minus) return {sub(b, a), add(d, c), sub(d, c), add(b, a)};
  return {sub(b, a), sub(d, c), add(d, c), add(b, a)};
}

template <class W>
inline Point<W> add(const Point<W>& p, const Cached<W>& q) {
  return sum(p, q, false).point();
}

template <class W>
inline Point<W> twice(const Point<W>& p) {
  const Fe<W> a = sqr(p.x), b = sqr(p.y), z = sqr(p.z);
  const Fe<W> h = add(a, b), e = sub(h, sqr(add(p.x, p.y)));
  const Fe<W> g = sub(a, b), f = add(add(z, z), g);  // portable limbs below 2^52.1 + 2^52.6
  return {mul(e, f), mul(g, h), mul(f, g), mul(e, h)};
}

template <class W>
inline Point<W> twice(Point<W> p, int times) {
  for (int i = 0; i < times; ++i) p = twice(p);
  return p;
}

// RFC 9496, 4.3.1. The mask says where `words` is a canonical encoding; the identity is one.
template <class W>
inline W decode(const W (&words)[4], Point<W>& p) {
  const Fe<W> s = from_words(words), one = small<W>(1);
  const Fe<W> reduced = canonical(s);
  W differs = words[3] >> 63;  // bit 255
  for (int i = 0; i < 5; ++i) differs = differs | (reduced.v[i] ^ s.v[i]);
  const W canonical_and_even = equal_mask(differs | (words[0] & 1), W{});

  const Fe<W> ss = sqr(s), u1 = carry(sub(one, ss)), u2 = carry(add(one, ss)), u2_2 = sqr(u2);
  const Fe<W> du1 = mul(constant<W>(kD), sqr(u1));
  const Fe<W> v = neg(carry(add(du1, u2_2)));
  Fe<W> root;
  const W square = inverse_sqrt(mul(v, u2_2), root);
  const Fe<W> den_x = mul(root, u2), den_y = mul(mul(root, den_x), v);
  p.x = magnitude(mul(add(s, s), den_x));
  p.y = mul(u1, den_y);
  p.z = one;
  p.t = mul(p.x, p.y);
  return canonical_and_even & square & ~is_negative(p.t) & ~is_zero(p.y);
}

// RFC 9496, 4.3.2.
template <class W>
inline void encode(const Point<W>& p, W (&words)[4]) {
  const Fe<W> u1 = mul(add(p.z, p.y), sub(p.z, p.y)), u2 = mul(p.x, p.y);
  Fe<W> root;
  inverse_sqrt(mul(u1, sqr(u2)), root);
  const Fe<W> den1 = mul(root, u1), den2 = mul(root, u2), z_inv = mul(mul(den1, den2), p.t);
  const Fe<W> i = constant<W>(kSqrtM1);
  const W rotate = is_negative(mul(p.t, z_inv));
  const Fe<W> x = select(rotate, mul(p.y, i), p.x), y0 = select(rotate, mul(p.x, i), p.y);
  const Fe<W> den_inv = select(rotate, mul(den1, constant<W>(kInvSqrtAMinusD)), den2);
  const Fe<W> y = select(is_negative(mul(x, z_inv)), neg(y0), y0);
  to_words(canonical(magnitude(mul(den_inv, sub(p.z, y)))), words);
}

// A cheap name of an element: (X^2 + Y^2) / (X Y), that is y/x + x/y. Two points represent the same
// element exactly if their y/x agree or are each other's inverse (RFC 9496, 4.3.3), which is to say
// if this number agrees. It needs no square root, no Z, and one division that a batch can share. A
// negative element has the negative number. X Y = 0 exactly for the identity.
template <class W>
struct Ratio {
  Fe<W> over, under;
};

template <class W>
inline Ratio<W> ratio(const Fe<W>& x, const Fe<W>& y) {
  return {add(sqr(x), sqr(y)), mul(x, y)};
}

}  // namespace
}  // namespace cloister

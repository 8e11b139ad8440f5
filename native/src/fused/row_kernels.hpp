// The kernels of fused steps over rows, written once over a struct S: the vectors of isa/ with the
// sums of checks. A tail shorter than a vector runs the same step with a mask: `mask...` is empty
// or one.
//
// Check sums use biased, non-negative integers: z + 2^31 (32 bits) and q + 2^13 (14 bits);
// fused_step.cpp subtracts the bias times the sum of the coefficients at the end.
//
// S::Dot sums coefficient * integer lane by lane and must be folded every S::kBlock elements, or
// every S::kShortBlock when the integers have 14 bits;
// S::Column sums factor * integer, one factor for all lanes, for at most kColumnPixels integers of
// 14 bits a lane. S::Sum adds up residues and starts from and ends in CheckLanes. Back ends that
// sum requests by digits (limbs.hpp) have no S::Column and write factored requests themselves;
// AVX2, which writes all of them, has no S::kShortBlock either.
#pragma once
#include <algorithm>
#include <cstdint>

#include "fused/fused_kernels.hpp"
#include "isa/debug_assert.hpp"
#include "isa/prefetch.hpp"

namespace cloister::rows {
namespace {

constexpr uint32_t kShortBias = 1 << 13;

// step(j) for every whole vector of [begin, end), step(j, mask) for what is left.
template <class S, class Step>
inline __attribute__((always_inline)) void over(int64_t begin, int64_t end, Step&& step) {
  int64_t j = begin;
  for (; j + S::kLanes <= end; j += S::kLanes) step(j);
  if (j < end) step(j, S::first(static_cast<int>(end - j)));
}

// The streams a band reads take turns: while one kernel works on a tile, the lines it will need for
// the next one come into the first-level cache, and those of a later one into the second-level
// cache.
constexpr uintptr_t kAhead = 2048;  // elements: one tile

inline __attribute__((always_inline)) void fetch(const Ahead& ahead, const float* value) {
  const uintptr_t at = address(value);
  prefetch_line<1>(at + ahead.reply);
  prefetch_line<2>(at + ahead.reply + ahead.far);
  if (ahead.unblind == 0) return;
  prefetch_line<1>(at + ahead.unblind);
  prefetch_line<2>(at + ahead.unblind + ahead.far);
}
template <typename T>
inline __attribute__((always_inline)) void prefetch(const T* p) {
  prefetch_line<1>(address(p) + kAhead * sizeof(T));
}

// min and max return their second operand on a tie, as the instructions do; the reference says so
// too, which matters for the sign of zero.
template <class S, bool kResidual>
inline __attribute__((always_inline)) auto add_and_clamp(typename S::F f, const float* residual,
                                                         typename S::F lo, typename S::F hi,
                                                         auto... mask) {
  if constexpr (kResidual) f = S::add(f, S::load(residual, mask...));
  return S::min(S::max(f, lo), hi);
}

template <class S, bool kUnblind, bool kResidual, bool kCheck>
void reply(const ReplyRow& given, CheckLanes& lanes) {
  const ReplyRow row = given;  // no other code has its address: it stays in registers
  const int64_t c = row.channels;
  const auto lo = S::set(row.lo);
  const auto hi = S::set(row.hi);
  typename S::Sum sum(lanes);
  for (int64_t p = 0; p < row.pixels; ++p) {
    const uint32_t* in = row.reply + p * c;
    const uint32_t* unblind = kUnblind ? row.unblind + p * c : nullptr;
    const float* residual = kResidual ? row.residual + p * row.residual_pixel : nullptr;
    float* out = row.out + p * c;
    typename S::Dot dot;
    for (int64_t start = 0; start < c; start += S::kBlock) {
      if (kCheck && start != 0) dot.fold();
      over<S>(start, std::min(c, start + S::kBlock), [&](int64_t j, auto... mask) {
        // The only read of the reply: `z` goes into the check and into the value.
        auto z = S::load_once(in + j, mask...);
        if (row.alone) prefetch_behind(in + j, row.far_bytes);
        if constexpr (kResidual) prefetch(residual + j);
        if constexpr (kUnblind) {
          if (row.alone) prefetch_behind(unblind + j, row.far_bytes);
          z = S::sub(z, S::load(unblind + j, mask...));
        }
        if constexpr (kCheck) dot.add(S::coefficients(row, j), S::flip_sign(z), mask...);
        auto f = S::mul(S::to_float(z), S::load(row.scale + j, mask...));
        f = S::add(f, S::load(row.bias + j, mask...));
        f = add_and_clamp<S, kResidual>(f, residual + j, lo, hi, mask...);
        S::store(out + j, f, mask...);
      });
    }
    if constexpr (kCheck) sum.add(dot, row.a[p], p);
  }
  if constexpr (kCheck) sum.save(lanes);
}

template <class S>
void any_reply(const ReplyRow& row, CheckLanes& lanes) {
  const int kind = (row.unblind ? 4 : 0) + (row.residual ? 2 : 0) + (row.a ? 1 : 0);
  switch (kind) {
    case 0: return reply<S, false, false, false>(row, lanes);
    case 1: return reply<S, false, false, true>(row, lanes);
    case 2: return reply<S, false, true, false>(row, lanes);
    case 3: return reply<S, false, true, true>(row, lanes);
    case 4: return reply<S, true, false, false>(row, lanes);
    case 5: return reply<S, true, false, true>(row, lanes);
    case 6: return reply<S, true, true, false>(row, lanes);
    default: return reply<S, true, true, true>(row, lanes);
  }
}

template <class S, bool kResidual>
void values(const ValueRow& row) {
  const auto lo = S::set(row.lo);
  const auto hi = S::set(row.hi);
  for (int64_t p = 0; p < row.pixels; ++p) {
    const float* in = row.values + p * row.channels;
    const float* residual = kResidual ? row.residual + p * row.residual_pixel : nullptr;
    float* out = row.out + p * row.channels;
    over<S>(0, row.channels, [&](int64_t j, auto... mask) {
      prefetch(in + j);
      const auto f = S::load(in + j, mask...);
      S::store(out + j, add_and_clamp<S, kResidual>(f, residual + j, lo, hi, mask...), mask...);
    });
  }
}

template <class S>
void any_values(const ValueRow& row) {
  if (row.residual) return values<S, true>(row);
  ValueRow flat = row;  // without a residual, pixels need no separate treatment
  flat.channels *= row.pixels;
  flat.pixels = 1;
  return values<S, false>(flat);
}

// The centred integers of one vector: clip(round(f * inv_scale)), half to even, and how many were
// clipped. A NaN counts as clipped. Inputs and constants are no NaN, so it is one that arithmetic
// made, which is negative here: it becomes the lowest integer on every instruction set.
template <class S>
struct Quantiser {
  typename S::F inv_scale, limit;
  typename S::I clipped = S::zero();  // in each lane

  explicit Quantiser(const EmitRow& row)
      : inv_scale(S::set(row.inv_scale)), limit(S::set(row.limit)) {}

  inline __attribute__((always_inline)) typename S::I operator()(typename S::F f) {
    const auto scaled = S::mul(f, inv_scale);
    const auto inside = S::within(scaled, limit);
    clipped = S::count_changed(clipped, scaled, inside);
    return S::round(inside);
  }
};

enum class To { blinded, plain, nowhere };

// One vector of a request: its integers. The only write of the request: they never reach this
// memory without their pad.
template <class S, To kTo>
inline __attribute__((always_inline)) auto write(const EmitRow& row, int64_t at,
                                                 Quantiser<S>& quantise, auto... mask) {
  const auto q = quantise(S::load(row.values + at, mask...));
  if constexpr (kTo != To::nowhere) fetch(row.ahead, row.values + at);
  if constexpr (kTo == To::blinded) {
    S::store(row.blinded + at, S::add(q, S::load(row.pad + at, mask...)), mask...);
  } else if constexpr (kTo == To::plain) {
    __builtin_prefetch(row.plain + at + kAhead, 1, 2);
    S::store_narrow(row.plain + at, q, mask...);
  }
  return q;
}

// Integers that are written are counted, once.
template <class S, To kTo>
inline __attribute__((always_inline)) void tally(const Quantiser<S>& quantise, CheckLanes& lanes) {
  if constexpr (kTo != To::nowhere) lanes.clipped[0] += S::total(quantise.clipped);
}

// Every element with a coefficient of its own, or unchecked.
template <class S, bool kCheck, To kTo>
void emit(const EmitRow& row, CheckLanes& lanes) {
  Quantiser<S> quantise(row);
  const int64_t count = row.pixels * row.channels;
  typename S::Sum sum(lanes);
  for (int64_t start = 0; start < count; start += S::kShortBlock) {
    typename S::Dot dot;
    over<S>(start, std::min(count, start + S::kShortBlock), [&](int64_t j, auto... mask) {
      const auto q = write<S, kTo>(row, j, quantise, mask...);
      if constexpr (kCheck) {
        prefetch(row.t + j);
        dot.add(row.t + j, S::add(q, S::set(kShortBias)), mask...);
      }
    });
    if constexpr (kCheck) sum.add(dot);
  }
  if constexpr (kCheck) sum.save(lanes);
  tally<S, kTo>(quantise, lanes);
}

constexpr int kTermsAtOnce = 3;  // their accumulators fit the registers

// Terms `first` .. `first + kTerms` of coefficients that are products. Pixels outside: a pixel's
// sum is multiplied by its factor.
template <class S, int kTerms, To kTo>
void emit_pixels(const EmitRow& row, CheckLanes& lanes, int64_t first) {
  Quantiser<S> quantise(row);
  const uint64_t* factors = row.factors + first * row.factor_stride;
  const uint64_t* t = row.t + first * row.term_stride;
  const int64_t c = row.channels;
  typename S::Sum sum(lanes);
  for (int64_t p = 0; p < row.pixels; ++p) {
    typename S::Dot dots[kTerms];
    // A tile has fewer channels than S::kShortBlock.
    over<S>(0, c, [&](int64_t j, auto... mask) {
      const auto q = write<S, kTo>(row, p * c + j, quantise, mask...);
      const auto biased = S::add(q, S::set(kShortBias));
      for (int k = 0; k < kTerms; ++k) dots[k].add(t + k * row.term_stride + j, biased, mask...);
    });
    for (int k = 0; k < kTerms; ++k) sum.add(dots[k], factors[k * row.factor_stride + p], 0);
  }
  sum.save(lanes);
  tally<S, kTo>(quantise, lanes);
}

// The same with channels outside: what all pixels of a channel have in common is multiplied once.
template <class S, int kTerms, To kTo>
void emit_channels(const EmitRow& row, CheckLanes& lanes, int64_t first) {
  Quantiser<S> quantise(row);
  const uint64_t* factors = row.factors + first * row.factor_stride;
  const uint64_t* t = row.t + first * row.term_stride;
  typename S::Sum sum(lanes);
  over<S>(0, row.channels, [&](int64_t j, auto... mask) {
    typename S::Column columns[kTerms];
    for (int64_t p = 0; p < row.pixels; ++p) {
      const auto q = write<S, kTo>(row, p * row.channels + j, quantise, mask...);
      const auto biased = S::add(q, S::set(kShortBias));
      for (int k = 0; k < kTerms; ++k) columns[k].add(factors[k * row.factor_stride + p], biased);
    }
    for (int k = 0; k < kTerms; ++k) columns[k].into(sum, t + k * row.term_stride + j, mask...);
  });
  sum.save(lanes);
  tally<S, kTo>(quantise, lanes);
}

template <class S, int kTerms, To kTo>
void emit_factored(const EmitRow& row, CheckLanes& lanes, int64_t first) {
  return row.pixels < kLongRow ? emit_pixels<S, kTerms, kTo>(row, lanes, first)
                               : emit_channels<S, kTerms, kTo>(row, lanes, first);
}

template <class S, To kTo>
void emit_terms(const EmitRow& row, CheckLanes& lanes, int64_t first) {
  switch (std::min<int64_t>(row.terms - first, kTermsAtOnce)) {
    case 1: return emit_factored<S, 1, kTo>(row, lanes, first);
    case 2: return emit_factored<S, 2, kTo>(row, lanes, first);
    default: return emit_factored<S, 3, kTo>(row, lanes, first);
  }
}

// What is left of the check when the first terms were summed while the request was written.
template <class S>
void check_rest(const EmitRow& row, CheckLanes& lanes) {
  for (int64_t first = kTermsAtOnce; first < row.terms; first += kTermsAtOnce) {
    emit_terms<S, To::nowhere>(row, lanes, first);
  }
}

template <class S, To kTo>
void emit_elements(const EmitRow& row, CheckLanes& lanes) {
  return row.t ? emit<S, true, kTo>(row, lanes) : emit<S, false, kTo>(row, lanes);
}

template <class S, To kTo>
void emit_to(const EmitRow& row, CheckLanes& lanes) {
  if (row.t == nullptr || row.factors == nullptr) return emit_elements<S, kTo>(row, lanes);
  emit_terms<S, kTo>(row, lanes, 0);
  check_rest<S>(row, lanes);
}

template <class S>
void any_emit(const EmitRow& row, CheckLanes& lanes) {
  return row.blinded ? emit_to<S, To::blinded>(row, lanes) : emit_to<S, To::plain>(row, lanes);
}

}  // namespace
}  // namespace cloister::rows

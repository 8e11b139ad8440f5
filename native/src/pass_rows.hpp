// The micro-kernels of Pass, written once over a vector type S (see pass_portable.cpp for what S
// offers). A tail shorter than a vector runs the same step with a mask: `mask...` is empty or one.
//
// Check sums use biased, non-negative integers: z + 2^31 (32 bits) and q + 2^13 (14 bits);
// pass.cpp subtracts the bias times the sum of the coefficients at the end.
//
// S::Dot sums coefficient * integer lane by lane and must be folded every S::kBlock elements;
// S::Sum adds up residues and starts from and ends in CheckLanes.
#pragma once
#include <algorithm>
#include <cstdint>

#include "pass_backend.hpp"

namespace cloister::rows {

// step(j) for every whole vector of [begin, end), step(j, mask) for what is left.
template <class S, class Step>
inline __attribute__((always_inline)) void over(int64_t begin, int64_t end, Step&& step) {
  int64_t j = begin;
  for (; j + S::kLanes <= end; j += S::kLanes) step(j);
  if (j < end) step(j, S::first(static_cast<int>(end - j)));
}

// The streams a walk reads take turns: while one kernel works on a tile, the lines it will need for
// the next one come into the L2 cache (measured: VGG16's passes take 9.4 ms instead of 15.3 ms). A
// prefetch beyond the end of an array does nothing.
constexpr uintptr_t kAhead = 2048;  // elements: one tile
template <typename T>
inline __attribute__((always_inline)) void prefetch(const T* p) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(p) + kAhead * sizeof(T);
  __builtin_prefetch(reinterpret_cast<const void*>(address), 0, 2);
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
void reply(const ReplyRow& row, CheckLanes& lanes) {
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
        prefetch(in + j);
        if constexpr (kUnblind) {
          prefetch(unblind + j);
          z = S::sub(z, S::load(unblind + j, mask...));
        }
        if constexpr (kCheck) dot.add(row.b + j, S::flip_sign(z), mask...);
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

template <class S, bool kAverage>
void pool(const PoolRow& row) {
  const PoolShape& s = *row.shape;
  const int64_t c = row.channels;
  for (int64_t x = row.x_begin; x < row.x_end; ++x) {
    const int64_t at = x * s.sw - s.pl;
    // Window columns k with 0 <= at + k * dw < width.
    const int64_t begin = at < 0 ? (-at + s.dw - 1) / s.dw : 0;
    const int64_t end = std::min(s.kw, (row.width - at + s.dw - 1) / s.dw);
    const int64_t inside = row.row_count * (end - begin);
    const auto count = S::set(static_cast<float>(s.count_include_pad ? s.kh * s.kw : inside));
    const int64_t first = (at + begin * s.dw) * c;
    float* out = row.out + (x - row.x_begin) * c;
    over<S>(0, c, [&](int64_t j, auto... mask) {
      auto f = kAverage ? S::set(0.0f) : S::load(row.rows[0] + first + j, mask...);
      for (int64_t i = 0; i < row.row_count; ++i) {
        const float* in = row.rows[i] + first + j;
        for (int64_t k = begin; k < end; ++k, in += s.dw * c) {
          const auto v = S::load(in, mask...);
          f = kAverage ? S::add(f, v) : S::max(v, f);
        }
      }
      if constexpr (kAverage) f = S::div(f, count);
      S::store(out + j, f, mask...);
    });
  }
}

template <class S>
void any_pool(const PoolRow& row) {
  return row.shape->average ? pool<S, true>(row) : pool<S, false>(row);
}

// The centred integers of one vector: round(clip(f * inv_scale)), half to even.
template <class S>
inline __attribute__((always_inline)) auto quantised(typename S::F f, typename S::F inv_scale,
                                                     typename S::F low, typename S::F high) {
  return S::round(S::min(S::max(S::mul(f, inv_scale), low), high));
}

template <class S, bool kCheck, bool kBlinded>
void emit(const EmitRow& row, CheckLanes& lanes) {
  const auto inv_scale = S::set(row.inv_scale);
  const auto low = S::set(-row.qmax);
  const auto high = S::set(row.qmax);
  typename S::Sum sum(lanes);
  for (int64_t start = 0; start < row.count; start += S::kBlock) {
    typename S::Dot dot;
    over<S>(start, std::min(row.count, start + S::kBlock), [&](int64_t j, auto... mask) {
      const auto q = quantised<S>(S::load(row.values + j, mask...), inv_scale, low, high);
      if constexpr (kCheck) {
        prefetch(row.t + j);
        dot.add(row.t + j, S::plus(q, 1 << 13), mask...);
      }
      // The only write of the request: q never reaches this memory without its pad.
      if constexpr (kBlinded) {
        S::store(row.blinded + j, S::plus(q, S::load(row.pad + j, mask...)), mask...);
      } else {
        S::store_narrow(row.plain + j, q, mask...);
      }
    });
    if constexpr (kCheck) sum.add(dot);
  }
  if constexpr (kCheck) sum.save(lanes);
}

template <class S>
void any_emit(const EmitRow& row, CheckLanes& lanes) {
  if (row.t)
    return row.blinded ? emit<S, true, true>(row, lanes) : emit<S, true, false>(row, lanes);
  return row.blinded ? emit<S, false, true>(row, lanes) : emit<S, false, false>(row, lanes);
}

}  // namespace cloister::rows

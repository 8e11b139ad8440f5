// AVX-512 with IFMA for the check sums and VAES for the pads.
#include "aes_ctr_avx512.hpp"
#include "p52_avx512.hpp"
#include "pass_rows.hpp"

namespace cloister {
namespace {

struct Avx512 {
  using F = __m512;
  using I = __m512i;
  using M = __mmask16;
  static constexpr int64_t kLanes = 16;
  static constexpr int64_t kBlock = 16 * 2000;  // 2000 additions per accumulator: see Dot
  static constexpr int64_t kShortBlock = kBlock;
  static M first(int count) { return static_cast<M>((1u << count) - 1); }

  static F set(float v) { return _mm512_set1_ps(v); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load(const float* p, M m) { return _mm512_maskz_loadu_ps(m, p); }
  static I load(const uint32_t* p) { return _mm512_loadu_si512(p); }
  static I load(const uint32_t* p, M m) { return _mm512_maskz_loadu_epi32(m, p); }
  // The empty statement makes the loaded value opaque: the compiler cannot load it again.
  static I load_once(const uint32_t* p, auto... m) {
    I v = load(p, m...);
    __asm__ volatile("" : "+v"(v));
    return v;
  }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static void store(float* p, F v, M m) { _mm512_mask_storeu_ps(p, m, v); }
  static void store(uint32_t* p, I v) { _mm512_storeu_si512(p, v); }
  static void store(uint32_t* p, I v, M m) { _mm512_mask_storeu_epi32(p, m, v); }
  static void store_narrow(int16_t* p, I v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(v));
  }
  static void store_narrow(int16_t* p, I v, M m) {
    _mm256_mask_storeu_epi16(p, m, _mm512_cvtepi32_epi16(v));
  }
  static F add(F x, F y) { return _mm512_add_ps(x, y); }
  static F mul(F x, F y) { return _mm512_mul_ps(x, y); }
  static F div(F x, F y) { return _mm512_div_ps(x, y); }
  static F max(F x, F y) { return _mm512_max_ps(x, y); }
  static F min(F x, F y) { return _mm512_min_ps(x, y); }
  static F to_float(I v) { return _mm512_cvtepi32_ps(v); }
  static I round(F v) { return _mm512_cvtps_epi32(v); }
  static I plus(I x, I y) { return _mm512_add_epi32(x, y); }
  static I plus(I x, int y) { return _mm512_add_epi32(x, _mm512_set1_epi32(y)); }
  static F sub(F x, F y) { return _mm512_sub_ps(x, y); }
  static I sub(I x, I y) { return _mm512_sub_epi32(x, y); }
  static I flip_sign(I v) { return _mm512_xor_si512(v, _mm512_set1_epi32(INT32_MIN)); }

  // Lanes 0-7 and 8-15 of the integers have accumulators of their own: four chains hide the
  // latency of IFMA. One addition to each per step.
  struct Dot {
    I lo0 = _mm512_setzero_si512(), hi0 = lo0, lo1 = lo0, hi1 = lo0;

    void add(const uint64_t* coefficients, I value) {
      accumulate(_mm512_loadu_si512(coefficients), _mm512_loadu_si512(coefficients + 8), value);
    }
    void add(const uint64_t* coefficients, I value, M m) {
      accumulate(_mm512_maskz_loadu_epi64(static_cast<__mmask8>(m), coefficients),
                 _mm512_maskz_loadu_epi64(static_cast<__mmask8>(m >> 8), coefficients + 8), value);
    }
    void accumulate(I c0, I c1, I value) {
      const I v0 = _mm512_cvtepu32_epi64(_mm512_castsi512_si256(value));
      const I v1 = _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64(value, 1));
      lo0 = _mm512_madd52lo_epu64(lo0, c0, v0);
      hi0 = _mm512_madd52hi_epu64(hi0, c0, v0);
      lo1 = _mm512_madd52lo_epu64(lo1, c1, v1);
      hi1 = _mm512_madd52hi_epu64(hi1, c1, v1);
    }
    // lo: below 2^52 + 2^18 folded, plus 47 * 2000 * 2^32 < 2^49, so below 2^53 as a start.
    void fold() {
      const I fold = _mm512_set1_epi64(kFold);
      lo0 = _mm512_madd52lo_epu64(fold52(lo0), hi0, fold);
      lo1 = _mm512_madd52lo_epu64(fold52(lo1), hi1, fold);
      hi0 = hi1 = _mm512_setzero_si512();
    }
    // Below 2^52. Since the last fold: lo0 + lo1 < 2 * (2000 + 2) * 2^52, hi0 + hi1 < 4000 * 2^32,
    // 47 times which is below 2^52. Together below 4005 * 2^52, which folds to less than
    // 2^52 + 2^18, which folds to less than 2^52.
    I residue() const {
      const I lo = _mm512_add_epi64(lo0, lo1);
      const I hi = _mm512_add_epi64(hi0, hi1);
      return fold52(fold52(_mm512_madd52lo_epu64(lo, hi, _mm512_set1_epi64(kFold))));
    }
  };

  // Lanes 0-7 and 8-15 as in Dot; the caller adds no more than 1024 products to each.
  struct Column {
    I lo0 = _mm512_setzero_si512(), hi0 = lo0, lo1 = lo0, hi1 = lo0;

    void add(uint64_t factor, I value) {
      const I f = _mm512_set1_epi64(static_cast<long long>(factor));
      const I v0 = _mm512_cvtepu32_epi64(_mm512_castsi512_si256(value));
      const I v1 = _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64(value, 1));
      lo0 = _mm512_madd52lo_epu64(lo0, f, v0);
      hi0 = _mm512_madd52hi_epu64(hi0, f, v0);
      lo1 = _mm512_madd52lo_epu64(lo1, f, v1);
      hi1 = _mm512_madd52hi_epu64(hi1, f, v1);
    }
    void into(auto& sum, const uint64_t* coefficients) const {
      sum.add(residue(lo0, hi0), _mm512_loadu_si512(coefficients));
      sum.add(residue(lo1, hi1), _mm512_loadu_si512(coefficients + 8));
    }
    void into(auto& sum, const uint64_t* coefficients, M m) const {
      sum.add(residue(lo0, hi0), _mm512_maskz_loadu_epi64(static_cast<__mmask8>(m), coefficients));
      sum.add(residue(lo1, hi1),
              _mm512_maskz_loadu_epi64(static_cast<__mmask8>(m >> 8), coefficients + 8));
    }
    // Below 2^52: lo < 1024 * 2^52 and 47 hi < 47 * 1024 * 2^14 < 2^52 are together below
    // 1025 * 2^52, which folds to less than 2^52 + 2^18, which folds to less than 2^52.
    static I residue(I lo, I hi) {
      return fold52(fold52(_mm512_madd52lo_epu64(lo, hi, _mm512_set1_epi64(kFold))));
    }
  };

  struct Sum {
    I lo, hi;
    explicit Sum(const CheckLanes& lanes)
        : lo(_mm512_load_si512(lanes.lane)), hi(_mm512_setzero_si512()) {}
    // `index` counts the additions: both halves are below 2^52, so 2048 of them fit.
    void add(const Dot& dot, uint64_t factor, int64_t index) {
      const I residue = dot.residue();
      const I f = _mm512_set1_epi64(static_cast<long long>(factor));
      lo = _mm512_madd52lo_epu64(lo, residue, f);
      hi = _mm512_madd52hi_epu64(hi, residue, f);
      if ((index & 2047) == 2047) {
        lo = fold52(lo);
        hi = fold52(hi);
      }
    }
    void add(const Dot& dot) { lo = fold52(_mm512_add_epi64(lo, dot.residue())); }
    // Both below 2^52: 1024 of them fit, and a row of a tile has no more.
    void add(I residue, I factors) {
      lo = _mm512_madd52lo_epu64(lo, residue, factors);
      hi = _mm512_madd52hi_epu64(hi, residue, factors);
    }
    void save(CheckLanes& lanes) const { _mm512_store_si512(lanes.lane, reduce52(lo, hi)); }
  };
};

constexpr int kVectors = 4;  // AES waits for itself, so four keystreams are made side by side

// The only write of the request: q never reaches this memory without its pad.
template <bool kStream>
inline __attribute__((always_inline)) void store_blinded(uint32_t* out, __m512i q, __m512i pad,
                                                         auto... mask) {
  const __m512i blinded = Avx512::plus(q, pad);
  if constexpr (kStream) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(out), blinded);
  } else {
    Avx512::store(out, blinded, mask...);
  }
}

// step(j, pad) for every whole vector of `count` words, step(j, pad, mask) for what is left; the
// pads are the keystream from `counter` on.
template <class Step>
inline __attribute__((always_inline)) void over_pads(const VaesKeys& keys, __m512i counter,
                                                     int64_t count, Step&& step) {
  constexpr int64_t kGroup = kVectors * Avx512::kLanes;
  __m512i pad[kVectors];
  int64_t j = 0;
  for (; j + kGroup <= count; j += kGroup) {
    vaes_keystream<kVectors>(keys, counter, pad);
    counter = _mm512_add_epi32(counter, vaes_step(4 * kVectors));
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) step(j + i * Avx512::kLanes, pad[i]);
  }
  for (; j < count; j += Avx512::kLanes) {
    vaes_keystream<1>(keys, counter, pad);
    counter = _mm512_add_epi32(counter, vaes_step(4));
    const int64_t left = count - j;
    step(j, pad[0], Avx512::first(static_cast<int>(left < Avx512::kLanes ? left : 16)));
  }
}

// rows::emit with the pad made on the way: while AES waits for itself, the other units quantise.
// kStream: past the caches, which spares reading the lines that are about to be overwritten.
template <bool kCheck, bool kStream>
void emit_blinded(const EmitRow& row, CheckLanes& lanes) {
  const VaesKeys keys(row.rounds);
  const __m512 inv_scale = Avx512::set(row.inv_scale);
  const __m512 low = Avx512::set(-row.qmax);
  const __m512 high = Avx512::set(row.qmax);
  const int64_t count = row.pixels * row.channels;
  Avx512::Sum sum(lanes);
  Avx512::Dot dot;
  const auto step = [&](int64_t j, __m512i pad, auto... mask) __attribute__((always_inline)) {
    const __m512 f = Avx512::load(row.values + j, mask...);
    rows::fetch(row.ahead, j);
    const __m512i q = rows::quantised<Avx512>(f, inv_scale, low, high);
    if constexpr (kCheck) {
      rows::prefetch(row.t + j);
      rows::prefetch(row.t + j + 8);
      dot.add(row.t + j, Avx512::plus(q, rows::kShortBias), mask...);
    }
    store_blinded<kStream>(row.blinded + j, q, pad, mask...);
  };
  over_pads(keys, vaes_counter(row.nonce, row.first_block), count, step);
  if constexpr (kCheck) {
    sum.add(dot);
    sum.save(lanes);
  }
}

// rows::emit_channels with the pads of four pixels at a time.
template <int kTerms, bool kStream>
void emit_channels(const EmitRow& row, CheckLanes& lanes) {
  const VaesKeys keys(row.rounds);
  const __m512 inv_scale = Avx512::set(row.inv_scale);
  const __m512 low = Avx512::set(-row.qmax);
  const __m512 high = Avx512::set(row.qmax);
  const int64_t c = row.channels;
  const auto pixel_blocks = static_cast<uint32_t>(c / 4);
  Avx512::Sum sum(lanes);
  rows::over<Avx512>(0, c, [&](int64_t j, auto... mask) {
    Avx512::Column columns[kTerms];
    __m512i counter = vaes_counter(row.nonce, row.first_block + static_cast<uint32_t>(j / 4));
    const auto step = [&](int64_t p, __m512i pad) __attribute__((always_inline)) {
      const __m512 f = Avx512::load(row.values + p * c + j, mask...);
      rows::fetch(row.ahead, p * c + j);
      const __m512i q = rows::quantised<Avx512>(f, inv_scale, low, high);
      const __m512i biased = Avx512::plus(q, rows::kShortBias);
#pragma GCC unroll 3
      for (int k = 0; k < kTerms; ++k) {
        columns[k].add(row.factors[k * row.factor_stride + p], biased);
      }
      store_blinded<kStream>(row.blinded + p * c + j, q, pad, mask...);
    };
    __m512i pad[kVectors];
    int64_t p = 0;
    for (; p + kVectors <= row.pixels; p += kVectors) {
      vaes_keystream<kVectors>(keys, counter, pad, pixel_blocks);
      counter = _mm512_add_epi32(counter, vaes_step(kVectors * pixel_blocks));
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) step(p + i, pad[i]);
    }
    for (; p < row.pixels; ++p) {
      vaes_keystream<1>(keys, counter, pad);
      counter = _mm512_add_epi32(counter, vaes_step(pixel_blocks));
      step(p, pad[0]);
    }
#pragma GCC unroll 3
    for (int k = 0; k < kTerms; ++k) {
      columns[k].into(sum, row.t + k * row.term_stride + j, mask...);
    }
  });
  sum.save(lanes);
}

// rows::emit_pixels with the pads of four vectors at a time.
template <int kTerms, bool kStream>
void emit_pixels(const EmitRow& row, CheckLanes& lanes) {
  const VaesKeys keys(row.rounds);
  const __m512 inv_scale = Avx512::set(row.inv_scale);
  const __m512 low = Avx512::set(-row.qmax);
  const __m512 high = Avx512::set(row.qmax);
  const int64_t c = row.channels;
  Avx512::Sum sum(lanes);
  for (int64_t p = 0; p < row.pixels; ++p) {
    Avx512::Dot dots[kTerms];
    const auto step = [&](int64_t j, __m512i pad, auto... mask) __attribute__((always_inline)) {
      const __m512 f = Avx512::load(row.values + p * c + j, mask...);
      rows::fetch(row.ahead, p * c + j);
      const __m512i q = rows::quantised<Avx512>(f, inv_scale, low, high);
      const __m512i biased = Avx512::plus(q, rows::kShortBias);
#pragma GCC unroll 3
      for (int k = 0; k < kTerms; ++k) {
        dots[k].add(row.t + k * row.term_stride + j, biased, mask...);
      }
      store_blinded<kStream>(row.blinded + p * c + j, q, pad, mask...);
    };
    const uint32_t block = row.first_block + static_cast<uint32_t>(p * c / 4);
    over_pads(keys, vaes_counter(row.nonce, block), c, step);
#pragma GCC unroll 3
    for (int k = 0; k < kTerms; ++k) sum.add(dots[k], row.factors[k * row.factor_stride + p], 0);
  }
  sum.save(lanes);
}

template <int kTerms, bool kStream>
void emit_factored(const EmitRow& row, CheckLanes& lanes) {
  return row.pixels < rows::kLongRow ? emit_pixels<kTerms, kStream>(row, lanes)
                                     : emit_channels<kTerms, kStream>(row, lanes);
}

// Streaming stores need whole cache lines.
bool fills_lines(const EmitRow& row) {
  return reinterpret_cast<uintptr_t>(row.blinded) % 64 == 0 && row.channels % Avx512::kLanes == 0;
}

template <bool kStream>
void emit_blinded_to(const EmitRow& row, CheckLanes& lanes) {
  if (row.t == nullptr) return emit_blinded<false, kStream>(row, lanes);
  if (row.factors == nullptr) return emit_blinded<true, kStream>(row, lanes);
  switch (std::min<int64_t>(row.terms, rows::kTermsAtOnce)) {
    case 1: return emit_factored<1, kStream>(row, lanes);
    case 2: return emit_factored<2, kStream>(row, lanes);
    default: emit_factored<3, kStream>(row, lanes);
  }
  rows::check_rest<Avx512>(row, lanes);
}

void any_emit_blinded(const EmitRow& row, CheckLanes& lanes) {
  const bool stream = row.stream && fills_lines(row);
  return stream ? emit_blinded_to<true>(row, lanes) : emit_blinded_to<false>(row, lanes);
}

// Streaming stores are weakly ordered: without this the worker could be told of a request before it
// is there.
void finish() { _mm_sfence(); }

}  // namespace

const PassBackend kPassAvx512{rows::any_reply<Avx512>,  rows::any_values<Avx512>,
                              rows::any_window<Avx512>, rows::any_emit<Avx512>,
                              any_emit_blinded,         finish};

}  // namespace cloister

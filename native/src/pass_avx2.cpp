// AVX2: eight lanes, check sums from 32-bit products.
#include <immintrin.h>

#include "p52.hpp"
#include "pass_rows.hpp"
#include "pass_windows.hpp"

namespace cloister {
namespace {

struct Avx2 {
  using F = __m256;
  using I = __m256i;
  using M = __m256i;
  static constexpr int64_t kLanes = 8;
  static constexpr int64_t kBlock = 8 * 16;  // see Dot
  static constexpr int64_t kShortBlock = int64_t{1} << 22;
  static M first(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  static const int* words(const uint32_t* p) { return reinterpret_cast<const int*>(p); }
  static F set(float v) { return _mm256_set1_ps(v); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F load(const float* p, M m) { return _mm256_maskload_ps(p, m); }
  static I load(const uint32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static I load(const uint32_t* p, M m) { return _mm256_maskload_epi32(words(p), m); }
  // The empty statement makes the loaded value opaque: the compiler cannot load it again.
  static I load_once(const uint32_t* p, auto... m) {
    I v = load(p, m...);
    __asm__ volatile("" : "+x"(v));
    return v;
  }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static void store(float* p, F v, M m) { _mm256_maskstore_ps(p, m, v); }
  static void store(uint32_t* p, I v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static void store(uint32_t* p, I v, M m) {
    _mm256_maskstore_epi32(reinterpret_cast<int*>(p), m, v);
  }
  static __m128i narrow(I v) {
    return _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  }
  static void store_narrow(int16_t* p, I v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(v));
  }
  static void store_narrow(int16_t* p, I v, M m) {
    alignas(16) int16_t all[8];
    _mm_store_si128(reinterpret_cast<__m128i*>(all), narrow(v));
    const int count =
        __builtin_popcount(static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(m))));
    for (int i = 0; i < count; ++i) p[i] = all[i];
  }
  static F add(F x, F y) { return _mm256_add_ps(x, y); }
  static F mul(F x, F y) { return _mm256_mul_ps(x, y); }
  static F div(F x, F y) { return _mm256_div_ps(x, y); }
  static F max(F x, F y) { return _mm256_max_ps(x, y); }
  static F min(F x, F y) { return _mm256_min_ps(x, y); }
  static F to_float(I v) { return _mm256_cvtepi32_ps(v); }
  static I round(F v) { return _mm256_cvtps_epi32(v); }
  static I plus(I x, I y) { return _mm256_add_epi32(x, y); }
  static I plus(I x, int y) { return _mm256_add_epi32(x, _mm256_set1_epi32(y)); }
  static F sub(F x, F y) { return _mm256_sub_ps(x, y); }
  static I sub(I x, I y) { return _mm256_sub_epi32(x, y); }
  static I flip_sign(I v) { return _mm256_xor_si256(v, _mm256_set1_epi32(INT32_MIN)); }

  // Coefficients split into 26-bit halves: a product with 32 bits is below 2^58, and 2 * 16 of
  // them between folds stay below 2^63. With 14 bits it is below 2^40, and 2^22 of them fit.
  struct Dot {
    I low = _mm256_setzero_si256(), high = low;
    U128 folded = 0;

    void add(const uint64_t* coefficients, I value) {
      const auto* p = reinterpret_cast<const __m256i*>(coefficients);
      accumulate(_mm256_loadu_si256(p), _mm256_castsi256_si128(value));
      accumulate(_mm256_loadu_si256(p + 1), _mm256_extracti128_si256(value, 1));
    }
    void add(const uint64_t* coefficients, I value, M m) {
      const auto* p = reinterpret_cast<const long long*>(coefficients);
      const I m0 = _mm256_cvtepi32_epi64(_mm256_castsi256_si128(m));
      const I m1 = _mm256_cvtepi32_epi64(_mm256_extracti128_si256(m, 1));
      accumulate(_mm256_maskload_epi64(p, m0), _mm256_castsi256_si128(value));
      accumulate(_mm256_maskload_epi64(p + 4, m1), _mm256_extracti128_si256(value, 1));
    }
    void accumulate(I coefficients, __m128i value) {
      const I v = _mm256_cvtepu32_epi64(value);
      const I low26 = _mm256_and_si256(coefficients, _mm256_set1_epi64x((1 << 26) - 1));
      low = _mm256_add_epi64(low, _mm256_mul_epu32(low26, v));
      high = _mm256_add_epi64(high, _mm256_mul_epu32(_mm256_srli_epi64(coefficients, 26), v));
    }
    U128 total() const {
      alignas(32) uint64_t l[4], h[4];
      _mm256_store_si256(reinterpret_cast<__m256i*>(l), low);
      _mm256_store_si256(reinterpret_cast<__m256i*>(h), high);
      U128 sum = folded;
      for (int i = 0; i < 4; ++i) sum += l[i] + (static_cast<U128>(h[i]) << 26);
      return sum;
    }
    void fold() {
      folded = reduce(total());
      low = high = _mm256_setzero_si256();
    }
  };

  struct Sum;

  // Two halves of the lanes, two halves of the factor: products below 2^40, 2^10 of them.
  struct Column {
    I low[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()}, high[2] = {low[0], low[0]};
    void add(uint64_t factor, I value) {
      const I low26 = _mm256_set1_epi64x(static_cast<long long>(factor & ((1 << 26) - 1)));
      const I high26 = _mm256_set1_epi64x(static_cast<long long>(factor >> 26));
      const I half[2] = {_mm256_cvtepu32_epi64(_mm256_castsi256_si128(value)),
                         _mm256_cvtepu32_epi64(_mm256_extracti128_si256(value, 1))};
      for (int i = 0; i < 2; ++i) {
        low[i] = _mm256_add_epi64(low[i], _mm256_mul_epu32(half[i], low26));
        high[i] = _mm256_add_epi64(high[i], _mm256_mul_epu32(half[i], high26));
      }
    }
    void into(Sum& total, const uint64_t* coefficients) const { add_to(total, coefficients, 8); }
    void into(Sum& total, const uint64_t* coefficients, M m) const {
      const int lanes = _mm256_movemask_ps(_mm256_castsi256_ps(m));
      add_to(total, coefficients, __builtin_popcount(static_cast<unsigned>(lanes)));
    }
    void add_to(Sum& total, const uint64_t* coefficients, int lanes) const;
  };

  struct Sum {
    uint64_t residue;
    explicit Sum(const CheckLanes& lanes) : residue(lanes.lane[0]) {}
    void add(const Dot& dot, uint64_t factor, int64_t) {
      residue = reduce(static_cast<U128>(reduce(dot.total())) * factor + residue);
    }
    void add(const Dot& dot) { residue = reduce(dot.total() + residue); }
    void save(CheckLanes& lanes) const { lanes.lane[0] = residue; }
  };
};

void Avx2::Column::add_to(Sum& total, const uint64_t* coefficients, int lanes) const {
  alignas(32) uint64_t l[8], h[8];
  for (int i = 0; i < 2; ++i) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(l + 4 * i), low[i]);
    _mm256_store_si256(reinterpret_cast<__m256i*>(h + 4 * i), high[i]);
  }
  U128 sum = total.residue;
  for (int i = 0; i < lanes; ++i) {
    // Below 2^77 before and below 2^52 after the reduction: eight products are below 2^108.
    sum += static_cast<U128>(reduce(l[i] + (static_cast<U128>(h[i]) << 26))) * coefficients[i];
  }
  total.residue = reduce(sum);
}

}  // namespace

const PassBackend kPassAvx2{rows::any_reply<Avx2>,
                            rows::any_values<Avx2>,
                            rows::any_window<Avx2>,
                            rows::any_emit<Avx2>,
                            nullptr,
                            nullptr,
                            false};

}  // namespace cloister

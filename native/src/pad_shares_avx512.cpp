#include "p52_avx512.hpp"
#include "pad_shares_lanes.hpp"

namespace cloister {
namespace {

struct Avx512 {
  using Reg = __m512i;
  static constexpr int64_t kLanes = 8;

  static Reg zero() { return _mm512_setzero_si512(); }
  static Reg all(uint64_t v) { return _mm512_set1_epi64(static_cast<long long>(v)); }
  static Reg load(const uint64_t* p) { return _mm512_loadu_si512(p); }
  static Reg widen(const uint32_t* p) {
    return _mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void narrow(int16_t* p, Reg v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi64_epi16(v));
  }
  static Reg add(Reg x, Reg y) { return _mm512_add_epi64(x, y); }
  static Reg subtract(Reg x, Reg y) { return _mm512_sub_epi64(x, y); }
  static Reg both(Reg x, Reg y) { return _mm512_and_si512(x, y); }
  static Reg right(Reg x, int bits) { return _mm512_srl_epi64(x, _mm_cvtsi32_si128(bits)); }
  static Reg multiply(Reg x, Reg y) { return _mm512_mul_epi32(x, y); }
  static I128 sum(Reg v) {
    // By halves, which leave room for the sum of eight.
    const __m512i low = _mm512_and_si512(v, _mm512_set1_epi64(UINT32_MAX));
    return I128{_mm512_reduce_add_epi64(_mm512_srai_epi64(v, 32))} * (int64_t{1} << 32) +
           _mm512_reduce_add_epi64(low);
  }
};

}  // namespace

const PadSharesBackend kPadSharesAvx512{split_lanes<Avx512>, add_lanes<Avx512>};

}  // namespace cloister

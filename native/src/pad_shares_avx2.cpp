#include <immintrin.h>

#include "pad_shares_lanes.hpp"

namespace cloister {
namespace {

struct Avx2 {
  using Reg = __m256i;
  static constexpr int64_t kLanes = 4;

  static Reg zero() { return _mm256_setzero_si256(); }
  static Reg all(uint64_t v) { return _mm256_set1_epi64x(static_cast<long long>(v)); }
  static Reg load(const uint64_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static Reg widen(const uint32_t* p) {
    return _mm256_cvtepu32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void narrow(int16_t* p, Reg v) {
    const __m256i low = _mm256_shuffle_epi8(
        v, _mm256_set1_epi64x(0x0908'0100));  // two digits at the bottom of each half
    const auto first = static_cast<uint32_t>(_mm256_extract_epi32(low, 0));
    const auto second = static_cast<uint32_t>(_mm256_extract_epi32(low, 4));
    _mm_storeu_si64(p, _mm_cvtsi64_si128(static_cast<long long>(first | uint64_t{second} << 32)));
  }
  static Reg add(Reg x, Reg y) { return _mm256_add_epi64(x, y); }
  static Reg subtract(Reg x, Reg y) { return _mm256_sub_epi64(x, y); }
  static Reg both(Reg x, Reg y) { return _mm256_and_si256(x, y); }
  static Reg right(Reg x, int bits) { return _mm256_srl_epi64(x, _mm_cvtsi32_si128(bits)); }
  static Reg multiply(Reg x, Reg y) { return _mm256_mul_epi32(x, y); }
  static I128 sum(Reg v) {
    alignas(32) int64_t lanes[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), v);
    return I128{lanes[0]} + lanes[1] + lanes[2] + lanes[3];
  }
};

}  // namespace

const PadSharesBackend kPadSharesAvx2{split_lanes<Avx2>, add_lanes<Avx2>};

}  // namespace cloister

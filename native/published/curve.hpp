// ristretto255 (RFC 9496), in batches: what functional encryption over a group needs.
//
// Functions whose time depends on values say so in their name; give those public values only.
// `threads` is an upper limit. Sizes are the caller's responsibility (bindings/curve.hpp checks).
#pragma once
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace cloister {

constexpr int64_t kElementBytes = 32, kScalarBytes = 32, kWideScalarBytes = 64;
constexpr int64_t kNoLogarithm = std::numeric_limits<int64_t>::min();

// A decoded point: coordinates X, Y, Z, T of five limbs.
struct CurvePoint {
  uint64_t v[20];
};

// ---- scalars modulo the order l = 2^252 + 27742317777372353535851937790883648493, little-endian.
// Constant time in the scalars.

bool scalar_is_canonical(const uint8_t* scalar);
// n uniform numbers of 64 bytes to n scalars.
void scalar_reduce(const uint8_t* wide, int64_t n, uint8_t* scalars);
// out[k] = sum_j y[k][j] secrets[j] mod l. The time depends on no value.
void scalar_combine(const uint8_t* secrets, int64_t n, const int64_t* y, int64_t count,
                    uint8_t* out);

// ---- elements

// The first of n encodings that is not canonical or not a point, or n. The identity is accepted.
int64_t curve_decode(const uint8_t* encodings, int64_t n, CurvePoint* points, int threads);
void curve_encode(const CurvePoint* points, int64_t n, uint8_t* encodings, int threads);
// n times the generator.
void curve_generator(int64_t n, CurvePoint* points);

// out[i][j] = s_i P_j + plus_ij G; |plus| <= plus_bound, the only public thing about it.
void curve_powers(const CurvePoint* points, int64_t columns, const uint8_t* scalars, int64_t n,
                  const int64_t* plus, uint64_t plus_bound, CurvePoint* out, int threads);
// out[i] = sum_c s_ic P_ic + plus_i G.
void curve_sums(const CurvePoint* points, int64_t n, int64_t columns, const uint8_t* scalars,
                const int64_t* plus, uint64_t plus_bound, CurvePoint* out, int threads);

// out[i] = s_i P_i - Q_i for public scalars, given either as 32 bytes or as small numbers (the
// other is null).
void curve_differences(const CurvePoint* points, const uint8_t* wide, const int64_t* small,
                       const CurvePoint* subtrahends, int64_t n, CurvePoint* out, int threads);

// out[i][k] = sum_j small_kj P_i,w+j - sum_j wide_kj P_ij, for w wide columns in front.
void curve_vartime_products(const CurvePoint* points, int64_t n, int64_t wide_columns,
                            const uint8_t* wide, int64_t small_columns, const int64_t* small,
                            int64_t scalars, CurvePoint* out, int threads);

// ---- logarithms of small numbers

class CurveLogarithm {
 public:
  // Multiples up to `entries` (1 .. 2^24) of the generator in a table.
  CurveLogarithm(int64_t entries, int threads);

  // m with P = m G and lo <= m <= hi, or kNoLogarithm. Takes a step per 2 entries + 1 numbers.
  void vartime_solve(const CurvePoint* points, int64_t n, int64_t lo, int64_t hi, int64_t* out,
                     int threads) const;
  int64_t entries() const { return entries_; }

 private:
  int64_t entries_;
  std::vector<uint64_t> names_, slot_key_;
  std::vector<uint8_t> negative_;
  std::vector<uint32_t> slots_;
};

}  // namespace cloister

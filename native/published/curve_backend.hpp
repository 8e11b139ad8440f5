// What a back end of curve.cpp provides; curve.cpp picks one through active_isa(). Every function
// works on items first .. first + count of its job, so that threads can share a job.
#pragma once
#include <cstdint>
#include <vector>

#include "curve.hpp"

namespace cloister {

constexpr int kSecretWindows = 64;  // signed digits in [-8, 8] of a scalar below 2^253

// out[i][j] = s_i P_j + plus_ij G, for a range of points j (powers) or of scalars i
// (powers_by_scalar, for fewer points than lanes). Constant time in the scalars and in plus; what
// is public is how many digits they have.
struct PowersJob {
  const CurvePoint* points;
  int64_t columns;       // points in all
  const int8_t* digits;  // [scalars][kSecretWindows]
  int64_t scalars;
  const int8_t* plus;  // [scalars][columns][plus_windows], or null
  int plus_windows;
  CurvePoint* out;  // [scalars][columns]
};

// out[i] = sum_c s_ic P_ic + plus_i G, for a range of i. Constant time as above.
struct SumsJob {
  const CurvePoint* points;  // [n][columns]
  int64_t columns;
  const int8_t* digits;  // [n][columns][kSecretWindows], of which windows[c] count
  const int* windows;
  const int8_t* plus;  // [n][plus_windows], or null
  int plus_windows;
  CurvePoint* out;  // [n]
};

// One column's scalars, the same for all rows, in signed digits of `width` bits.
struct PublicColumn {
  std::vector<int16_t> digits;  // [scalars][windows]
  std::vector<int> largest;     // magnitude of a digit, per window
  int windows = 0, width = 1;
  int entries = 1;  // of a table that serves all windows
};

// out[i][k] = sum_c s_kc P_ic, for a range of rows i. Time depends on the scalars: they must be
// public.
struct ProductsJob {
  const CurvePoint* points;  // [n][columns]
  const PublicColumn* columns;
  int64_t column_count, scalars;
  bool shared_doublings;  // one table per point and doublings per result, or a table per window
  CurvePoint* out;        // [n][scalars]
};

// The table of a bounded logarithm: |ratio(m G)| for 0 < m <= entries (curve_point.hpp).
struct LogTable {
  const uint64_t* names;     // [entries + 1][4], canonical, even
  const uint8_t* negative;   // [entries + 1]: the ratio itself was odd
  const uint32_t* slots;     // open addressing by the low word of the name; 0 is empty
  const uint64_t* slot_key;  // that low word
  uint64_t slot_mask;
  int64_t entries;
};

struct CurveBackend {
  int64_t lanes;
  // The first of n encodings that is none, or n.
  int64_t (*decode)(const uint8_t* encodings, int64_t n, CurvePoint* points);
  void (*encode)(const CurvePoint* points, int64_t n, uint8_t* encodings);
  void (*powers)(const PowersJob&, int64_t first, int64_t count);
  void (*powers_by_scalar)(const PowersJob&, int64_t first, int64_t count);
  void (*sums)(const SumsJob&, int64_t first, int64_t count);
  void (*vartime_products)(const ProductsJob&, int64_t first, int64_t count);
  // Names and signs of the table's entries first .. first + count.
  void (*vartime_names)(int64_t first, int64_t count, uint64_t* names, uint8_t* negative);
  // m with P = m G and lo <= m <= hi, or kNoLogarithm.
  void (*vartime_solve)(const LogTable&, const CurvePoint* points, int64_t n, int64_t lo,
                        int64_t hi, int64_t* out);
};

extern const CurveBackend kCurvePortable;
extern const CurveBackend kCurveAvx512;

}  // namespace cloister

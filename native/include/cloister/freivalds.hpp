// Freivalds' check modulo P = 2^52 - 47 with coefficients s[(y, x), o] = alpha[y] beta[x] b[o]:
//   sum s[p, o] * (A x)[p, o] = sum t[q, c] * x[q, c]   with t = A^T s.
#pragma once
#include <cstdint>

#include "cloister/geometry.hpp"

namespace cloister {

constexpr uint64_t kP52 = (uint64_t{1} << 52) - 47;

struct CheckFactors {
  uint64_t* a;        // [oh * ow]: alpha[y] beta[x]
  uint64_t* columns;  // [kw][w]
  uint64_t* rows;     // [h][kw][c]
};

// The factors of t[(y, x), c] = sum over k of columns[k][x] * rows[y][k][c], canonical: a kernel
// has few columns, and the secrets of rows and columns do not mix. weights[o][kh][kw][c / groups];
// alpha[oh], beta[ow] and b[oc] are below P.
void freivalds_factors(const Geometry& g, const int16_t* weights, const uint64_t* alpha,
                       const uint64_t* beta, const uint64_t* b, const CheckFactors& out,
                       int threads);

// t itself, [h * w * c].
void freivalds_expand(const Geometry& g, const uint64_t* columns, const uint64_t* rows, uint64_t* t,
                      int threads);

// <coefficients, values> mod P, canonical; coefficients below 2^52.
uint64_t freivalds_dot(const uint64_t* coefficients, const int32_t* values, int64_t n);

}  // namespace cloister

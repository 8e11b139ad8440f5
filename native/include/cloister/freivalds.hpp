// Freivalds' check modulo P = 2^52 - 47 with rank-one coefficients s[p, o] = a[p] * b[o]:
//   sum s[p, o] * (A x)[p, o] = sum t[q, c] * x[q, c]   with t = A^T s.
#pragma once
#include <cstdint>

#include "cloister/geometry.hpp"

namespace cloister {

constexpr uint64_t kP52 = (uint64_t{1} << 52) - 47;

// t = A^T (a b^T), canonical. weights[o][kh][kw][c / groups], a[oh * ow] and b[oc] below P,
// t[h * w * c].
void freivalds_adjoint(const Geometry& g, const int16_t* weights, const uint64_t* a,
                       const uint64_t* b, uint64_t* t, int threads);

// <coefficients, values> mod P, canonical; coefficients below 2^52.
uint64_t freivalds_dot(const uint64_t* coefficients, const int32_t* values, int64_t n);

}  // namespace cloister

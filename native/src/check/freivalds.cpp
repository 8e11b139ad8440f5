#include "cloister/freivalds.hpp"

#include <algorithm>
#include <vector>

#include "check/p52.hpp"
#include "isa/kernels.hpp"
#include "threads/thread_pool.hpp"

namespace cloister {
namespace {

// B[k, c] = sum over the outputs o of c's group of W[o, k, c] * b[o].
std::vector<uint64_t> fold_all(const Geometry& g, const int16_t* weights, const uint64_t* b,
                               int threads) {
  const int64_t taps = g.kh * g.kw;
  const int64_t row = taps * g.group_in();
  std::vector<uint64_t> folded(static_cast<size_t>(taps * g.c));
  const FreivaldsKernels& check = kernels().freivalds;
  if (g.groups == 1) {
    constexpr int64_t kWidth = 4096;  // 64 KiB of accumulators: they stay in the L2 cache
    const int64_t items = (row + kWidth - 1) / kWidth;
    in_parallel(items, threads, [&](int64_t, int64_t item) {
      const int64_t start = item * kWidth;
      check.fold_weights(weights + start, row, b, g.oc, std::min(kWidth, row - start),
                         folded.data() + start);
    });
    return folded;
  }
  std::vector<uint64_t> part(static_cast<size_t>(row));
  for (int64_t group = 0; group < g.groups; ++group) {
    const int64_t first = group * g.group_out();
    check.fold_weights(weights + first * row, row, b + first, g.group_out(), row, part.data());
    for (int64_t k = 0; k < taps; ++k) {
      std::copy_n(part.data() + k * g.group_in(), g.group_in(),
                  folded.data() + k * g.c + group * g.group_in());
    }
  }
  return folded;
}

// Output index p with p * stride + k * dilation - pad == q * upsample, or -1.
int64_t source_of(int64_t q, int64_t k, int64_t up, int64_t dilation, int64_t pad, int64_t stride,
                  int64_t outputs) {
  const int64_t at = q * up - k * dilation + pad;
  if (at < 0 || at % stride != 0 || at / stride >= outputs) return -1;
  return at / stride;
}

}  // namespace

void freivalds_factors(const Geometry& g, const int16_t* weights, const uint64_t* alpha,
                       const uint64_t* beta, const uint64_t* b, const CheckFactors& out,
                       int threads) {
  for (int64_t y = 0; y < g.oh; ++y) {
    for (int64_t x = 0; x < g.ow; ++x) out.a[y * g.ow + x] = multiply(alpha[y], beta[x]);
  }
  for (int64_t j = 0; j < g.kw; ++j) {
    for (int64_t x = 0; x < g.w; ++x) {
      const int64_t px = source_of(x, j, g.uw, g.dw, g.pw, g.sw, g.ow);
      out.columns[j * g.w + x] = px < 0 ? 0 : beta[px];
    }
  }
  const std::vector<uint64_t> folded = fold_all(g, weights, b, threads);
  const FreivaldsKernels& check = kernels().freivalds;
  in_parallel(g.h, threads, [&](int64_t, int64_t y) {
    std::vector<AdjointTap> taps;
    for (int64_t j = 0; j < g.kw; ++j) {
      taps.clear();
      for (int64_t i = 0; i < g.kh; ++i) {
        const int64_t py = source_of(y, i, g.uh, g.dh, g.ph, g.sh, g.oh);
        if (py >= 0) taps.push_back({alpha[py], folded.data() + (i * g.kw + j) * g.c});
      }
      check.combine(taps.data(), static_cast<int64_t>(taps.size()), g.c,
                    out.rows + (y * g.kw + j) * g.c);
    }
  });
}

void freivalds_expand(const Geometry& g, const uint64_t* columns, const uint64_t* rows, uint64_t* t,
                      int threads) {
  const FreivaldsKernels& check = kernels().freivalds;
  in_parallel(g.h, threads, [&](int64_t, int64_t y) {
    std::vector<AdjointTap> taps;
    for (int64_t x = 0; x < g.w; ++x) {
      taps.clear();
      for (int64_t j = 0; j < g.kw; ++j) {
        taps.push_back({columns[j * g.w + x], rows + (y * g.kw + j) * g.c});
      }
      check.combine(taps.data(), g.kw, g.c, t + (y * g.w + x) * g.c);
    }
  });
}

uint64_t freivalds_dot(const uint64_t* coefficients, const int32_t* values, int64_t n) {
  constexpr int64_t kBias = int64_t{1} << 31;
  U128 sum = 0;
  U128 total = 0;  // at most 2^63 terms: far from wrapping in 128 bits
  for (int64_t i = 0; i < n; ++i) {
    sum += static_cast<U128>(coefficients[i]) * static_cast<uint64_t>(values[i] + kBias);
    total += coefficients[i];
  }
  return subtract(reduce(sum), multiply(reduce(total), static_cast<uint64_t>(kBias)));
}

}  // namespace cloister

// The kernel of dense_gradient.hpp over the vectors V of isa/. Samples come in pairs, as elements
// of a RingMap's rows do (ring_kernels.hpp); here the words have the two digits, and the rows of
// words need no transposition: the digits of a pair of rows are put side by side word by word.
#pragma once
#include <algorithm>

#include "isa/kernels.hpp"

namespace cloister {
namespace {

constexpr int kGradientVectors = 2;

// The digits of ring_kernels.hpp's split_digits: [pair][low, high][32], a word for each two rows.
inline void pair_digits(const DenseGradientJob& job) {
  uint32_t* digits = job.digits;
  for (int64_t row = 0; row < job.n; row += 2, digits += 2 * kRingPanel) {
    const uint32_t* x = job.x + row * job.inputs;
    uint32_t below[kRingPanel] = {};
    if (row + 1 < job.n) std::copy_n(x + job.inputs, job.width, below);
    for (int64_t c = 0; c < job.width; ++c) {
      digits[c] = (x[c] & 0xFFFFu) | below[c] << 16;
      digits[kRingPanel + c] = (x[c] + 0x8000u) >> 16 | ((below[c] + 0x8000u) & 0xFFFF0000u);
    }
  }
}

// Low digits' sums and high ones', which weigh 2^16. Not inlined: GCC would keep these sums in
// memory from the loop before on.
template <typename V>
[[gnu::noinline]] void store_sums(const typename V::I (&sums)[2][kGradientVectors], int64_t lanes,
                                  uint32_t* out) {
  for (int b = 0; b < kGradientVectors; ++b, out += V::kLanes, lanes -= V::kLanes) {
    const typename V::I sum = V::add(sums[0][b], V::shift_left_16(sums[1][b]));
    if (lanes >= V::kLanes) {
      V::store(out, sum);
    } else if (lanes > 0) {
      V::store(out, sum, V::first(static_cast<int>(lanes)));
    }
  }
}

// P outputs x two vectors of inputs, from input `at` of the panel on, x two digits, all in
// registers.
template <typename V, int P>
void gradient_tile(const DenseGradientJob& job, int64_t first, int64_t at) {
  constexpr int B = kGradientVectors;
  typename V::I acc[P][2][B];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
    for (int d = 0; d < 2; ++d)
#pragma GCC unroll 2
      for (int b = 0; b < B; ++b) acc[p][d][b] = V::zero();
  }
  const uint32_t* digits = job.digits + at;
  const uint32_t* pairs = job.pairs + first;
  for (int64_t row = 0; row < job.n; row += 2, digits += 2 * kRingPanel, pairs += job.outputs) {
    typename V::I x[2][B];
#pragma GCC unroll 2
    for (int d = 0; d < 2; ++d)
#pragma GCC unroll 2
      for (int b = 0; b < B; ++b) x[d][b] = V::load(digits + d * kRingPanel + b * V::kLanes);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      const typename V::I pair = V::set(pairs[p]);
#pragma GCC unroll 2
      for (int d = 0; d < 2; ++d)
#pragma GCC unroll 2
        for (int b = 0; b < B; ++b) acc[p][d][b] = V::multiply_add(acc[p][d][b], pair, x[d][b]);
    }
  }
  typename V::I sums[P][2][B];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
    for (int d = 0; d < 2; ++d)
#pragma GCC unroll 2
      for (int b = 0; b < B; ++b) sums[p][d][b] = acc[p][d][b];
  }
  for (int p = 0; p < P; ++p) {
    store_sums<V>(sums[p], job.width - at, job.out + (first + p) * job.inputs + at);
  }
}

template <typename V, int P>
void dense_gradient_panel(const DenseGradientJob& job) {
  pair_digits(job);
  for (int64_t at = 0; at < job.width; at += kGradientVectors * V::kLanes) {
    int64_t output = 0;
    for (; output + P <= job.outputs; output += P) gradient_tile<V, P>(job, output, at);
    for (; output < job.outputs; ++output) gradient_tile<V, 1>(job, output, at);
  }
}

}  // namespace
}  // namespace cloister

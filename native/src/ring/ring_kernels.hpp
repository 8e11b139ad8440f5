// The kernels of RingMap over the vectors V of isa/.
#pragma once
#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "isa/kernels.hpp"

namespace cloister {
namespace {

// What fills the registers of an instruction set: pixels of one and of two digits, each by kVectors
// vectors of channels. And how many lines of weights are brought into the cache ahead.
struct RingTile {
  int pixels1, pixels2, lines;
};

constexpr int kVectors = 2;

inline uint32_t load_pair(const int16_t* x) {
  uint32_t pair;
  std::memcpy(&pair, x, sizeof pair);
  return pair;
}

// Far enough ahead of a dense layer's weights, which come from memory once.
template <int kLines>
inline void prefetch_weights(const int16_t* weights) {
  for (int line = 0; line < kLines; ++line) {
    __builtin_prefetch(reinterpret_cast<const char*>(weights) + 2048 + 64 * line, 0, 3);
  }
}

// P pixels x B vectors of output channels x D digits, all in registers.
template <typename V, int kLines, int P, int B, int D>
void tile(const RingPanelJob& job, int64_t first_pixel, int64_t first_channel) {
  typename V::I acc[P][D][B];
  const int16_t* x[P];
#pragma GCC unroll 12
  for (int p = 0; p < P; ++p) {
    x[p] = job.plane + job.pixels[first_pixel + p];
    for (int d = 0; d < D; ++d)
      for (int b = 0; b < B; ++b) acc[p][d][b] = V::zero();
  }
  const int16_t* weights = job.weights + 2 * first_channel;
  for (int64_t s = 0; s < job.segment_count; ++s) {
    const int64_t begin = job.segments[s].offset, end = begin + 2 * job.segments[s].pairs();
    for (int64_t k = begin; k < end; k += 2, weights += 2 * kRingPanel) {
      typename V::I w[B];
#pragma GCC unroll 4
      for (int b = 0; b < B; ++b) w[b] = V::load(weights + 2 * V::kLanes * b);
      prefetch_weights<kLines>(weights);
#pragma GCC unroll 12
      for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
        for (int d = 0; d < D; ++d) {
          const typename V::I pair = V::set(load_pair(x[p] + k + d * job.digit_stride));
#pragma GCC unroll 4
          for (int b = 0; b < B; ++b) acc[p][d][b] = V::multiply_add(acc[p][d][b], pair, w[b]);
        }
      }
    }
  }
  const int64_t left = job.width - first_channel;
#pragma GCC unroll 12
  for (int p = 0; p < P; ++p) {
    uint32_t* out = job.out + (first_pixel + p) * job.out_stride + first_channel;
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
      typename V::I sum = acc[p][0][b];
      // The high digits weigh 2^16, so only the low half of their sum survives modulo 2^32.
      if constexpr (D == 2) sum = V::add(sum, V::shift_left_16(acc[p][1][b]));
      const int64_t lanes = left - V::kLanes * b;
      if (lanes >= V::kLanes) {
        if (job.accumulate) sum = V::add(sum, V::load(out + V::kLanes * b));
        V::store(out + V::kLanes * b, sum);
      } else if (lanes > 0) {
        if (job.accumulate)
          sum = V::add(sum, V::load(out + V::kLanes * b, V::first(static_cast<int>(lanes))));
        V::store(out + V::kLanes * b, sum, V::first(static_cast<int>(lanes)));
      }
    }
  }
}

using TileFunction = void (*)(const RingPanelJob&, int64_t, int64_t);

template <typename V, int kLines, int B, int D, int... P>
constexpr std::array<TileFunction, sizeof...(P)> tiles(std::integer_sequence<int, P...>) {
  return {&tile<V, kLines, P + 1, B, D>...};
}

// All pixels for one strip of B vectors of channels: tiles of P pixels, then the rest.
template <typename V, int kLines, int P, int B, int D>
void strip(const RingPanelJob& job, int64_t first_channel) {
  static constexpr auto kTiles = tiles<V, kLines, B, D>(std::make_integer_sequence<int, P>{});
  int64_t pixel = 0;
  for (; pixel + P <= job.pixel_count; pixel += P) kTiles[P - 1](job, pixel, first_channel);
  if (pixel < job.pixel_count) kTiles[job.pixel_count - pixel - 1](job, pixel, first_channel);
}

template <typename V, RingTile kTile>
void panel(const RingPanelJob& job) {
  constexpr int kOne = kTile.pixels1, kTwo = kTile.pixels2, kLines = kTile.lines;
  constexpr int64_t kStrip = V::kLanes * kVectors;
  for (int64_t channel = 0; channel < job.width; channel += kStrip) {
    const bool narrow = job.width - channel <= V::kLanes;
    if (job.digits == 2) {
      narrow ? strip<V, kLines, kTwo, 1, 2>(job, channel)
             : strip<V, kLines, kTwo, kVectors, 2>(job, channel);
    } else {
      narrow ? strip<V, kLines, kOne, 1, 1>(job, channel)
             : strip<V, kLines, kOne, kVectors, 1>(job, channel);
    }
  }
}

// P pixels at once share every load of a weight. One vector of channels from c on; `mask...` is
// empty or selects the last channels.
template <typename V, int P>
inline __attribute__((always_inline)) void ring_depthwise_vector(const RingDepthwiseJob& job,
                                                                 int64_t first_pixel, int64_t c,
                                                                 auto... mask) {
  typename V::I acc[P];
  for (int p = 0; p < P; ++p) acc[p] = V::zero();
  for (int64_t t = 0; t < job.tap_count; ++t) {
    const typename V::I weight = V::load(job.weights + t * job.channels + c, mask...);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      const uint32_t* x = job.plane + job.pixels[first_pixel + p] + job.taps[t].offset + c;
      acc[p] = V::add(acc[p], V::mul(V::load(x, mask...), weight));
    }
  }
  for (int p = 0; p < P; ++p) {
    V::store(job.out + (first_pixel + p) * job.channels + c, acc[p], mask...);
  }
}

template <typename V, int P>
void ring_depthwise_tile(const RingDepthwiseJob& job, int64_t first_pixel) {
  int64_t c = 0;
  for (; c + V::kLanes <= job.channels; c += V::kLanes) {
    ring_depthwise_vector<V, P>(job, first_pixel, c);
  }
  if (c == job.channels) return;
  ring_depthwise_vector<V, P>(job, first_pixel, c, V::first(static_cast<int>(job.channels - c)));
}

template <typename V>
void ring_depthwise(const RingDepthwiseJob& job) {
  int64_t pixel = 0;
  for (; pixel + 4 <= job.pixel_count; pixel += 4) ring_depthwise_tile<V, 4>(job, pixel);
  for (; pixel < job.pixel_count; ++pixel) ring_depthwise_tile<V, 1>(job, pixel);
}

// lo = x mod 2^16, read as signed; x - lo is a multiple of 2^16 and hi = (x - lo) / 2^16. Adding
// 2^15 before the shift is the same without a branch: it carries exactly when lo < 0.
inline void split_digits(const uint32_t* __restrict x, int64_t count, int16_t* __restrict lo,
                         int16_t* __restrict hi) {
  for (int64_t i = 0; i < count; ++i) {
    lo[i] = static_cast<int16_t>(x[i] & 0xFFFFu);
    hi[i] = static_cast<int16_t>((x[i] + 0x8000u) >> 16);
  }
}

using RingPack = decltype(RingKernels::pack);

template <typename V, RingTile kTile>
constexpr RingKernels ring_kernels(RingPack pack) {
  return {panel<V, kTile>, ring_depthwise<V>, split_digits, pack};
}

}  // namespace
}  // namespace cloister

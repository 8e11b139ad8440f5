// The product of RingMap on tiles of bytes, over a class Tiles that offers eight of them, and
// splits chunks of digits into bytes: the processor's (ring_tiles_amx.cpp) or, in tests, an
// emulation.
//
// An input of two 16-bit digits is lo + 2^16 * hi, a digit is x0 + 2^8 * x1 and a weight
// w0 + 2^8 * w1, with x0, w0 in [0, 2^8) and x1, w1 in [-2^7, 2^7). A product of tiles multiplies
// bytes by bytes into 32-bit sums that wrap, so that modulo 2^32
//
//   A x = (lo0 w0) + 2^8 (lo0 w1 + lo1 w0) + 2^16 (lo1 w1 + hi0 w0) + 2^24 (hi0 w1 + hi1 w0)
//
// in 7 products of tiles; hi1 w1 weighs 2^32. A plain input has one digit and 4 products.
#pragma once
#include <algorithm>
#include <type_traits>

#include "isa/kernels.hpp"

namespace cloister {
namespace {

// Sums that are finished together. The inputs of 16 pixels, 36 KiB in four bytes, stay in the
// first-level cache while the weights of all channels pass by. A 3x3 kernel over a multiple of 64
// channels has a multiple of nine steps.
constexpr int64_t kBlockSteps = 9;
constexpr int64_t kRowBytes = kBlockSteps * kTileBytes;

// Bytes of the inputs of 16 pixels: lo0, lo1, hi0, hi1. A chunk may end beyond the last row.
struct TileInputs {
  alignas(64) uint8_t bytes[4][kTileRows * kRowBytes + kTileBytes];

  const uint8_t* at(int byte, int64_t step) const { return bytes[byte] + step * kTileBytes; }
};

using TileSums = uint32_t[4][kTileRows][kTileWidth];

// Elements from `from` on, below `to`, of the segments of `count` pixels, without gaps. They are
// written in whole chunks: what lies beyond a segment's end is replaced by the next segment or
// meets weights of 0.
template <typename Tiles>
void gather(const RingTileJob& job, int64_t first_pixel, int64_t count, int64_t from, int64_t to,
            TileInputs& inputs) {
  for (int64_t p = 0; p < count; ++p) {
    int64_t before = 0;  // elements of earlier segments
    for (int64_t s = 0; s < job.segment_count; ++s) {
      const RingSegment& segment = job.segments[s];
      const int64_t begin = std::max(from, before), end = std::min(to, before + segment.elements);
      if (begin < end) {
        const int64_t row = p * kRowBytes + begin - from;
        const int16_t* x =
            job.plane + job.pixels[first_pixel + p] + segment.offset + begin - before;
        for (int d = 0; d < job.digits; ++d, x += job.digit_stride) {
          for (int64_t e = 0; e < end - begin; e += kRingChunk) {
            Tiles::split(x + e, inputs.bytes[2 * d] + row + e, inputs.bytes[2 * d + 1] + row + e);
          }
        }
      }
      before += segment.elements;
    }
  }
}

// One channel tile. The order keeps apart the products of one sum, each of which waits for the one
// before: of seven products no sum has two among three neighbours.
template <typename Tiles>
void add_two_digits(Tiles& tiles, const TileInputs& inputs, const uint8_t* weights, int64_t steps) {
  for (int64_t step = 0; step < steps; ++step, weights += kTileStep) {
    tiles.template load<4>(weights + kTileStep / 2, kTileBytes);
    tiles.template load<5>(inputs.at(0, step), kRowBytes);
    tiles.template tdpbusd<1, 5, 4>();
    tiles.template load<6>(inputs.at(1, step), kRowBytes);
    tiles.template tdpbssd<2, 6, 4>();
    tiles.template load<7>(inputs.at(2, step), kRowBytes);
    tiles.template tdpbusd<3, 7, 4>();
    tiles.template load<4>(weights, kTileBytes);
    tiles.template tdpbuud<0, 5, 4>();
    tiles.template tdpbsud<1, 6, 4>();
    tiles.template load<5>(inputs.at(3, step), kRowBytes);
    tiles.template tdpbuud<2, 7, 4>();
    tiles.template tdpbsud<3, 5, 4>();
  }
}

// A sum for each product.
template <typename Tiles>
void add_one_digit(Tiles& tiles, const TileInputs& inputs, const uint8_t* weights, int64_t steps) {
  for (int64_t step = 0; step < steps; ++step, weights += kTileStep) {
    tiles.template load<4>(weights, kTileBytes);
    tiles.template load<5>(weights + kTileStep / 2, kTileBytes);
    tiles.template load<6>(inputs.at(0, step), kRowBytes);
    tiles.template load<7>(inputs.at(1, step), kRowBytes);
    tiles.template tdpbuud<0, 6, 4>();
    tiles.template tdpbusd<1, 6, 5>();
    tiles.template tdpbsud<2, 7, 4>();
    tiles.template tdpbssd<3, 7, 5>();
  }
}

template <typename Tiles>
void multiply(Tiles& tiles, int digits, const TileInputs& inputs, const uint8_t* weights,
              int64_t steps, TileSums& sums) {
  tiles.template zero<0>();
  tiles.template zero<1>();
  tiles.template zero<2>();
  tiles.template zero<3>();
  digits == 2 ? add_two_digits(tiles, inputs, weights, steps)
              : add_one_digit(tiles, inputs, weights, steps);
  tiles.template store<0>(sums[0], kTileBytes);
  tiles.template store<1>(sums[1], kTileBytes);
  tiles.template store<2>(sums[2], kTileBytes);
  tiles.template store<3>(sums[3], kTileBytes);
}

// `width` is a constant for all channel tiles but the last.
template <int kShift2, int kShift3>
void add_up(const TileSums& sums, int64_t rows, auto width, bool accumulate, uint32_t* out,
            int64_t stride) {
  for (int64_t r = 0; r < rows; ++r, out += stride) {
    uint32_t total[kTileWidth];
    for (int64_t c = 0; c < kTileWidth; ++c) {
      total[c] = sums[0][r][c] + (sums[1][r][c] << 8) + (sums[2][r][c] << kShift2) +
                 (sums[3][r][c] << kShift3);
    }
    if (accumulate) {
      for (int64_t c = 0; c < width; ++c) total[c] += out[c];
    }
    for (int64_t c = 0; c < width; ++c) out[c] = total[c];
  }
}

inline void add_up(const RingTileJob& job, const TileSums& sums, int64_t rows, auto width,
                   bool accumulate, uint32_t* out) {
  job.digits == 2 ? add_up<16, 24>(sums, rows, width, accumulate, out, job.out_stride)
                  : add_up<8, 16>(sums, rows, width, accumulate, out, job.out_stride);
}

template <typename Tiles>
void tile_product(const RingTileJob& job) {
  Tiles tiles;
  TileInputs inputs;
  alignas(64) TileSums sums;
  const int64_t steps = (job.length + kTileBytes - 1) / kTileBytes;
  const int64_t blocks = (steps + kBlockSteps - 1) / kBlockSteps;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = block * steps / blocks, last = (block + 1) * steps / blocks;
    for (int64_t pixel = 0; pixel < job.pixel_count; pixel += kTileRows) {
      const int64_t rows = std::min(kTileRows, job.pixel_count - pixel);
      gather<Tiles>(job, pixel, rows, first * kTileBytes, std::min(last * kTileBytes, job.length),
                    inputs);
      const uint8_t* weights = job.weights + first * kTileStep;
      for (int64_t channel = 0; channel < job.width; channel += kTileWidth) {
        multiply(tiles, job.digits, inputs, weights, last - first, sums);
        weights += steps * kTileStep;
        uint32_t* out = job.out + pixel * job.out_stride + channel;
        const int64_t width = job.width - channel;
        width >= kTileWidth
            ? add_up(job, sums, rows, std::integral_constant<int64_t, kTileWidth>{}, block > 0, out)
            : add_up(job, sums, rows, width, block > 0, out);
      }
    }
  }
}

}  // namespace
}  // namespace cloister

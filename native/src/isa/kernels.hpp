// What every instruction set provides, and the choice of one of them. kernels_*.cpp instantiate the
// kernels of ring/, check/ and pads/ for their instruction set; fused/ has a table of its own,
// because its kernels take longest to compile.
#pragma once
#include <cstdint>

#include "cloister/isa.hpp"
#include "cloister/ring_map.hpp"
#include "isa/int128.hpp"

namespace cloister {

// The table of the instruction set in force.
template <typename Table>
const Table& of_active_isa(const Table& portable, const Table& avx2, const Table& avx512) {
  switch (active_isa()) {
    case Isa::amx:  // has tiles beside the vectors
    case Isa::avx512: return avx512;
    case Isa::avx2: return avx2;
    default: return portable;
  }
}

// ---- ring/

constexpr int64_t kRingPanel = 32;  // output channels per panel of packed weights

// One panel of output channels, one block of segments, every pixel of a band.
struct RingPanelJob {
  const int16_t* plane;  // low digits; a pixel's element e is plane[pixel + segment.offset + e]
  int64_t digit_stride;  // from the low digits to the high ones
  int digits;            // 2, or 1 for a plain int16 input
  const int64_t* pixels;
  int64_t pixel_count;
  const RingSegment* segments;
  int64_t segment_count;
  const int16_t* weights;  // [pair][32][2]
  uint32_t* out;           // out[pixel * out_stride + channel]
  int64_t out_stride;
  int64_t width;    // channels of this panel, 1 to 32
  bool accumulate;  // add to out instead of writing it
};

// One input channel per group: out[pixel, c] = sum over taps of weights[tap, c] * plane[..., c].
struct RingDepthwiseJob {
  const uint32_t* plane;
  const int64_t* pixels;
  int64_t pixel_count;
  const RingSegment* taps;  // only `offset` is used
  int64_t tap_count;
  const uint32_t* weights;  // [tap][channels]
  int64_t channels;
  uint32_t* out;  // [pixel][channels]
};

constexpr int64_t kTileRows = 16;   // of all tiles: pixels, or groups of four inputs
constexpr int64_t kTileBytes = 64;  // of a row: one byte of so many inputs, or of 4 of 16 channels
constexpr int64_t kTileWidth = 16;  // output channels
constexpr int64_t kRingChunk = 64;  // elements that a product on tiles reads at once
constexpr int64_t kTileStep = 2 * kTileRows * kTileBytes;  // weights of 64 inputs, 16 channels

// Every pixel of a band by some channels of one group. A segment may be read on to a whole chunk.
struct RingTileJob {
  const int16_t* plane;  // as in RingPanelJob, and the next four
  int64_t digit_stride;
  int digits;
  const int64_t* pixels;
  int64_t pixel_count;
  const RingSegment* segments;  // all of them, in the order of a channel's weights
  int64_t segment_count;
  int64_t length;          // elements of all segments
  const uint8_t* weights;  // [width / 16][length / 64][low, high][16][16][4], with zeros at the end
  uint32_t* out;           // out[pixel * out_stride + channel]
  int64_t out_stride;
  int64_t width;  // channels
};

// One panel of inputs of a dense layer's weight gradient.
struct DenseGradientJob {
  const uint32_t* pairs;  // [pair of samples][outputs]: their two deltas
  const uint32_t* x;      // x[sample * inputs + c]
  int64_t n, outputs, inputs;
  int64_t width;     // inputs of this panel, 1 to 32
  uint32_t* digits;  // scratch: [pair of samples][2][32]; beyond the width of no account
  uint32_t* out;     // out[output * inputs + c]
};

struct RingKernels {
  void (*panel)(const RingPanelJob&);
  void (*depthwise)(const RingDepthwiseJob&);
  // x = hi * 2^16 + lo (mod 2^32) for `count` elements.
  void (*split)(const uint32_t* x, int64_t count, int16_t* lo, int16_t* hi);
  // Packs the first pairs of `width` rows, `length` weights apart, as [pair][32][2], and says how
  // many; null: none.
  int64_t (*pack)(const int16_t* rows, int64_t length, int64_t width, int64_t pairs,
                  int16_t* packed);
};

template <typename T>
struct FixedPointKernels {
  // Adds |v| to sums[b] over a and c, and gives the largest |v|.
  T (*add_magnitudes)(const T* v, int64_t a, int64_t b, int64_t c, double* sums);
  // out[a][c][b] = the integer nearest to v[a][b][c] * scale.
  void (*round)(const T* v, int64_t a, int64_t b, int64_t c, T scale, int16_t* out);
};

// ---- check/

// One output row (or column) that reads an input row, through one kernel row.
struct AdjointTap {
  uint64_t a;            // its coefficient
  const uint64_t* fold;  // what it multiplies
};

struct FreivaldsKernels {
  // fold[j] = sum over o < count of weights[o * stride + j] * b[o] mod P, canonical, j < width.
  void (*fold_weights)(const int16_t* weights, int64_t stride, const uint64_t* b, int64_t count,
                       int64_t width, uint64_t* fold);
  // t[j] = sum over taps of tap.a * tap.fold[j] mod P, canonical, j < width.
  void (*combine)(const AdjointTap* taps, int64_t count, int64_t width, uint64_t* t);
};

// ---- pads/

// Null without AES instructions.
struct AesKernels {
  void (*expand_key)(const uint8_t key[32], uint8_t* rounds);  // as AesSchedule has them
  // `blocks` blocks of 16 bytes from block number `first` on; it does not wrap.
  void (*fill)(const uint8_t* rounds, const uint8_t* nonce, uint32_t first, int64_t blocks,
               uint32_t* out);
  // The same subtracted from the words at `in`, each read once; see aes_ctr_subtract.
  void (*subtract)(const uint8_t* rounds, const uint8_t* nonce, uint32_t first, int64_t blocks,
                   const uint32_t* in, uint32_t* out, int64_t far_bytes);
};

// Where a digit lies in a word: (word >> shift) & mask is the digit plus half its range.
struct DigitField {
  int shift;
  uint32_t mask, half;
};

struct PadShareKernels {
  // The digits of n <= 2^20 words plus c, and <t, digits>.
  I128 (*split)(const uint32_t* words, uint32_t c, const uint64_t* t, int64_t n, DigitField field,
                int16_t* digits);
  // out += z << shift, and <b, z> with z signed, |<b, z>| < 2^110; n <= 2^24.
  I128 (*add)(const uint64_t* b, const uint32_t* z, int64_t n, int shift, uint32_t* out);
};

struct Kernels {
  RingKernels ring;
  void (*dense_gradient)(const DenseGradientJob&);
  FixedPointKernels<float> floats;
  FixedPointKernels<double> doubles;
  void (*scale_difference)(const uint32_t* p, const uint32_t* m, int64_t count, float factor,
                           float* out);
  void (*transpose)(const uint32_t* x, int64_t rows, int64_t columns, uint32_t* out);
  bool (*all_finite)(const float* x, int64_t count);
  bool (*interleave)(const float* x, int64_t rows, int64_t columns, float* out);  // 1 to 4 rows
  FreivaldsKernels freivalds;
  AesKernels aes;
  PadShareKernels pad_shares;
};

extern const Kernels kKernelsPortable;
extern const Kernels kKernelsAvx2;
extern const Kernels kKernelsAvx512;

// Executes nothing on tiles unless it is called.
void ring_tile_product_amx(const RingTileJob& job);

inline const Kernels& kernels() {
  return of_active_isa(kKernelsPortable, kKernelsAvx2, kKernelsAvx512);
}

// Null where the instruction set in force has no tiles.
inline RingTileProduct ring_tile_product() {
  return active_isa() == Isa::amx ? ring_tile_product_amx : nullptr;
}

}  // namespace cloister

// What a back end of RingMap provides; ring_map.cpp picks one per call through active_isa().
#pragma once
#include <cstdint>

#include "cloister/ring_map.hpp"

namespace cloister {

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

struct RingBackend {
  void (*panel)(const RingPanelJob&);
  void (*depthwise)(const RingDepthwiseJob&);
  // x = hi * 2^16 + lo (mod 2^32) for `count` elements.
  void (*split)(const uint32_t* x, int64_t count, int16_t* lo, int16_t* hi);
  // Packs the first pairs of `width` rows, `length` weights apart, as [pair][32][2], and says how
  // many; null: none.
  int64_t (*pack)(const int16_t* rows, int64_t length, int64_t width, int64_t pairs,
                  int16_t* packed);
};

extern const RingBackend kRingPortable;
extern const RingBackend kRingAvx2;
extern const RingBackend kRingAvx512;

}  // namespace cloister

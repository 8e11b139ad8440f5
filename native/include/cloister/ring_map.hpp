// Linear maps with int16 weights, exact modulo 2^32, on channels-last tensors.
//
// A uint32 input is written in balanced digits of 16 bits, x = hi * 2^16 + lo with lo in
// [-2^15, 2^15), so that A x = A lo + 2^16 * A hi (mod 2^32). Both products multiply int16 by int16
// into 32-bit accumulators that wrap. Wrapping loses nothing: the sum is wanted modulo 2^32 only.
//
// Processors with tiles multiply bytes by bytes instead (ring_tiles.hpp), for maps with at least 16
// output positions, 16 output channels per group and 64 weights per output. A map keeps the form of
// its weights, and so the kind of product, of the instruction set under which it was made.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "cloister/geometry.hpp"

namespace cloister {

// Memory on a 64-byte boundary; pages of 2 MiB where the system offers them and the size deserves
// it.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  AlignedBuffer(AlignedBuffer&& other) noexcept;
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept;
  ~AlignedBuffer();

  // At least `bytes`; what it held before is lost when it has to grow.
  void reserve(int64_t bytes);
  // What reserving so many bytes takes.
  static int64_t reserved(int64_t bytes);
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// A stretch of taps whose input channels lie next to each other in the padded input.
struct RingSegment {
  int64_t offset;    // of its first element from the pixel's first element
  int64_t elements;  // multiply-adds; an odd last one gets a partner of weight 0

  int64_t pairs() const { return (elements + 1) / 2; }
};

struct RingTileJob;  // isa/kernels.hpp
using RingTileProduct = void (*)(const RingTileJob&);

// Memory of one map; sizes beyond 2^62 are stated as 2^62.
struct RingMemory {
  int64_t held;     // at most, from its construction on; the caller's weights are not among it
  int64_t scratch;  // at most, from a product of that batch on; a smaller one takes no more
};

class RingMap {
 public:
  // What a map would take, before anything is allocated.
  static RingMemory memory(const Geometry& geometry, int64_t n, int64_t bytes_per_element,
                           int threads);

  // `weights` is [oc][kh][kw][c / groups]. Throws std::invalid_argument for an impossible geometry.
  RingMap(const Geometry& geometry, const int16_t* weights);
  // With this product on tiles for any shape but one input channel per group; null: on vectors.
  RingMap(const Geometry& geometry, const int16_t* weights, RingTileProduct tiles);

  // out[n, oh, ow, oc] = A x; x is [n, h, w, c]. Images of `out` begin `out_stride` words apart; 0:
  // side by side. One caller at a time: the scratch memory is kept.
  void apply(const uint32_t* x, int64_t n, uint32_t* out, int threads, int64_t out_stride = 0);
  void apply(const int16_t* x, int64_t n, uint32_t* out, int threads, int64_t out_stride = 0);

  const Geometry& geometry() const { return original_; }
  bool on_tiles() const { return tiles_ != nullptr; }

 private:
  // What is computed from one padded copy of the input: some rows of one image or several whole
  // images. Small enough that the copy stays in the second-level cache.
  struct Bands {
    int64_t images, rows;  // per band; images > 1 only where rows == oh
    int64_t row_bands;     // bands per image
    int64_t count;
    int64_t elements;  // of one padded copy
    int64_t parts;     // how many ranges of output channels are computed separately
  };
  // Consecutive segments whose weights serve all pixels of a band before the next ones are touched.
  struct Block {
    int64_t segment, segments, pairs_before;
  };

  // Everything that follows from the geometry alone.
  RingMap(const Geometry& geometry, RingTileProduct tiles);

  int64_t element_bytes(int64_t input_bytes) const {
    return depthwise_ ? static_cast<int64_t>(sizeof(uint32_t)) : input_bytes;
  }
  int64_t padded_rows(int64_t rows) const { return (rows - 1) * g_.sh + (g_.kh - 1) * g_.dh + 1; }
  void find_segments();
  void pack(const int16_t* weights);
  void pack_tiles(const int16_t* weights);
  void pack_depthwise(const int16_t* weights);
  Bands plan(int64_t n, int64_t bytes_per_element, int threads) const;
  void locate_pixels(const Bands& bands);
  // Where outputs go: runs of pixels `pixel_stride` words apart, which begin `run_stride` apart.
  struct Place {
    uint32_t* out;
    int64_t run_pixels, run_stride, pixel_stride;

    // Calls use(i, n, out) for every run's part of `count` pixels, its pixels i .. i + n.
    template <typename Use>
    void runs(int64_t first, int64_t count, const Use& use) const {
      for (int64_t i = 0; i < count;) {
        const int64_t run = (first + i) / run_pixels, at = (first + i) % run_pixels;
        const int64_t n = std::min(count - i, run_pixels - at);
        use(i, n, out + run * run_stride + at * pixel_stride);
        i += n;
      }
    }
  };

  template <typename T>
  void apply_any(const T* x, int64_t n, uint32_t* out, int threads, int64_t out_stride);
  template <typename T>
  void run_item(const T* x, int64_t n, const Place& place, const Bands& bands, int64_t item,
                void* scratch) const;
  void run_panels(const int16_t* plane, int64_t digit_stride, int digits, int64_t first_pixel,
                  int64_t pixels, int64_t part, int64_t parts, const Place& place) const;
  void run_tiles(const int16_t* plane, int64_t digit_stride, int digits, int64_t first_pixel,
                 int64_t pixels, int64_t part, int64_t parts, const Place& place) const;

  Geometry original_;
  Geometry g_;             // the same map, reshaped so that its rows are what can be cut into bands
  int64_t per_image_;      // images of g_ in one image of original_
  bool depthwise_;         // one input channel per group
  RingTileProduct tiles_;  // null: on vectors
  int64_t channels_;       // of the padded copy: c, or oc where depthwise
  int64_t padded_w_;       // columns of the padded copy
  int64_t panel_;          // output channels of a panel
  int64_t panels_;         // per group
  int64_t pairs_ = 0;      // per panel
  std::vector<RingSegment> segments_;
  std::vector<Block> blocks_;
  // int16 [group][panel][pair][32][2]; depthwise: uint32 [tap][oc]; tiles: as in RingTileJob.
  AlignedBuffer weights_;
  std::vector<int64_t> pixels_;  // first element of every output pixel of a band
  std::vector<AlignedBuffer> scratch_;
};

}  // namespace cloister

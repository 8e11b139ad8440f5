#include "cloister/ring_map.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "isa/debug_assert.hpp"
#include "isa/kernels.hpp"
#include "threads/thread_pool.hpp"

namespace cloister {
namespace {

constexpr int64_t kBlockPairs = 1024;       // of a panel: 128 KiB of weights
constexpr int64_t kBandBytes = 512 * 1024;  // half of a common second-level cache
constexpr int64_t kBandPixels = 48;         // enough to use a panel's weights several times
constexpr int64_t kTileChannels = 512;      // whose weights of one block stay in that cache
constexpr int64_t kHugePage = 2 * 1024 * 1024;

constexpr int64_t kManyBytes = int64_t{1} << 62;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Sizes that a hostile geometry may drive beyond 64 bits.
int64_t times(int64_t a, int64_t b) {
  int64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? kManyBytes : std::min(product, kManyBytes);
}
int64_t plus(int64_t a, int64_t b) {
  CLOISTER_DEBUG_ASSERT(a <= kManyBytes && b <= kManyBytes);
  return std::min(a + b, kManyBytes);
}

void check(const Geometry& g) {
  const int64_t sizes[] = {g.h,  g.w,  g.c,  g.oh, g.ow, g.oc, g.kh,    g.kw,
                           g.sh, g.sw, g.dh, g.dw, g.uh, g.uw, g.groups};
  for (const int64_t size : sizes) {
    if (size < 1) throw std::invalid_argument("linear map: every size must be at least 1");
  }
  if (g.c % g.groups || g.oc % g.groups) {
    throw std::invalid_argument("linear map: channels do not divide into groups");
  }
}

bool is_pointwise(const Geometry& g) {
  return g.kh == 1 && g.kw == 1 && g.sh == 1 && g.sw == 1 && g.uh == 1 && g.uw == 1 && g.ph == 0 &&
         g.pw == 0 && g.h == g.oh && g.w == g.ow;
}

bool is_single_row(const Geometry& g) {
  return g.h == 1 && g.oh == 1 && g.kh == 1 && g.uh == 1 && g.ph == 0;
}

// A pointwise map is a dense layer of h * w images. A map along one row is one along a column,
// which can be cut into bands. Neither changes a tensor's layout in memory.
Geometry reshape(Geometry g) {
  if (is_pointwise(g)) {
    g.h = g.w = g.oh = g.ow = 1;
  } else if (is_single_row(g)) {
    std::swap(g.h, g.w);
    std::swap(g.oh, g.ow);
    std::swap(g.kh, g.kw);
    std::swap(g.sh, g.sw);
    std::swap(g.dh, g.dw);
    std::swap(g.uh, g.uw);
    std::swap(g.ph, g.pw);
  }
  return g;
}

// Fewer pixels, channels or weights leave most of a tile empty.
bool suits_tiles(const Geometry& g) {
  return times(g.oh, g.ow) >= kTileRows && g.group_out() >= kTileWidth &&
         times(times(g.kh, g.kw), g.group_in()) >= kTileBytes;
}

RingTileProduct suited_product(const Geometry& g) {
  check(g);
  return suits_tiles(g) ? ring_tile_product() : nullptr;
}

// Writers turn input elements into elements of the padded copy.
struct DigitWriter {
  int16_t *lo, *hi;
  int64_t channels;
  void (*split)(const uint32_t*, int64_t, int16_t*, int16_t*);

  void zero(int64_t at, int64_t columns) const {
    std::fill_n(lo + at, columns * channels, int16_t{0});
    std::fill_n(hi + at, columns * channels, int16_t{0});
  }
  void copy(int64_t at, const uint32_t* x, int64_t columns) const {
    split(x, columns * channels, lo + at, hi + at);
  }
};

struct PlainWriter {
  int16_t* plane;
  int64_t channels;

  void zero(int64_t at, int64_t columns) const {
    std::fill_n(plane + at, columns * channels, int16_t{0});
  }
  void copy(int64_t at, const int16_t* x, int64_t columns) const {
    std::copy_n(x, columns * channels, plane + at);
  }
};

// Every input channel as often as it has output channels, as whole words.
struct RepeatWriter {
  uint32_t* plane;
  int64_t channels, repeats;

  void zero(int64_t at, int64_t columns) const {
    std::fill_n(plane + at, columns * channels * repeats, 0u);
  }
  template <typename T>
  void copy(int64_t at, const T* x, int64_t columns) const {
    uint32_t* out = plane + at;
    for (int64_t i = 0; i < columns * channels; ++i) {
      const uint32_t value = static_cast<uint32_t>(x[i]);  // an int16 is extended with its sign
      for (int64_t j = 0; j < repeats; ++j) *out++ = value;
    }
  }
};

// Rows first_row .. first_row + rows of the upsampled, padded image `x`, written one after another
// from element `at` on; `width` columns of `channels` elements each.
template <typename T, typename Writer>
void pad_rows(const Geometry& g, const T* x, int64_t first_row, int64_t rows, int64_t width,
              int64_t channels, int64_t at, const Writer& writer) {
  for (int64_t row = first_row; row < first_row + rows; ++row, at += width * channels) {
    const int64_t u = row - g.ph;
    if (u < 0 || u % g.uh != 0 || u / g.uh >= g.h) {
      writer.zero(at, width);
      continue;
    }
    const T* source = x + u / g.uh * g.w * g.c;
    if (g.uw == 1) {
      const int64_t begin = std::clamp<int64_t>(g.pw, 0, width);
      const int64_t end = std::clamp<int64_t>(g.w + g.pw, begin, width);
      writer.zero(at, begin);
      if (end > begin)
        writer.copy(at + begin * channels, source + (begin - g.pw) * g.c, end - begin);
      writer.zero(at + end * channels, width - end);
      continue;
    }
    writer.zero(at, width);
    for (int64_t column = 0; column < g.w; ++column) {
      const int64_t position = column * g.uw + g.pw;
      if (position < 0 || position >= width) continue;
      writer.copy(at + position * channels, source + column * g.c, 1);
    }
  }
}

}  // namespace

AlignedBuffer::AlignedBuffer(AlignedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

AlignedBuffer::~AlignedBuffer() { std::free(data_); }

int64_t AlignedBuffer::reserved(int64_t bytes) {
  const int64_t alignment = bytes >= kHugePage ? kHugePage : 64;
  return ceil_div(bytes, alignment) * alignment;
}

void AlignedBuffer::reserve(int64_t bytes) {
  if (bytes <= bytes_) return;
  std::free(std::exchange(data_, nullptr));
  bytes_ = 0;
  const int64_t alignment = bytes >= kHugePage ? kHugePage : 64;
  const int64_t size = reserved(bytes);
  data_ = std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(size));
  if (data_ == nullptr) throw std::bad_alloc();
  bytes_ = size;
#ifdef __linux__
  // Advice only; without it the weights of a dense layer stream with a page walk every 4 KiB.
  if (alignment == kHugePage) madvise(data_, static_cast<size_t>(size), MADV_HUGEPAGE);
#endif
}

RingMap::RingMap(const Geometry& geometry, RingTileProduct tiles) : original_(geometry) {
  check(geometry);
  g_ = reshape(geometry);
  per_image_ = geometry.h * geometry.w / (g_.h * g_.w);
  depthwise_ = g_.groups > 1 && g_.group_in() == 1;
  channels_ = depthwise_ ? g_.oc : g_.c;
  padded_w_ = (g_.ow - 1) * g_.sw + (g_.kw - 1) * g_.dw + 1;
  tiles_ = depthwise_ ? nullptr : tiles;
  panel_ = tiles_ ? kTileWidth : kRingPanel;
  panels_ = ceil_div(g_.group_out(), panel_);
}

RingMap::RingMap(const Geometry& geometry, const int16_t* weights, RingTileProduct tiles)
    : RingMap(geometry, tiles) {
  find_segments();
  depthwise_ ? pack_depthwise(weights) : tiles_ ? pack_tiles(weights) : pack(weights);
}

RingMap::RingMap(const Geometry& geometry, const int16_t* weights)
    : RingMap(geometry, weights, suited_product(geometry)) {}

RingMemory RingMap::memory(const Geometry& geometry, int64_t n, int64_t bytes_per_element,
                           int threads) {
  const RingMap map(geometry, suited_product(geometry));
  const Geometry& g = map.g_;
  const int64_t taps = times(g.kh, g.kw), run = g.group_in();
  // Taps that are joined only make these fewer. A vector that grows holds up to three times its
  // elements for a moment.
  const int64_t segments = times(taps, ceil_div(run, 2 * kBlockPairs));
  constexpr int64_t kPerSegment =
      3 * (sizeof(std::pair<int64_t, int64_t>) + sizeof(RingSegment) + sizeof(Block));
  const int64_t panels = times(g.groups, map.panels_);
  const int64_t packed =
      map.depthwise_ ? times(times(taps, g.oc), sizeof(uint32_t))
      : map.tiles_
          ? times(times(panels, ceil_div(times(taps, run), kTileBytes)), kTileStep)
          : times(times(panels, times(taps, ceil_div(run, 2))), kRingPanel * 2 * sizeof(int16_t));
  const int64_t held = plus(AlignedBuffer::reserved(packed), times(segments, kPerSegment));
  n = times(n, map.per_image_);
  if (n == 0) return {held, 0};
  const int64_t element = map.element_bytes(bytes_per_element);
  const int64_t image = times(times(times(map.padded_rows(g.oh), map.padded_w_), map.channels_),
                              times(element, kBandPixels));
  if (image == kManyBytes) return {held, kManyBytes};
  threads = std::max(threads, 1);
  const Bands bands = map.plan(n, element, threads);
  const int64_t workers = std::min<int64_t>(threads, bands.count * bands.parts);
  const int64_t plane = AlignedBuffer::reserved((bands.elements + kRingChunk) * element);
  const int64_t pixels = times(times(bands.images, bands.rows), g.ow);
  return {held, plus(times(workers, plane), times(pixels, 2 * sizeof(int64_t)))};
}

// One segment per tap, joined where the next tap's channels follow directly (all taps of a kernel
// row, for one group and no dilation) and cut where a block ends.
void RingMap::find_segments() {
  const int64_t run = g_.group_in();
  std::vector<std::pair<int64_t, int64_t>> runs;  // offset, elements
  for (int64_t ky = 0; ky < g_.kh; ++ky) {
    for (int64_t kx = 0; kx < g_.kw; ++kx) {
      const int64_t offset = (ky * g_.dh * padded_w_ + kx * g_.dw) * channels_;
      if (!depthwise_ && !runs.empty() && runs.back().first + runs.back().second == offset) {
        runs.back().second += run;
      } else {
        runs.emplace_back(offset, run);
      }
    }
  }
  for (auto [offset, left] : runs) {
    for (; left > 0; offset += 2 * kBlockPairs, left -= 2 * kBlockPairs) {
      const RingSegment segment{offset, std::min(left, 2 * kBlockPairs)};
      if (blocks_.empty() || pairs_ - blocks_.back().pairs_before + segment.pairs() > kBlockPairs) {
        blocks_.push_back({static_cast<int64_t>(segments_.size()), 0, pairs_});
      }
      segments_.push_back(segment);
      blocks_.back().segments += 1;
      pairs_ += segment.pairs();
    }
  }
}

void RingMap::pack(const int16_t* weights) {
  const int64_t length = g_.kh * g_.kw * g_.group_in();
  weights_.reserve(g_.groups * panels_ * pairs_ * kRingPanel * 2 *
                   static_cast<int64_t>(sizeof(int16_t)));
  auto* packed = static_cast<int16_t*>(weights_.data());
  const auto pack_pairs = kernels().ring.pack;
  for (int64_t panel = 0; panel < g_.groups * panels_; ++panel) {
    const int64_t group = panel / panels_, first = panel % panels_ * kRingPanel;
    const int64_t width = std::min(kRingPanel, g_.group_out() - first);
    const int16_t* row = weights + (group * g_.group_out() + first) * length;
    for (const RingSegment& segment : segments_) {  // in the order of a row's weights
      const int64_t done =
          pack_pairs ? pack_pairs(row, length, width, segment.elements / 2, packed) : 0;
      packed += done * 2 * kRingPanel;
      for (int64_t e = 2 * done; e < segment.elements; e += 2, packed += 2 * kRingPanel) {
        for (int64_t lane = 0; lane < kRingPanel; ++lane) {
          const bool first_real = lane < width,
                     second_real = first_real && e + 1 < segment.elements;
          packed[2 * lane] = first_real ? row[lane * length + e] : int16_t{0};
          packed[2 * lane + 1] = second_real ? row[lane * length + e + 1] : int16_t{0};
        }
      }
      row += segment.elements;
    }
  }
}

void RingMap::pack_tiles(const int16_t* weights) {
  const int64_t length = g_.kh * g_.kw * g_.group_in(), steps = ceil_div(length, kTileBytes);
  const int64_t bytes = g_.groups * panels_ * steps * kTileStep;
  weights_.reserve(bytes);
  auto* packed = static_cast<uint8_t*>(weights_.data());
  std::fill_n(packed, bytes, uint8_t{0});
  for (int64_t o = 0; o < g_.oc; ++o, weights += length) {
    const int64_t channel = o % g_.group_out();
    const int64_t panel = o / g_.group_out() * panels_ + channel / kTileWidth;
    uint8_t* lane = packed + panel * steps * kTileStep + channel % kTileWidth * 4;
    for (int64_t e = 0; e < length; ++e) {
      uint8_t* low = lane + e / kTileBytes * kTileStep + e % kTileBytes / 4 * kTileBytes + e % 4;
      low[0] = static_cast<uint8_t>(weights[e]);
      low[kTileStep / 2] = static_cast<uint8_t>(weights[e] >> 8);
    }
  }
}

void RingMap::pack_depthwise(const int16_t* weights) {
  const int64_t taps = g_.kh * g_.kw;
  weights_.reserve(taps * g_.oc * static_cast<int64_t>(sizeof(uint32_t)));
  auto* packed = static_cast<uint32_t*>(weights_.data());
  for (int64_t t = 0; t < taps; ++t) {
    for (int64_t o = 0; o < g_.oc; ++o) {
      packed[t * g_.oc + o] = static_cast<uint32_t>(weights[o * taps + t]);
    }
  }
}

RingMap::Bands RingMap::plan(int64_t n, int64_t bytes_per_element, int threads) const {
  Bands bands{};
  const int64_t row_elements = padded_w_ * channels_;
  const int64_t image_pixels = g_.oh * g_.ow;
  const int64_t image_bytes = padded_rows(g_.oh) * row_elements * bytes_per_element;
  if (image_bytes <= kBandBytes || g_.oh == 1) {
    bands.images = std::max(kBandBytes / image_bytes, ceil_div(kBandPixels, image_pixels));
    bands.images = std::min(bands.images, n);
    bands.rows = g_.oh;
  } else {
    // Neighbouring bands share (kh - 1) * dh rows, so a band is at least that high.
    const int64_t halo = (g_.kh - 1) * g_.dh;
    const int64_t fitting = (kBandBytes / (row_elements * bytes_per_element) - halo) / g_.sh;
    const int64_t useful = std::max(ceil_div(kBandPixels, g_.ow), ceil_div(halo, g_.sh));
    bands.images = 1;
    bands.rows = std::clamp<int64_t>(fitting, std::min(useful, g_.oh), g_.oh);
    bands.rows = ceil_div(g_.oh, ceil_div(g_.oh, bands.rows));  // equally high
  }
  bands.row_bands = ceil_div(g_.oh, bands.rows);
  bands.count = ceil_div(n, bands.images) * bands.row_bands;
  bands.elements = bands.images * padded_rows(bands.rows) * row_elements;
  // Several items per thread even out their finish; each pads its own copy, which is cheap.
  const int64_t wanted = threads == 1 ? 1 : ceil_div(4 * threads, bands.count);
  bands.parts = depthwise_ ? 1 : std::min(wanted, g_.groups * panels_);
  return bands;
}

void RingMap::locate_pixels(const Bands& bands) {
  pixels_.clear();
  pixels_.reserve(static_cast<size_t>(bands.images * bands.rows * g_.ow));
  const int64_t rows = padded_rows(bands.rows);
  for (int64_t image = 0; image < bands.images; ++image) {
    for (int64_t y = 0; y < bands.rows; ++y) {
      for (int64_t x = 0; x < g_.ow; ++x) {
        pixels_.push_back(((image * rows + y * g_.sh) * padded_w_ + x * g_.sw) * channels_);
      }
    }
  }
}

void RingMap::run_panels(const int16_t* plane, int64_t digit_stride, int digits,
                         int64_t first_pixel, int64_t pixels, int64_t part, int64_t parts,
                         const Place& place) const {
  const int64_t all = g_.groups * panels_;
  for (int64_t panel = part * all / parts; panel < (part + 1) * all / parts; ++panel) {
    const int64_t group = panel / panels_, first = panel % panels_ * kRingPanel;
    const int16_t* packed =
        static_cast<const int16_t*>(weights_.data()) + panel * pairs_ * kRingPanel * 2;
    RingPanelJob job{};
    job.plane = plane + group * g_.group_in();
    job.digit_stride = digit_stride;
    job.digits = digits;
    job.out_stride = place.pixel_stride;
    job.width = std::min(kRingPanel, g_.group_out() - first);
    for (const Block& block : blocks_) {
      job.segments = segments_.data() + block.segment;
      job.segment_count = block.segments;
      job.weights = packed + block.pairs_before * kRingPanel * 2;
      job.accumulate = block.segment > 0;
      place.runs(first_pixel, pixels, [&](int64_t i, int64_t count, uint32_t* out) {
        job.pixels = pixels_.data() + i;
        job.pixel_count = count;
        job.out = out + group * g_.group_out() + first;
        kernels().ring.panel(job);
      });
    }
  }
}

void RingMap::run_tiles(const int16_t* plane, int64_t digit_stride, int digits, int64_t first_pixel,
                        int64_t pixels, int64_t part, int64_t parts, const Place& place) const {
  RingTileJob job{};
  job.digit_stride = digit_stride;
  job.digits = digits;
  job.segments = segments_.data();
  job.segment_count = static_cast<int64_t>(segments_.size());
  job.length = g_.kh * g_.kw * g_.group_in();
  job.out_stride = place.pixel_stride;
  const int64_t steps = ceil_div(job.length, kTileBytes), all = g_.groups * panels_;
  const int64_t last = (part + 1) * all / parts;
  for (int64_t panel = part * all / parts, next = 0; panel < last; panel = next) {
    const int64_t group = panel / panels_, first = panel % panels_ * kTileWidth;
    next = std::min({last, (group + 1) * panels_, panel + kTileChannels / kTileWidth});
    job.plane = plane + group * g_.group_in();
    job.weights = static_cast<const uint8_t*>(weights_.data()) + panel * steps * kTileStep;
    job.width = std::min((next - panel) * kTileWidth, g_.group_out() - first);
    place.runs(first_pixel, pixels, [&](int64_t i, int64_t count, uint32_t* out) {
      job.pixels = pixels_.data() + i;
      job.pixel_count = count;
      job.out = out + group * g_.group_out() + first;
      tiles_(job);
    });
  }
}

template <typename T>
void RingMap::run_item(const T* x, int64_t n, const Place& place, const Bands& bands, int64_t item,
                       void* scratch) const {
  const int64_t part = item % bands.parts, band = item / bands.parts;
  const int64_t first_image = band / bands.row_bands * bands.images;
  const int64_t first_row = band % bands.row_bands * bands.rows;
  const int64_t images = std::min(bands.images, n - first_image);
  const int64_t rows = std::min(bands.rows, g_.oh - first_row);
  const int64_t pixels = images * rows * g_.ow;
  const int64_t first_pixel = (first_image * g_.oh + first_row) * g_.ow;
  const int64_t stride = padded_rows(bands.rows) * padded_w_ * channels_;  // as in locate_pixels
  const auto pad = [&](const auto& writer) {
    for (int64_t i = 0; i < images; ++i) {
      pad_rows(g_, x + (first_image + i) * g_.in_elements(), first_row * g_.sh, padded_rows(rows),
               padded_w_, channels_, i * stride, writer);
    }
  };
  if (depthwise_) {
    auto* plane = static_cast<uint32_t*>(scratch);
    pad(RepeatWriter{plane, g_.c, g_.oc / g_.c});
    return place.runs(first_pixel, pixels, [&](int64_t i, int64_t count, uint32_t* out) {
      kernels().ring.depthwise({plane, pixels_.data() + i, count, segments_.data(),
                                static_cast<int64_t>(segments_.size()),
                                static_cast<const uint32_t*>(weights_.data()), g_.oc, out});
    });
  }
  auto* plane = static_cast<int16_t*>(scratch);
  const auto run = tiles_ ? &RingMap::run_tiles : &RingMap::run_panels;
  if constexpr (sizeof(T) == sizeof(uint32_t)) {
    pad(DigitWriter{plane, plane + bands.elements, g_.c, kernels().ring.split});
    (this->*run)(plane, bands.elements, 2, first_pixel, pixels, part, bands.parts, place);
  } else {
    pad(PlainWriter{plane, g_.c});
    (this->*run)(plane, 0, 1, first_pixel, pixels, part, bands.parts, place);
  }
}

template <typename T>
void RingMap::apply_any(const T* x, int64_t n, uint32_t* out, int threads, int64_t out_stride) {
  const int64_t image_pixels = per_image_ * g_.oh * g_.ow;
  Place place{out, std::max<int64_t>(n, 1) * image_pixels, 0, g_.oc};
  if (out_stride != 0 && out_stride != image_pixels * g_.oc) {
    // The kernel of depthwise maps writes its pixels side by side.
    if (image_pixels == 1 && !depthwise_) {
      place.pixel_stride = out_stride;
    } else {
      place.run_pixels = image_pixels;
      place.run_stride = out_stride;
    }
  }
  n *= per_image_;
  if (n == 0) return;
  threads = std::max(threads, 1);
  const int64_t element = element_bytes(sizeof(T));
  const Bands bands = plan(n, element, threads);
  const int64_t items = bands.count * bands.parts;
  const int64_t workers = std::min<int64_t>(threads, items);
  // Everything is allocated here, so that the threads below cannot throw. Elements beyond the copy
  // may be read, as the partner of an odd last one or in a last chunk, where the weights are 0.
  if (static_cast<int64_t>(scratch_.size()) < workers) {
    scratch_.resize(static_cast<size_t>(workers));
  }
  for (int64_t t = 0; t < workers; ++t)
    scratch_[t].reserve((bands.elements + kRingChunk) * element);
  locate_pixels(bands);

  in_parallel(items, threads, [&](int64_t worker, int64_t item) {
    run_item(x, n, place, bands, item, scratch_[worker].data());
  });
}

void RingMap::apply(const uint32_t* x, int64_t n, uint32_t* out, int threads, int64_t out_stride) {
  apply_any(x, n, out, threads, out_stride);
}

void RingMap::apply(const int16_t* x, int64_t n, uint32_t* out, int threads, int64_t out_stride) {
  apply_any(x, n, out, threads, out_stride);
}

}  // namespace cloister

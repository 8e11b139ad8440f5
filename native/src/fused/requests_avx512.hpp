// Where a request's integers go: under pads made in registers, or in the clear.
// run() begins at an element and goes on in vectors that are `apart` elements from each other;
// square() goes on by twos, two of one pixel and the two below of the next, until it skip()s one:
// next() makes the pads of as many vectors, with other work between the rounds; put() is the only
// write of the request: the integers never reach its memory without their pad. Included by AVX-512
// back ends only.
#pragma once
#include "fused/sums_avx512.hpp"

namespace cloister::rows {
namespace {

constexpr int kVectors = 4;  // AES waits for itself, so four keystreams are made side by side

// The integers of a tile, vector by vector.
struct TileQuantiser {
  const float* values;
  const float* fetched;  // in order, whatever the order of the vectors
  Ahead ahead;
  Quantiser<Avx512> quantise;

  explicit TileQuantiser(const EmitRow& row)
      : values(row.values), fetched(row.values), ahead(row.ahead), quantise(row) {}

  inline __attribute__((always_inline)) __m512i operator()(int64_t at, auto... mask) {
    fetch(ahead, fetched);
    fetched += Avx512::kLanes;
    return quantise(Avx512::load(values + at, mask...));
  }
  void count(CheckLanes& lanes) const {
    Avx512::store(lanes.clipped, Avx512::add(Avx512::load(lanes.clipped), quantise.clipped));
  }
};

// Two vectors that lie side by side.
template <class Request>
inline __attribute__((always_inline)) void put_pair(Request& request, int64_t at, const __m512i* q,
                                                    const __m512i* pad) {
  request.put(at, q[0], pad[0]);
  request.put(at + Avx512::kLanes, q[1], pad[1]);
}

// kStream: see BlindedRequest; only pairs fill a line.
template <bool kStream>
struct PlainRequest {
  static constexpr bool kByChannels = !kStream;
  int16_t* out;

  PlainRequest run(int64_t, int64_t) const { return *this; }
  PlainRequest square(int64_t, int64_t) const { return *this; }
  void skip(int64_t) const {}

  template <int kCount>
  inline __attribute__((always_inline)) void next(__m512i*, const auto& beside) const {
#pragma GCC unroll 16
    for (int i = 0; i < kVaesRounds; ++i) beside(i);
  }
  void put(int64_t at, __m512i q, __m512i, auto... mask) const {
    __builtin_prefetch(out + at + kAhead, 1, 2);
    Avx512::store_narrow(out + at, q, mask...);
  }
};

inline __attribute__((always_inline)) void put_pair(PlainRequest<true>& request, int64_t at,
                                                    const __m512i* q, const __m512i*) {
  const __m512i low = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(q[0]));
  const __m512i pair = _mm512_inserti64x4(low, _mm512_cvtepi32_epi16(q[1]), 1);
  _mm512_stream_si512(reinterpret_cast<__m512i*>(request.out + at), pair);
}

// kStream: past the caches, which spares reading the lines that are about to be overwritten.
template <bool kStream>
class BlindedRequest {
 public:
  static constexpr bool kByChannels = true;

  explicit BlindedRequest(const EmitRow& row)
      : out_(row.blinded), keys_(row.rounds), start_(vaes_counter(row.nonce, row.first_block)) {}

  struct Run {
    uint32_t* out;
    VaesKeys keys;
    __m512i counter;
    uint32_t stride, pair;  // in blocks: of the second vector, and of the third
    uint32_t step;          // and of the next four

    template <int kCount>
    inline __attribute__((always_inline)) void next(__m512i* pad, const auto& beside) {
      vaes_keystream<kCount>(keys, counter, pad, stride, pair, beside);
      counter = _mm512_add_epi32(counter, vaes_step(kCount == kVectors ? step : kCount * stride));
    }
    void skip(int64_t elements) {
      counter = _mm512_add_epi32(counter, vaes_step(static_cast<uint32_t>(elements / 4)));
    }
    inline __attribute__((always_inline)) void put(int64_t at, __m512i q, __m512i pad,
                                                   auto... mask) const {
      const __m512i blinded = Avx512::add(q, pad);
      if constexpr (kStream) {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(out + at), blinded);
      } else {
        Avx512::store(out + at, blinded, mask...);
      }
    }
  };

  // Multiples of a block's four elements.
  Run run(int64_t first, int64_t apart) const {
    const auto stride = static_cast<uint32_t>(apart / 4);
    return {out_, keys_, counter(first), stride, 2 * stride, kVectors * stride};
  }
  Run square(int64_t first, int64_t below) const {
    constexpr auto kStride = static_cast<uint32_t>(Avx512::kLanes / 4);
    return {out_, keys_, counter(first), kStride, static_cast<uint32_t>(below / 4), 2 * kStride};
  }

 private:
  __m512i counter(int64_t first) const {
    return _mm512_add_epi32(start_, vaes_step(static_cast<uint32_t>(first / 4)));
  }

  uint32_t* out_;
  VaesKeys keys_;
  __m512i start_;
};

// Streaming stores need whole cache lines, which are `elements` of the request.
inline bool streams(const EmitRow& row, const void* request, int64_t elements) {
  return row.stream && reinterpret_cast<uintptr_t>(request) % 64 == 0 &&
         row.channels % elements == 0;
}

}  // namespace
}  // namespace cloister::rows

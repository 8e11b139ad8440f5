// Requests with AVX2. Their writers quantise, and keep the integers for the check, which reads them
// from there and never from the request: against factored coefficients as digits (limbs.hpp), or
// against one coefficient for every element. Included by AVX2 back ends only.
#pragma once
#include "fused/limbs.hpp"
#include "fused/sums_avx2.hpp"

namespace cloister::rows {
namespace {

using I256 = Avx2::I;

constexpr int kVectors = 4;  // of a LimbBlock's channels

// The integers of a tile in pairs, as a LimbBlock has them: lane i of the two vectors of a block
// has channels i and 16 + i, zeros where there is none.
struct Staged {
  I256 pairs[2 * kLargestTile / kLimbChannels];
};

// Elements `at` .. `at` + `count` of a row, which `pairs` are made from if the check wants them;
// how many were clipped.
using Write = uint32_t (*)(const EmitRow& row, int64_t at, int64_t count, I256* pairs);

// Two vectors of small integers as one of pairs, and back.
inline I256 joined(I256 low, I256 high) {
  return _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xAA);
}
inline I256 lower(I256 pairs) { return _mm256_srai_epi32(_mm256_slli_epi32(pairs, 16), 16); }
inline I256 upper(I256 pairs) { return _mm256_srai_epi32(pairs, 16); }

// kStream: past the caches, which spares reading the lines that are about to be overwritten.
template <bool kStream>
void store(void* p, I256 v) {
  auto* to = static_cast<I256*>(p);
  kStream ? _mm256_stream_si256(to, v) : _mm256_storeu_si256(to, v);
}

template <bool kStream>
struct PlainRequest {
  int16_t* out;

  PlainRequest(const EmitRow& row, int64_t at) : out(row.plain + at) {}

  inline __attribute__((always_inline)) void put_all(int64_t at, const I256* q) const {
    if constexpr (!kStream) __builtin_prefetch(out + at + kAhead, 1, 2);
    for (int i = 0; i < kVectors; i += 2) {
      const I256 both = _mm256_packs_epi32(q[i], q[i + 1]);  // in the order 0, 2, 1, 3
      store<kStream>(out + at + i * Avx2::kLanes, _mm256_permute4x64_epi64(both, 0xD8));
    }
  }
  void put(int64_t at, I256 q, auto... mask) const { Avx2::store_narrow(out + at, q, mask...); }
};

struct PaddedRequest {
  uint32_t* out;
  const uint32_t* pad;

  PaddedRequest(const EmitRow& row, int64_t at) : out(row.blinded + at), pad(row.pad + at) {}

  inline __attribute__((always_inline)) void put_all(int64_t at, const I256* q) const {
    for (int i = 0; i < kVectors; ++i) put(at + i * Avx2::kLanes, q[i]);
  }
  void put(int64_t at, I256 q, auto... mask) const {
    Avx2::store(out + at, Avx2::add(q, Avx2::load(pad + at, mask...)), mask...);
  }
};

template <bool kStream>
struct BlindedRequest {
  uint32_t* out;
  const uint8_t* rounds;
  __m128i counter;

  // `at` is a multiple of a block's four elements.
  BlindedRequest(const EmitRow& row, int64_t at)
      : out(row.blinded + at),
        rounds(row.rounds),
        counter(aes_counter(row.nonce, row.first_block + static_cast<uint32_t>(at / 4))) {}

  template <int kCount>
  inline __attribute__((always_inline)) void pads(I256* pad) {
    __m128i block[2 * kCount];
    aes_keystream<2 * kCount>(rounds, counter, block);
    counter = _mm_add_epi32(counter, _mm_setr_epi32(0, 0, 0, 2 * kCount));
    for (int i = 0; i < kCount; ++i) pad[i] = _mm256_set_m128i(block[2 * i + 1], block[2 * i]);
  }
  inline __attribute__((always_inline)) void put_all(int64_t at, const I256* q) {
    I256 pad[kVectors];
    pads<kVectors>(pad);
    for (int i = 0; i < kVectors; ++i) {
      store<kStream>(out + at + i * Avx2::kLanes, Avx2::add(q[i], pad[i]));
    }
  }
  inline __attribute__((always_inline)) void put(int64_t at, I256 q, auto... mask) {
    I256 pad;
    pads<1>(&pad);
    const I256 blinded = Avx2::add(q, pad);
    if constexpr (sizeof...(mask) == 0) {
      store<kStream>(out + at, blinded);
    } else {
      Avx2::store(out + at, blinded, mask...);
    }
  }
};

template <class Request, bool kCheck>
uint32_t write(const EmitRow& row, int64_t at, int64_t count, I256* pairs) {
  Request request(row, at);
  const float* values = row.values + at;
  Quantiser<Avx2> quantiser(row);
  const auto quantise = [&](int64_t j, auto... mask) __attribute__((always_inline)) {
    return quantiser(Avx2::load(values + j, mask...));
  };
  int64_t j = 0;
  for (; j + kLimbChannels <= count; j += kLimbChannels) {
    fetch(row.ahead, row.values + at + j);
    fetch(row.ahead, row.values + at + j + 16);
    I256 q[kVectors];
    for (int i = 0; i < kVectors; ++i) q[i] = quantise(j + i * Avx2::kLanes);
    request.put_all(j, q);
    if constexpr (kCheck) {
      *pairs++ = joined(q[0], q[2]);
      *pairs++ = joined(q[1], q[3]);
    }
  }
  if (j == count) return Avx2::total(quantiser.clipped);
  I256 q[kVectors] = {};
  for (int i = 0; j < count; ++i, j += Avx2::kLanes) {
    if (j + Avx2::kLanes <= count) {
      q[i] = quantise(j);
      request.put(j, q[i]);
    } else {
      const auto mask = Avx2::first(static_cast<int>(count - j));
      q[i] = quantise(j, mask);
      request.put(j, q[i], mask);
    }
  }
  if constexpr (kCheck) {
    pairs[0] = joined(q[0], q[2]);
    pairs[1] = joined(q[1], q[3]);
  }
  return Avx2::total(quantiser.clipped);
}

// The sums of the four digits of one term.
struct LimbSums {
  static constexpr auto kStart = limb_start();
  I256 limb[kLimbs];

  LimbSums() {
    for (size_t i = 0; i < kLimbs; ++i) {
      limb[i] = _mm256_set1_epi32(static_cast<int>(kStart[i]));
    }
  }

  inline __attribute__((always_inline)) void add(const LimbBlock& block, const I256* pairs) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const I256 value = _mm256_load_si256(pairs + half);
#pragma GCC unroll 4
      for (int i = 0; i < kLimbs; ++i) {
        const auto* digits = reinterpret_cast<const I256*>(block.limb[i]) + half;
        limb[i] = _mm256_add_epi32(limb[i], _mm256_madd_epi16(_mm256_load_si256(digits), value));
      }
    }
  }

  // The sum over all channels times a pixel's factors: (factor, 2^26 factor) of d0 + d1 2^13 and
  // of d2 + d3 2^13. Eight lanes of 32 bits are below 2^35, so both are below 2^49.
  inline __attribute__((always_inline)) void into_pixel(SummingAvx2::Sum& sum,
                                                        const uint64_t* factors) const {
    const I256 low =
        _mm256_add_epi64(even_and_odd(0), _mm256_slli_epi64(even_and_odd(1), kLimbBits));
    const I256 high =
        _mm256_add_epi64(even_and_odd(2), _mm256_slli_epi64(even_and_odd(3), kLimbBits));
    const I256 both =
        _mm256_add_epi64(_mm256_unpacklo_epi64(low, high), _mm256_unpackhi_epi64(low, high));
    const __m128i pair =
        _mm_add_epi64(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    alignas(16) uint64_t sums[2];
    _mm_store_si128(reinterpret_cast<__m128i*>(sums), pair);
    sum.add(sums[0], sums[1], factors);
  }

 private:
  I256 even_and_odd(int i) const {
    const I256 even = _mm256_and_si256(limb[i], _mm256_set1_epi64x(0xffffffff));
    return _mm256_add_epi64(even, _mm256_srli_epi64(limb[i], 32));
  }
};

// A pixel after the other: all channels of a pixel have its factor in common.
inline void emit_limbs(const EmitRow& row, Write write, CheckLanes& lanes) {
  const LimbCheck& check = *row.limbs;
  const int64_t blocks = (row.channels + kLimbChannels - 1) / kLimbChannels;
  static_assert(limb_pairs(8191) >= 2);
  const int64_t longest = row.limb_pairs / 2;  // a block adds two pairs to every lane
  const int64_t group = std::max<int64_t>(kRowBlock / kLimbChannels / blocks, 1);
  SummingAvx2::Sum sum(lanes);
  Staged staged;
  for (int64_t begin = 0; begin < row.pixels; begin += group) {
    const int64_t end = std::min(row.pixels, begin + group);
    if (row.channels % kLimbChannels == 0) {
      lanes.clipped[0] +=
          write(row, begin * row.channels, (end - begin) * row.channels, staged.pairs);
    } else {
      for (int64_t p = begin; p < end; ++p) {
        I256* pairs = staged.pairs + (p - begin) * 2 * blocks;
        lanes.clipped[0] += write(row, p * row.channels, row.channels, pairs);
      }
    }
    for (int64_t k = 0; k < row.terms; ++k) {
      const LimbBlock* digits = check.row(row.y, k) + row.first_channel / kLimbChannels;
      const I256* pairs = staged.pairs;
      for (int64_t p = begin; p < end; ++p) {
        for (int64_t first = 0; first < blocks; first += longest) {
          const int64_t last = std::min(blocks, first + longest);
          LimbSums sums;
          for (int64_t i = first; i < last; ++i, pairs += 2) sums.add(digits[i], pairs);
          sums.into_pixel(sum, check.factors(k, row.x + p));
        }
      }
      sum.fold();
    }
  }
  sum.save(lanes);
}

// Every element with a coefficient of its own.
inline void emit_dense(const EmitRow& row, Write write, CheckLanes& lanes) {
  const int64_t count = row.pixels * row.channels;
  SummingAvx2::Sum sum(lanes);
  SummingAvx2::Dot dot;
  Staged staged;
  lanes.clipped[0] += write(row, 0, count, staged.pairs);
  over<Avx2>(0, count, [&](int64_t j, auto... mask) __attribute__((always_inline)) {
    const I256 pairs = staged.pairs[j / kLimbChannels * 2 + j / Avx2::kLanes % 2];
    const I256 q = j % kLimbChannels < 16 ? lower(pairs) : upper(pairs);
    prefetch(row.t + j);
    dot.add(row.t + j, Avx2::add(q, Avx2::set(kShortBias)), mask...);
  });
  sum.add(dot);
  sum.save(lanes);
}

}  // namespace
}  // namespace cloister::rows

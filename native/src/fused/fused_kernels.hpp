// What an instruction set provides for a fused step: kernels on rows that stay in the L1 or L2
// cache. row_kernels.hpp writes them once for all vector widths.
#pragma once
#include <array>
#include <bit>
#include <cstdint>

#include "check/p52.hpp"
#include "cloister/fused_step.hpp"
#include "cloister/tuning.hpp"
#include "isa/kernels.hpp"

namespace cloister {

constexpr int64_t kRowBlock = 2048;      // elements of a long row that a kernel works on at once
constexpr int64_t kLongRow = 16;         // pixels: what a channel costs once is shared by so many
constexpr int64_t kColumnPixels = 1024;  // a factored EmitRow has no more

class LimbCheck;

// Which factored coefficients a back end wants as digits (limbs.hpp); it sums them without a bias.
enum class Digits { none, of_rows, of_either };

// Partial sums modulo P, one per vector lane: lane i of part k counts kPartWeights[k] times. And
// how many elements of a request were clipped, in each lane.
constexpr int kParts = 6;
constexpr std::array<uint64_t, kParts> kPartWeights{
    1, kFold, kFold, kFold * kFold, uint64_t{1} << 26, kFold * (uint64_t{1} << 26)};
struct CheckLanes {
  alignas(64) uint64_t part[kParts][8] = {};
  uint32_t clipped[16] = {};
};

// The largest float32 that rounds, half to even, to at most qmax: clamping there clips the rounded
// integers to qmax, and changes exactly those values whose rounded integers lie beyond.
inline float clip_limit(int32_t qmax) {
  const float tie = static_cast<float>(qmax) + 0.5f;  // exact, and rounds to qmax if that is even
  return std::bit_cast<float>(std::bit_cast<uint32_t>(tie) - static_cast<uint32_t>(qmax % 2));
}

// How many bytes from a value the reply and the unblinding term lie that take its place in the next
// tile, which comes into the first-level cache on the way; and how much further those lie that come
// into the second-level cache. 0 for what is not there, because looking up an address without
// memory takes time too.
struct Ahead {
  uintptr_t reply = 0, unblind = 0, far = 0;
};
inline uintptr_t address(const void* p) { return reinterpret_cast<uintptr_t>(p); }

// Reply to float: unblind, check, dequantise, add the residual, clamp.
struct ReplyRow {
  const uint32_t* reply;
  const uint32_t* unblind;  // or null
  const float* scale;
  const float* bias;
  const float* residual;  // or null; pixels are `residual_pixel` apart
  int64_t residual_pixel;
  float lo, hi;
  const uint64_t* a;  // one per pixel, or null: no check
  const uint64_t* b;
  const HalfBlock* halves;  // b once more
  const PairBlock* pairs;   // and once more
  int64_t pixels, channels;
  bool alone;         // no emit() that brings the next tile into the cache will come between
  int64_t far_bytes;  // alone: how far ahead replies and terms come into the second-level cache
  float* out;         // packed
};

// The same for a float32 source.
struct ValueRow {
  const float* values;
  const float* residual;
  int64_t residual_pixel;
  float lo, hi;
  int64_t pixels, channels;
  float* out;
};

// Output pixels x_begin .. x_end of one row of windows.
struct WindowRow {
  const WindowShape* shape;
  const float* const* rows;  // the rows of the window that lie inside the image, in order
  int64_t row_count;
  int64_t first_row;        // which row of the window rows[0] is
  int64_t width, channels;  // of the source
  int64_t x_begin, x_end;
  float* out;  // packed
};

// Float to request: quantise, check, pad, store.
struct EmitRow {
  const float* values;
  Ahead ahead;
  int64_t pixels, channels;
  float inv_scale, limit;  // clip_limit()
  // Coefficients of the check. Without factors, t has one for every element. With factors, that of
  // channel c of pixel p is the sum over k < terms of
  // t[k * term_stride + c] * factors[k * factor_stride + p].
  const uint64_t* t;  // or null: no check
  const uint64_t* factors;
  int64_t terms, term_stride, factor_stride;
  // The same factors as digits, for a back end that wants them, and where in them the row is.
  const LimbCheck* limbs;  // or null
  int64_t limb_pairs;      // that a sum of digits takes
  int64_t y, x, first_channel;
  const uint32_t* pad;  // for `blinded`
  uint32_t* blinded;    // one of these two
  int16_t* plain;
  const uint8_t* rounds;  // for emit_blinded: AES round keys
  const uint8_t* nonce;
  uint32_t
      first_block;  // values[0] is word 0 of this block; with factors, so is that of every pixel
  bool stream;      // too large for the caches: store past them if the kernel can
};

struct FusedKernels {
  void (*reply)(const ReplyRow&, CheckLanes&);
  void (*values)(const ValueRow&);
  void (*window)(const WindowRow&);
  void (*emit)(const EmitRow&, CheckLanes&);
  // The same for `blinded` rows of up to 2000 vectors a pixel, with the pad made in registers from
  // `rounds`; null: emit() is given every pad.
  void (*emit_blinded)(const EmitRow&, CheckLanes&);
  void (*finish)();  // makes every store visible before those that follow; null: they are
  Digits digits;
};

extern const FusedKernels kFusedPortable;
extern const FusedKernels kFusedAvx2;
extern const FusedKernels kFusedAvx512;

inline const FusedKernels& fused_kernels() {
  return of_active_isa(kFusedPortable, kFusedAvx2, kFusedAvx512);
}

}  // namespace cloister

// Fused steps with AVX-512: check sums from IFMA and VNNI, pads from VAES.
#include "fused/digits_avx512.hpp"
#include "fused/replies_avx512.hpp"
#include "fused/requests_avx512.hpp"
#include "fused/window_kernels.hpp"

namespace cloister {
namespace {

using rows::BlindedRequest;
using rows::kVectors;
using rows::PlainRequest;

// Integers that do not go where they are first written: a tile has no more.
struct Integers {
  alignas(64) int16_t value[kLargestTile];
};

// Channel after channel, a line of the request would be written in two halves.
void emit_staged(const EmitRow& row, CheckLanes& lanes) {
  Integers tile;
  rows::emit_limbs(row, PlainRequest<false>{tile.value}, lanes);
  for (int64_t j = 0; j < row.pixels * row.channels; j += 32) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(row.plain + j),
                        _mm512_load_si512(tile.value + j));
  }
}

// Under a pad that is given: tests, and requests whose pixels do not begin with an AES block.
void emit_padded(const EmitRow& row, CheckLanes& lanes) {
  Integers tile;
  rows::emit_limbs(row, PlainRequest<false>{tile.value}, lanes);
  rows::over<Avx512>(0, row.pixels * row.channels, [&](int64_t j, auto... mask) {
    const auto* q = reinterpret_cast<const __m256i*>(tile.value + j);
    const __m512i wide = _mm512_cvtepi16_epi32(_mm256_load_si256(q));
    const __m512i pad = Avx512::load(row.pad + j, mask...);
    Avx512::store(row.blinded + j, Avx512::add(wide, pad), mask...);
  });
}

void emit(const EmitRow& row, CheckLanes& lanes) {
  if (row.limbs == nullptr) {
    return row.blinded ? rows::emit_elements<SummingAvx512, rows::To::blinded>(row, lanes)
                       : rows::emit_elements<SummingAvx512, rows::To::plain>(row, lanes);
  }
  if (row.blinded) return emit_padded(row, lanes);
  if (rows::streams(row, row.plain, 32)) {
    if (row.limbs->by_channels()) return emit_staged(row, lanes);
    return rows::emit_limbs(row, PlainRequest<true>{row.plain}, lanes);
  }
  rows::emit_limbs(row, PlainRequest<false>{row.plain}, lanes);
}

// rows::emit with the pad made on the way: while AES waits for itself, the other units quantise.
template <bool kCheck, bool kStream>
void emit_blinded(const EmitRow& row, CheckLanes& lanes) {
  const BlindedRequest<kStream> request(row);
  rows::TileQuantiser quantiser(row);
  const int64_t count = row.pixels * row.channels;
  SummingAvx512::Sum sum(lanes);
  SummingAvx512::Dot dot;
  auto run = request.run(0, Avx512::kLanes);
  const auto step = [&](int64_t j, __m512i pad, auto... mask) __attribute__((always_inline)) {
    const __m512i q = quantiser(j, mask...);
    if constexpr (kCheck) {
      rows::prefetch(row.t + j);
      rows::prefetch(row.t + j + 8);
      dot.add(row.t + j, Avx512::add(q, Avx512::set(rows::kShortBias)), mask...);
    }
    run.put(j, q, pad, mask...);
  };
  constexpr int64_t kGroup = kVectors * Avx512::kLanes;
  __m512i pad[kVectors];
  int64_t j = 0;
  for (; j + kGroup <= count; j += kGroup) {
    run.template next<kVectors>(pad, kNothing);
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) step(j + i * Avx512::kLanes, pad[i]);
  }
  for (; j < count; j += Avx512::kLanes) {
    run.template next<1>(pad, kNothing);
    const int64_t left = std::min(count - j, Avx512::kLanes);
    step(j, pad[0], Avx512::first(static_cast<int>(left)));
  }
  if constexpr (kCheck) {
    sum.add(dot);
    sum.save(lanes);
  }
  quantiser.count(lanes);
}

template <bool kStream>
void emit_blinded_to(const EmitRow& row, CheckLanes& lanes) {
  if (row.limbs) return rows::emit_limbs(row, BlindedRequest<kStream>(row), lanes);
  return row.t ? emit_blinded<true, kStream>(row, lanes) : emit_blinded<false, kStream>(row, lanes);
}

void emit_blinded_rows(const EmitRow& row, CheckLanes& lanes) {
  const bool stream = rows::streams(row, row.blinded, 16);
  return stream ? emit_blinded_to<true>(row, lanes) : emit_blinded_to<false>(row, lanes);
}

// Streaming stores are weakly ordered: without this the worker could be told of a request before it
// is there.
void finish() { _mm_sfence(); }

}  // namespace

namespace rows {
namespace {

void emit_rest(const EmitRow& row, CheckLanes& lanes, int64_t first) {
  Integers unused;
  EmitRow again = row;
  again.ahead = {};
  const __m512i clipped = Avx512::load(lanes.clipped);  // counted when the request was written
  const PlainRequest<false> nowhere{unused.value};
  while (first < row.terms) first += sum_terms(again, nowhere, lanes, first);
  Avx512::store(lanes.clipped, clipped);
}

}  // namespace
}  // namespace rows

const FusedKernels kFusedAvx512{rows::any_reply_avx512,   rows::any_values<Avx512>,
                                rows::any_window<Avx512>, emit,
                                emit_blinded_rows,        finish,
                                Digits::of_either};

}  // namespace cloister

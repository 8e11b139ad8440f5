// AVX-512 with IFMA and VNNI for the check sums; pass_blinded_avx512.cpp has the blinded requests.
#include "pass_avx512.hpp"

#include "pass_limbs_avx512.hpp"
#include "pass_requests_avx512.hpp"
#include "pass_windows.hpp"

namespace cloister {
namespace {

using rows::PlainRequest;

// Integers that do not go where they are first written: a tile has no more.
struct Integers {
  alignas(64) int16_t value[kTile];
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
    Avx512::store(row.blinded + j, Avx512::plus(wide, pad), mask...);
  });
}

void emit(const EmitRow& row, CheckLanes& lanes) {
  if (row.limbs == nullptr) {
    return row.blinded ? rows::emit_elements<Avx512, rows::To::blinded>(row, lanes)
                       : rows::emit_elements<Avx512, rows::To::plain>(row, lanes);
  }
  if (row.blinded) return emit_padded(row, lanes);
  if (rows::streams(row, row.plain, 32)) {
    if (row.limbs->by_channels()) return emit_staged(row, lanes);
    return rows::emit_limbs(row, PlainRequest<true>{row.plain}, lanes);
  }
  rows::emit_limbs(row, PlainRequest<false>{row.plain}, lanes);
}

// Streaming stores are weakly ordered: without this the worker could be told of a request before it
// is there.
void finish() { _mm_sfence(); }

}  // namespace

void rows::emit_rest(const EmitRow& row, CheckLanes& lanes, int64_t first) {
  Integers unused;
  EmitRow again = row;
  again.ahead = {};
  const uint64_t clipped = lanes.clipped;  // counted when the request was written
  const PlainRequest<false> nowhere{unused.value};
  while (first < row.terms) first += sum_terms(again, nowhere, lanes, first);
  lanes.clipped = clipped;
}

const PassBackend kPassAvx512{rows::any_reply<Avx512>,   rows::any_values<Avx512>,
                              rows::any_window<Avx512>,  emit,
                              rows::emit_blinded_avx512, finish,
                              Digits::of_either};

}  // namespace cloister

// AVX-512 with IFMA and VNNI for the check sums and VAES for the pads.
#include "pass_avx512.hpp"

#include "pass_limbs_avx512.hpp"
#include "pass_requests_avx512.hpp"
#include "pass_windows.hpp"

namespace cloister {
namespace {

using rows::BlindedRequest;
using rows::kVectors;

// rows::emit with the pad made on the way: while AES waits for itself, the other units quantise.
template <bool kCheck, bool kStream>
void emit_blinded(const EmitRow& row, CheckLanes& lanes) {
  const BlindedRequest<kStream> request(row);
  const rows::Quantiser quantiser(row);
  const int64_t count = row.pixels * row.channels;
  Avx512::Sum sum(lanes);
  Avx512::Dot dot;
  auto run = request.run(0, Avx512::kLanes);
  const auto step = [&](int64_t j, __m512i pad, auto... mask) __attribute__((always_inline)) {
    const __m512i q = quantiser(j, mask...);
    if constexpr (kCheck) {
      rows::prefetch(row.t + j);
      rows::prefetch(row.t + j + 8);
      dot.add(row.t + j, Avx512::plus(q, rows::kShortBias), mask...);
    }
    run.put(j, q, pad, mask...);
  };
  constexpr int64_t kGroup = kVectors * Avx512::kLanes;
  __m512i pad[kVectors];
  int64_t j = 0;
  for (; j + kGroup <= count; j += kGroup) {
    run.template next<kVectors>(pad);
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) step(j + i * Avx512::kLanes, pad[i]);
  }
  for (; j < count; j += Avx512::kLanes) {
    run.template next<1>(pad);
    const int64_t left = std::min(count - j, Avx512::kLanes);
    step(j, pad[0], Avx512::first(static_cast<int>(left)));
  }
  if constexpr (kCheck) {
    sum.add(dot);
    sum.save(lanes);
  }
}

// Streaming stores need whole cache lines, which are `elements` of the request.
bool streams(const EmitRow& row, const void* request, int64_t elements) {
  return row.stream && reinterpret_cast<uintptr_t>(request) % 64 == 0 &&
         row.channels % elements == 0;
}

template <bool kStream>
void emit_blinded_to(const EmitRow& row, CheckLanes& lanes) {
  if (row.limbs) return rows::emit_limbs(row, BlindedRequest<kStream>(row), lanes);
  return row.t ? emit_blinded<true, kStream>(row, lanes) : emit_blinded<false, kStream>(row, lanes);
}

void any_emit_blinded(const EmitRow& row, CheckLanes& lanes) {
  const bool stream = streams(row, row.blinded, 16);
  return stream ? emit_blinded_to<true>(row, lanes) : emit_blinded_to<false>(row, lanes);
}

// Channel after channel, a line of the request would be written in two halves.
void emit_staged(const EmitRow& row, CheckLanes& lanes) {
  alignas(64) int16_t tile[kTile];
  rows::emit_limbs(row, rows::PlainRequest<false>{tile}, lanes);
  for (int64_t j = 0; j < row.pixels * row.channels; j += 32) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(row.plain + j), _mm512_load_si512(tile + j));
  }
}

void any_emit(const EmitRow& row, CheckLanes& lanes) {
  if (row.limbs == nullptr) {
    return row.blinded ? rows::emit_elements<Avx512, rows::To::blinded>(row, lanes)
                       : rows::emit_elements<Avx512, rows::To::plain>(row, lanes);
  }
  if (row.blinded) {
    return rows::emit_limbs(row, rows::PaddedRequest{row.blinded, row.pad}, lanes);
  }
  if (streams(row, row.plain, 32)) {
    if (!row.limbs->by_channels()) {
      return rows::emit_limbs(row, rows::PlainRequest<true>{row.plain}, lanes);
    }
    if (row.pixels * row.channels <= kTile) return emit_staged(row, lanes);
  }
  rows::emit_limbs(row, rows::PlainRequest<false>{row.plain}, lanes);
}

// Streaming stores are weakly ordered: without this the worker could be told of a request before it
// is there.
void finish() { _mm_sfence(); }

}  // namespace

const PassBackend kPassAvx512{rows::any_reply<Avx512>,
                              rows::any_values<Avx512>,
                              rows::any_window<Avx512>,
                              any_emit,
                              any_emit_blinded,
                              finish,
                              true};

}  // namespace cloister

// Fused steps with AVX2: check sums of replies from 32-bit products, of requests from 16-bit ones,
// pads from AES-NI.
#include "fused/requests_avx2.hpp"
#include "fused/window_kernels.hpp"

namespace cloister {
namespace {

template <class Request>
void emit_as(const EmitRow& row, CheckLanes& lanes) {
  if (row.limbs != nullptr) return rows::emit_limbs(row, rows::write<Request, true>, lanes);
  if (row.t != nullptr) return rows::emit_dense(row, rows::write<Request, true>, lanes);
  lanes.clipped[0] += rows::write<Request, false>(row, 0, row.pixels * row.channels, nullptr);
}

// Streaming stores should fill whole cache lines, which are `elements` of the request.
bool streams(const EmitRow& row, const void* request, int64_t elements) {
  return row.stream && reinterpret_cast<uintptr_t>(request) % 64 == 0 &&
         row.channels % elements == 0;
}

void any_emit_blinded(const EmitRow& row, CheckLanes& lanes) {
  return streams(row, row.blinded, 16) ? emit_as<rows::BlindedRequest<true>>(row, lanes)
                                       : emit_as<rows::BlindedRequest<false>>(row, lanes);
}

void any_emit(const EmitRow& row, CheckLanes& lanes) {
  if (row.blinded) return emit_as<rows::PaddedRequest>(row, lanes);
  return streams(row, row.plain, 32) ? emit_as<rows::PlainRequest<true>>(row, lanes)
                                     : emit_as<rows::PlainRequest<false>>(row, lanes);
}

// Streaming stores are weakly ordered: without this the worker could be told of a request before it
// is there.
void finish() { _mm_sfence(); }

}  // namespace

const FusedKernels kFusedAvx2{rows::any_reply<SummingAvx2>,
                              rows::any_values<Avx2>,
                              rows::any_window<Avx2>,
                              any_emit,
                              any_emit_blinded,
                              finish,
                              Digits::of_rows};

}  // namespace cloister

// AVX2: check sums of replies from 32-bit products, of requests from 16-bit ones, AES-NI for the
// pads.
#include "pass_avx2.hpp"

#include "pass_limbs_avx2.hpp"
#include "pass_requests_avx2.hpp"
#include "pass_windows.hpp"

namespace cloister {
namespace {

namespace avx2 = rows::avx2;

void emit_with(const EmitRow& row, avx2::Write write, CheckLanes& lanes) {
  if (row.limbs != nullptr) return avx2::emit_limbs(row, write, lanes);
  return row.t ? avx2::emit_dense(row, write, lanes) : avx2::emit_unchecked(row, write);
}

// Streaming stores should fill whole cache lines, which are `elements` of the request.
bool streams(const EmitRow& row, const void* request, int64_t elements) {
  return row.stream && reinterpret_cast<uintptr_t>(request) % 64 == 0 &&
         row.channels % elements == 0;
}

void any_emit_blinded(const EmitRow& row, CheckLanes& lanes) {
  emit_with(row,
            streams(row, row.blinded, 16) ? avx2::write<avx2::BlindedRequest<true>>
                                          : avx2::write<avx2::BlindedRequest<false>>,
            lanes);
}

void any_emit(const EmitRow& row, CheckLanes& lanes) {
  if (row.blinded) return emit_with(row, avx2::write<avx2::PaddedRequest>, lanes);
  emit_with(row,
            streams(row, row.plain, 32) ? avx2::write<avx2::PlainRequest<true>>
                                        : avx2::write<avx2::PlainRequest<false>>,
            lanes);
}

// Streaming stores are weakly ordered: without this the worker could be told of a request before it
// is there.
void finish() { _mm_sfence(); }

}  // namespace

const PassBackend kPassAvx2{rows::any_reply<Avx2>,  rows::any_values<Avx2>,
                            rows::any_window<Avx2>, any_emit,
                            any_emit_blinded,       finish,
                            Digits::of_rows};

}  // namespace cloister

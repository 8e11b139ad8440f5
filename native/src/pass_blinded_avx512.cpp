// Blinded requests with AVX-512: pads from VAES, check sums from VNNI and IFMA.
#include "pass_limbs_avx512.hpp"
#include "pass_requests_avx512.hpp"

namespace cloister {
namespace {

using rows::BlindedRequest;
using rows::kVectors;

// rows::emit with the pad made on the way: while AES waits for itself, the other units quantise.
template <bool kCheck, bool kStream>
void emit_blinded(const EmitRow& row, CheckLanes& lanes) {
  const BlindedRequest<kStream> request(row);
  rows::TileQuantiser quantiser(row);
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
  quantiser.count(lanes);
}

template <bool kStream>
void emit_blinded_to(const EmitRow& row, CheckLanes& lanes) {
  if (row.limbs) return rows::emit_limbs(row, BlindedRequest<kStream>(row), lanes);
  return row.t ? emit_blinded<true, kStream>(row, lanes) : emit_blinded<false, kStream>(row, lanes);
}

}  // namespace

void rows::emit_blinded_avx512(const EmitRow& row, CheckLanes& lanes) {
  const bool stream = streams(row, row.blinded, 16);
  return stream ? emit_blinded_to<true>(row, lanes) : emit_blinded_to<false>(row, lanes);
}

}  // namespace cloister

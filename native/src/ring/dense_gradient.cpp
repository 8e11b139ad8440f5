#include "cloister/dense_gradient.hpp"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "isa/kernels.hpp"
#include "threads/thread_pool.hpp"

namespace cloister {
namespace {

// Two neighbouring samples' deltas as one word; a sample without a neighbour has a zero beside it.
std::vector<uint32_t> paired(const int16_t* delta, int64_t n, int64_t outputs) {
  std::vector<uint32_t> pairs(static_cast<size_t>((n + 1) / 2 * outputs));
  for (int64_t row = 0; row < n; row += 2) {
    const int16_t *low = delta + row * outputs, *high = row + 1 < n ? low + outputs : nullptr;
    uint32_t* out = pairs.data() + row / 2 * outputs;
    for (int64_t o = 0; o < outputs; ++o) {
      const uint32_t above = high ? static_cast<uint32_t>(high[o]) << 16 : 0u;
      out[o] = (static_cast<uint32_t>(low[o]) & 0xFFFFu) | above;
    }
  }
  return pairs;
}

}  // namespace

void dense_gradient(const int16_t* delta, const uint32_t* x, int64_t n, int64_t outputs,
                    int64_t inputs, uint32_t* out, int threads) {
  const std::vector<uint32_t> pairs = paired(delta, n, outputs);
  const int64_t panels = (inputs + kRingPanel - 1) / kRingPanel;
  const int64_t workers = std::clamp<int64_t>(threads, 1, std::max<int64_t>(panels, 1));
  const int64_t digits = (n + 1) / 2 * 2 * kRingPanel;
  std::vector<uint32_t> scratch(static_cast<size_t>(workers * digits));
  in_parallel(panels, static_cast<int>(workers), [&](int64_t worker, int64_t panel) {
    const int64_t first = panel * kRingPanel;
    kernels().dense_gradient({pairs.data(), x + first, n, outputs, inputs,
                              std::min(kRingPanel, inputs - first),
                              scratch.data() + worker * digits, out + first});
  });
}

}  // namespace cloister

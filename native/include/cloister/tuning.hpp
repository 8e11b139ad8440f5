// What suits one processor and not another. Results are the same, bit for bit, whatever is chosen.
#pragma once
#include <cstdint>

namespace cloister {

constexpr int64_t kLeastTile = 512, kLargestTile = 4096;

struct Tuning {
  // Elements that go through all kernels before the next ones do: 4 bytes each of an answer, of
  // what unblinds it and of the value between.
  int64_t tile = 4096;
  // Answers and stored terms come into the second-level cache so many tiles before they are read;
  // 0: only into the first-level cache, one tile before.
  int64_t far_tiles = 4;
  // Requests of so many elements and more are written past the caches.
  int64_t stream_from = 1 << 12;

  bool operator==(const Tuning&) const = default;
};

// Of this process: a step uses the one in force when it runs.
Tuning tuning();
// Throws std::invalid_argument for a value out of range.
void set_tuning(const Tuning& wanted);

}  // namespace cloister

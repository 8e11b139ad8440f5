#include "cloister/tuning.hpp"

#include <mutex>
#include <stdexcept>

namespace cloister {
namespace {

constexpr int64_t kFarthest = 64;
constexpr int64_t kLargestStream = int64_t{1} << 34;

struct InForce {
  std::mutex mutex;
  Tuning tuning;
};

InForce& in_force() {
  static InForce one;
  return one;
}

}  // namespace

Tuning tuning() {
  InForce& one = in_force();
  const std::lock_guard lock(one.mutex);
  return one.tuning;
}

void set_tuning(const Tuning& wanted) {
  const bool tile =
      wanted.tile >= kLeastTile && wanted.tile <= kLargestTile && wanted.tile % kLeastTile == 0;
  if (!tile) throw std::invalid_argument("tuning: tile must be a multiple of 512 up to 4096");
  if (wanted.far_tiles < 0 || wanted.far_tiles > kFarthest) {
    throw std::invalid_argument("tuning: far_tiles must be within 0 and 64");
  }
  if (wanted.stream_from < 1 || wanted.stream_from > kLargestStream) {
    throw std::invalid_argument("tuning: stream_from must be within 1 and 2^34");
  }
  InForce& one = in_force();
  const std::lock_guard lock(one.mutex);
  one.tuning = wanted;
}

}  // namespace cloister

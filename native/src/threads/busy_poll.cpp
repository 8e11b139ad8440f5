#include "cloister/busy_poll.hpp"

#include <poll.h>

#include <chrono>

#include "threads/pause.hpp"

namespace cloister {

bool busy_poll(int descriptor, int64_t patience_us) {
  constexpr int kPauses = 20;
  pollfd watched{descriptor, POLLIN, 0};
  const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(patience_us);
  do {
    if (poll(&watched, 1, 0) != 0) return true;  // what is wrong with it, recv() will say
    for (int i = 0; i < kPauses; ++i) pause();
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

}  // namespace cloister

// A pool of helper threads. The helpers are started once and wait for the next call, because a
// thread's start costs as much as a small layer. The helpers run on other cores than their caller,
// if the process has any.
#pragma once
#include <cstdint>
#include <functional>

namespace cloister {

// Runs work(worker, item) once for every item below `items`, on up to `threads` threads, the
// caller's included; `worker` is below `threads`. The work must not throw. Calls from several
// threads at once are allowed: only one of them has helpers, the others do without.
void in_parallel(int64_t items, int threads,
                 const std::function<void(int64_t worker, int64_t item)>& work);

// While this object lives, a packet that arrives at `descriptor` wakes the helpers of a call with
// `threads` threads together with the thread that waits in recv(), because a core can take longer
// to wake than a layer lasts. The helpers read nothing, and sleep again when no call follows soon.
// The descriptor must stay open while the object lives.
class WakeOnPacket {
 public:
  WakeOnPacket(int descriptor, int threads);
  ~WakeOnPacket();
  WakeOnPacket(const WakeOnPacket&) = delete;
  WakeOnPacket& operator=(const WakeOnPacket&) = delete;

 private:
  int descriptor_;
};

}  // namespace cloister

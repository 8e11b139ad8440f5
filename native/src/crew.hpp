// Work on several threads. The helpers are started once and wait for the next call: a thread's
// start costs as much as a small layer. They keep off their caller's core if it has another.
#pragma once
#include <cstdint>
#include <functional>

namespace cloister {

// Runs work(worker, item) once for every item below `items`, on up to `threads` threads, the
// caller's included; `worker` is below `threads`. The work must not throw. Calls from several
// threads at once are allowed: only one of them has helpers, the others do without.
void in_parallel(int64_t items, int threads,
                 const std::function<void(int64_t worker, int64_t item)>& work);

// While it lives, what arrives at a descriptor wakes the helpers of a call with `threads` threads
// together with the thread that waits there: a core can take longer to wake than a layer lasts. The
// helpers read nothing, and sleep again when no call follows soon. The descriptor must stay open
// for as long.
class Attention {
 public:
  Attention(int descriptor, int threads);
  ~Attention();
  Attention(const Attention&) = delete;
  Attention& operator=(const Attention&) = delete;

 private:
  int descriptor_;
};

}  // namespace cloister

// Work on several threads. The helpers are started once and wait for the next call: a thread's
// start costs as much as a small layer.
#pragma once
#include <cstdint>
#include <functional>

namespace cloister {

// Runs work(worker, item) once for every item below `items`, on up to `threads` threads, the
// caller's included; `worker` is below `threads`. The work must not throw. Calls from several
// threads at once are allowed: only one of them has helpers, the others do without.
void in_parallel(int64_t items, int threads,
                 const std::function<void(int64_t worker, int64_t item)>& work);

}  // namespace cloister

// Waiting for a descriptor without blocking.
#pragma once
#include <cstdint>

namespace cloister {

// Polls the descriptor for up to `patience_us` microseconds until there is something to read, an
// end or an error; false if nothing came. A sender does not have to wake a thread that waits like
// this: waking a sleeping core is most of the cost of a small message to another process.
bool busy_poll(int descriptor, int64_t patience_us);

}  // namespace cloister

// Waiting for a descriptor without going to sleep.
#pragma once
#include <cstdint>

namespace cloister {

// Looks at the descriptor for up to `patience_us` microseconds until there is something to read, an
// end or an error; false if nothing came. Whoever waits like this costs nobody a wake-up: the
// sender of what arrives does not have to interrupt a sleeping core, which is most of what sending
// a small message to another process costs.
bool busy_poll(int descriptor, int64_t patience_us);

}  // namespace cloister

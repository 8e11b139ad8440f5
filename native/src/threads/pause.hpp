// A breath between two looks at the same thing: the core's other hardware thread gets its share.
#pragma once

namespace cloister {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace cloister

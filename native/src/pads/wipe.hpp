// Overwriting secrets.
#pragma once
#include <cstddef>
#include <cstring>

namespace cloister {

// The compiler may drop a plain memset of memory that is not read again.
inline void wipe(void* memory, size_t bytes) {
  if (bytes == 0) return;  // then memory may be null
  std::memset(memory, 0, bytes);
  __asm__ volatile("" : : "r"(memory) : "memory");
}

}  // namespace cloister

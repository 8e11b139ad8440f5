// Lines that come into a cache before they are read.
//
// The core drops a prefetch while too many are on their way: a stream comes without any wait only
// if its lines are asked for long before they are read, and a few at a time.
#pragma once
#include <cstdint>

namespace cloister {
namespace {

// By number, because the address may lie behind the array: there a prefetch does nothing.
template <int kLevel>
inline __attribute__((always_inline)) void prefetch_line(uintptr_t at) {
  __builtin_prefetch(reinterpret_cast<const void*>(at), 0, kLevel == 1 ? 3 : 2);
}

// Of a stream that is being read at `p`: the line a page further into the first-level cache, that
// `far_bytes` further into the second-level one.
inline __attribute__((always_inline)) void prefetch_behind(const void* p, int64_t far_bytes) {
  constexpr uintptr_t kNearBytes = 4096;
  const auto at = reinterpret_cast<uintptr_t>(p);
  prefetch_line<1>(at + kNearBytes);
  prefetch_line<2>(at + static_cast<uintptr_t>(far_bytes));
}

}  // namespace
}  // namespace cloister

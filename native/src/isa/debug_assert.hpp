// Bounds that a comment derives, checked while the native tests run: the sanitizer build defines
// CLOISTER_DEBUG_ASSERTS. In every other build the condition is compiled, not evaluated.
#pragma once

namespace cloister {

[[noreturn]] void debug_assert_failed(const char* condition, const char* file, int line);

}  // namespace cloister

#ifdef CLOISTER_DEBUG_ASSERTS
#define CLOISTER_DEBUG_ASSERT(condition)               \
  (static_cast<bool>(condition) ? static_cast<void>(0) \
                                : ::cloister::debug_assert_failed(#condition, __FILE__, __LINE__))
#else
#define CLOISTER_DEBUG_ASSERT(condition) static_cast<void>(sizeof(static_cast<bool>(condition)))
#endif

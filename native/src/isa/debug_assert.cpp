#include "isa/debug_assert.hpp"

#include <cstdio>
#include <cstdlib>

namespace cloister {

void debug_assert_failed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: the bound %s does not hold\n", file, line, condition);
  std::abort();
}

}  // namespace cloister

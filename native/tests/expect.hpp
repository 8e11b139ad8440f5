// What every native test is made of.
#pragma once
#include <cstdio>
#include <cstdlib>

#include "cloister/isa.hpp"

namespace cloister {

// Ends the test unless the condition holds.
inline void expect(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "%s: failed: %s\n", isa_name(active_isa()), what);
  std::exit(1);
}

}  // namespace cloister

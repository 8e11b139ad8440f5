// What a back end of transpose.hpp provides; transpose.cpp picks one through active_isa().
#pragma once
#include <cstdint>

namespace cloister {

struct TransposeBackend {
  void (*transpose)(const uint32_t* x, int64_t rows, int64_t columns, uint32_t* out);
};

extern const TransposeBackend kTransposePortable;
extern const TransposeBackend kTransposeAvx512;

}  // namespace cloister

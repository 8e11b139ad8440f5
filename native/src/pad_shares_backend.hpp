// What a back end of pad_shares.hpp provides; pad_shares.cpp picks one through active_isa().
#pragma once
#include <cstdint>

#include "p52.hpp"

namespace cloister {

__extension__ using I128 = __int128;

// Where a digit lies in a word: (word >> shift) & mask is the digit plus half its range.
struct DigitField {
  int shift;
  uint32_t mask, half;
};

struct PadSharesBackend {
  // The digits of n <= 2^20 words plus c, and <t, digits>.
  I128 (*split)(const uint32_t* words, uint32_t c, const uint64_t* t, int64_t n, DigitField field,
                int16_t* digits);
  // out += z << shift, and <b, z> with z signed, |<b, z>| < 2^110; n <= 2^24.
  I128 (*add)(const uint64_t* b, const uint32_t* z, int64_t n, int shift, uint32_t* out);
};

extern const PadSharesBackend kPadSharesPortable;
extern const PadSharesBackend kPadSharesAvx2;
extern const PadSharesBackend kPadSharesAvx512;

}  // namespace cloister

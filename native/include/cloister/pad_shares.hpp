// What the trusted side does with a share of a pad: cut it into digits that a worker may see, and
// add up the worker's answers; both with the sums of Freivalds' check, modulo P = 2^52 - 47.
//
// A word of 32 bits is the sum of its digits, each times the power of two that the widths before
// it add up to. Digits are balanced, d in [-2^(w-1), 2^(w-1)), lowest first; widths are 1 to 16.
#pragma once
#include <cstdint>
#include <vector>

namespace cloister {

// digits[k][i] is digit k of share[i]; sums[k] = <t, digit k> mod P, canonical; t[n] below P.
void split_share(const uint32_t* share, const uint64_t* t, int64_t n,
                 const std::vector<int>& widths, int16_t* digits, uint64_t* sums);

// answers[k][pixels][channels] belongs to digit k: out += answers[k] << shift modulo 2^32 for each,
// and sums[k] = sum of a[p] b[c] answers[k][p][c] mod P, canonical, with answers read as signed
// words. They are read once: another process may still write them.
void add_answers(const uint32_t* answers, const uint64_t* a, int64_t pixels, const uint64_t* b,
                 int64_t channels, const std::vector<int>& widths, uint32_t* out, uint64_t* sums);

}  // namespace cloister

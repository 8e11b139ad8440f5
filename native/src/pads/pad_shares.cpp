#include "cloister/pad_shares.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "check/p52.hpp"
#include "isa/kernels.hpp"
#include "pads/wipe.hpp"

namespace cloister {
namespace {

constexpr int64_t kTile = 2048;  // words: with their coefficients they stay in the L1 cache

// Nearly 2^112 and 0 mod P: it makes sums positive.
constexpr U128 kPositive = U128{kP52} << 60;

// Below 2^53, and v mod P; |v| < 2^111.
uint64_t fold_signed(I128 v) {
  const U128 x = static_cast<U128>(v) + kPositive;
  CLOISTER_DEBUG_ASSERT(x >> 113 == 0);
  const U128 once = fold(x);
  CLOISTER_DEBUG_ASSERT(once >> 67 == 0);
  const uint64_t low = static_cast<uint64_t>(once) & kLow52;
  const uint64_t twice = low + kFold * static_cast<uint64_t>(once >> 52);
  CLOISTER_DEBUG_ASSERT(twice >> 53 == 0);
  return twice;
}

std::vector<DigitField> fields_of(const std::vector<int>& widths) {
  std::vector<DigitField> fields;
  int shift = 0;
  for (const int width : widths) {
    if (width < 1 || width > 16 || shift + width > 32) break;
    const uint32_t half = uint32_t{1} << (width - 1);
    fields.push_back({shift, 2 * half - 1, half});
    shift += width;
  }
  if (shift != 32 || fields.size() != widths.size()) {
    throw std::invalid_argument("pad shares: widths must be 1 to 16 and sum to 32");
  }
  return fields;
}

}  // namespace

void split_share(const uint32_t* share, const uint64_t* t, int64_t n,
                 const std::vector<int>& widths, int16_t* digits, uint64_t* sums) {
  const std::vector<DigitField> fields = fields_of(widths);
  // The plain digits of share + c are its balanced ones, each plus half its range: c is the sum of
  // these halves.
  uint32_t c = 0;
  for (const DigitField& field : fields) c += field.half << field.shift;
  std::fill(sums, sums + fields.size(), 0);
  const PadShareKernels& shares = kernels().pad_shares;
  for (int64_t start = 0; start < n; start += kTile) {
    const int64_t count = std::min(kTile, n - start);
    for (size_t k = 0; k < fields.size(); ++k) {
      int16_t* out = digits + static_cast<int64_t>(k) * n + start;
      const I128 sum = shares.split(share + start, c, t + start, count, fields[k], out);
      sums[k] = add(sums[k], fold_signed(sum));
    }
  }
}

void add_answers(const uint32_t* answers, const uint64_t* a, int64_t pixels, const uint64_t* b,
                 int64_t channels, const std::vector<int>& widths, uint32_t* out, uint64_t* sums) {
  const std::vector<DigitField> fields = fields_of(widths);
  const PadShareKernels& shares = kernels().pad_shares;
  const int64_t at_once = std::max<int64_t>(1, kTile / std::max<int64_t>(channels, 1));
  std::vector<uint32_t> tile(static_cast<size_t>(at_once * channels));
  std::fill(sums, sums + fields.size(), 0);
  for (int64_t start = 0; start < pixels; start += at_once) {
    const int64_t count = std::min(at_once, pixels - start);
    const auto bytes = static_cast<size_t>(count * channels) * sizeof(uint32_t);
    for (size_t k = 0; k < fields.size(); ++k) {
      const int64_t first = static_cast<int64_t>(k) * pixels + start;
      std::memcpy(tile.data(), answers + first * channels, bytes);
      asm volatile("" ::: "memory");  // what is summed and added is this copy
      U128 sum = 0;
      for (int64_t p = 0; p < count; ++p) {
        const I128 dot = shares.add(b, tile.data() + p * channels, channels, fields[k].shift,
                                    out + (start + p) * channels);
        sum += static_cast<U128>(a[start + p]) * fold_signed(dot);  // 2^11 products of 105 bits
      }
      CLOISTER_DEBUG_ASSERT(sum >> 116 == 0);
      sums[k] = add(sums[k], reduce(sum));
    }
  }
  wipe(tile.data(), tile.size() * sizeof tile[0]);
}

}  // namespace cloister

// NIST SP 800-38A F.5.5 on every instruction set, and streams that start and end anywhere.
#include <stdexcept>
#include <vector>

#include "cloister/aes_ctr.hpp"
#include "cloister/isa.hpp"
#include "expect.hpp"

using namespace cloister;

namespace {

constexpr uint8_t kKey[32] = {0x60, 0x3d, 0xeb, 0x10, 0x15, 0xca, 0x71, 0xbe, 0x2b, 0x73, 0xae,
                              0xf0, 0x85, 0x7d, 0x77, 0x81, 0x1f, 0x35, 0x2c, 0x07, 0x3b, 0x61,
                              0x08, 0xd7, 0x2d, 0x98, 0x10, 0xa3, 0x09, 0x14, 0xdf, 0xf4};
constexpr uint8_t kNonce[12] = {0xf0, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5,
                                0xf6, 0xf7, 0xf8, 0xf9, 0xfa, 0xfb};
constexpr uint64_t kFirst = 0xfcfdfeff;
// Output blocks of the vector.
constexpr uint8_t kStream[32] = {0x0b, 0xdf, 0x7d, 0xf1, 0x59, 0x17, 0x16, 0x33, 0x5e, 0x9a, 0x8b,
                                 0x15, 0xc8, 0x60, 0xc5, 0x02, 0x5a, 0x6e, 0x69, 0x9d, 0x53, 0x61,
                                 0x19, 0x06, 0x54, 0x33, 0x86, 0x3c, 0x8f, 0x65, 0x7b, 0x94};

void test_vector() {
  const AesSchedule key(kKey);
  uint32_t words[8];
  aes_ctr_fill(key, kNonce, kFirst, words, 8);
  for (int i = 0; i < 32; ++i) {
    expect(static_cast<uint8_t>(words[i / 4] >> (8 * (i % 4))) == kStream[i], "NIST output block");
  }
}

void test_pieces() {
  const AesSchedule key(kKey);
  std::vector<uint32_t> whole(6000);
  aes_ctr_fill(key, kNonce, 0, whole.data(), 6000);
  for (int64_t n = 0; n < 200; ++n) {
    const uint64_t block = static_cast<uint64_t>(7 * n);
    std::vector<uint32_t> part(static_cast<size_t>(n));  // exact: sanitizers see one word too many
    aes_ctr_fill(key, kNonce, block, part.data(), n);
    for (int64_t i = 0; i < n; ++i) {
      expect(part[static_cast<size_t>(i)] == whole[4 * block + static_cast<size_t>(i)], "piece");
    }
  }
}

void test_subtraction() {
  const AesSchedule key(kKey);
  std::vector<uint32_t> whole(6000);
  aes_ctr_fill(key, kNonce, 0, whole.data(), 6000);
  for (uint64_t first = 0; first < 9; ++first) {
    for (const int64_t n : {0, 1, 3, 4, 5, 15, 16, 17, 127, 128, 129, 143, 500, 2048}) {
      std::vector<uint32_t> in, out(static_cast<size_t>(n));
      for (int64_t i = 0; i < n; ++i) in.push_back(static_cast<uint32_t>(i) * 0x9e3779b9u);
      aes_ctr_subtract(key, kNonce, first, in.data(), out.data(), n);
      for (size_t i = 0; i < in.size(); ++i) {
        expect(out[i] == in[i] - whole[first + i], "word minus keystream");
      }
    }
  }
}

bool refused(const auto& action) {
  try {
    action();
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

void test_end_of_counter() {
  const AesSchedule key(kKey);
  uint32_t words[5];
  aes_ctr_fill(key, kNonce, kAesBlocks - 1, words, 4);
  expect(refused([&] { aes_ctr_fill(key, kNonce, kAesBlocks - 1, words, 5); }),
         "a stream beyond the last block");
  const uint32_t in[5] = {};
  aes_ctr_subtract(key, kNonce, 4 * kAesBlocks - 3, in, words, 3);
  expect(refused([&] { aes_ctr_subtract(key, kNonce, 4 * kAesBlocks - 3, in, words, 4); }),
         "a subtraction beyond the last block");
}

}  // namespace

int main() {
  for (int i = 0; i <= static_cast<int>(best_isa()); ++i) {
    force_isa(static_cast<Isa>(i));
    if (!has_aes()) continue;
    test_vector();
    test_pieces();
    test_subtraction();
    test_end_of_counter();
  }
  return 0;
}

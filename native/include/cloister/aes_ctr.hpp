// AES-256 in counter mode as a stream of 32-bit words: the one-time pads.
//   counter block = nonce (12 bytes) || block number (32-bit big endian); OpenSSL's CTR.
// Only with AES instructions: a table-driven AES would leak the key through the cache, so on a CPU
// without them the caller brings pads from another library.
#pragma once
#include <cstddef>
#include <cstdint>

namespace cloister {

constexpr size_t kAesKeyBytes = 32;
constexpr size_t kAesNonceBytes = 12;
constexpr size_t kAesRoundBytes = 4 * 16;           // of a round in an expanded key
constexpr uint64_t kAesBlocks = uint64_t{1} << 32;  // blocks under one nonce

// Expanded key; wiped when it goes out of scope.
class AesSchedule {
 public:
  explicit AesSchedule(const uint8_t key[kAesKeyBytes]);
  ~AesSchedule();
  AesSchedule(const AesSchedule&) = delete;
  AesSchedule& operator=(const AesSchedule&) = delete;
  // 15 round keys, each four times, as a vector of four blocks wants them.
  const uint8_t* rounds() const { return rounds_; }

 private:
  alignas(64) uint8_t rounds_[15 * kAesRoundBytes];
};

bool has_aes();  // does the active instruction set offer AES?

// Words 4 * first_block, 4 * first_block + 1, ... of the stream, each little endian.
// Throws std::invalid_argument without AES instructions or when block numbers would wrap.
void aes_ctr_fill(const AesSchedule& key, const uint8_t nonce[kAesNonceBytes], uint64_t first_block,
                  uint32_t* out, int64_t n);

// out[i] = in[i] - word first_word + i of the stream (mod 2^32); every word of `in` is read once.
// On the way, words a page further come into the first-level cache, and those `far_bytes` further
// into the second-level one; 0: neither. Throws as aes_ctr_fill does.
void aes_ctr_subtract(const AesSchedule& key, const uint8_t nonce[kAesNonceBytes],
                      uint64_t first_word, const uint32_t* in, uint32_t* out, int64_t n,
                      int64_t far_bytes = 0);

}  // namespace cloister

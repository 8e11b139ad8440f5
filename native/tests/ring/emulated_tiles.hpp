// AMX tiles in plain C++, as Intel's manual (volume 2, "Intel AMX instruction set reference")
// defines the instructions. An operation that the processor refuses ends the test.
#pragma once
#include <cstdint>
#include <cstring>

#include "expect.hpp"

namespace cloister {

// The operand of ldtilecfg.
struct TileLayout {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileLayout) == 64);

// The state of one thread.
class TileFile {
 public:
  static constexpr int kTiles = 8, kRows = 16, kBytes = 64;

  // ldtilecfg: every tile becomes 0.
  void configure(const TileLayout& layout) {
    expect(layout.palette == 1 && layout.start_row == 0, "tiles: palette 1 from the first row on");
    for (const uint8_t byte : layout.reserved) expect(byte == 0, "tiles: reserved bytes are 0");
    for (int i = 0; i < 16; ++i) {
      const bool none = layout.rows[i] == 0 && layout.row_bytes[i] == 0;
      const bool some = i < kTiles && layout.rows[i] > 0 && layout.rows[i] <= kRows &&
                        layout.row_bytes[i] > 0 && layout.row_bytes[i] <= kBytes;
      expect(none || some, "tiles: sizes within the palette");
    }
    layout_ = layout;
    std::memset(tiles_, 0, sizeof tiles_);
  }
  void release() { layout_ = {}; }
  bool released() const { return layout_.palette == 0; }

  void zero(int tile) {
    expect(rows(tile) > 0, "tiles: a configured tile");
    std::memset(tiles_[tile], 0, sizeof tiles_[tile]);
  }
  // tileloadd: what the configuration leaves out of a tile becomes 0.
  void load(int tile, const void* base, int64_t stride) {
    zero(tile);
    for (int r = 0; r < rows(tile); ++r) {
      std::memcpy(tiles_[tile][r], static_cast<const uint8_t*>(base) + r * stride, bytes(tile));
    }
  }
  void store(int tile, void* base, int64_t stride) const {
    expect(rows(tile) > 0, "tiles: a configured tile");
    for (int r = 0; r < rows(tile); ++r) {
      std::memcpy(static_cast<uint8_t*>(base) + r * stride, tiles_[tile][r], bytes(tile));
    }
  }
  // tdpb{s,u}{s,u}d: sum += x w, four bytes at a time, in 32 bits that wrap. Every access is within
  // tiles_; checking each one would take most of the test's time.
  __attribute__((no_sanitize("address"))) void multiply(int sum, int x, int w, bool x_signed,
                                                        bool w_signed) {
    expect(sum != x && sum != w && x != w, "tiles: three different ones");
    expect(rows(sum) > 0 && rows(sum) == rows(x) && bytes(sum) == bytes(w) &&
               bytes(x) == 4 * rows(w) && bytes(sum) % 4 == 0,
           "tiles: sizes that fit each other");
    const int height = rows(sum), width = bytes(sum) / 4, depth = bytes(x);
    // (b ^ 128) - 128 reads a byte as signed.
    const int x_flip = x_signed ? 128 : 0, w_flip = w_signed ? 128 : 0;
    for (int m = 0; m < height; ++m) {
      for (int n = 0; n < width; ++n) {
        uint32_t value = 0;
        std::memcpy(&value, tiles_[sum][m] + 4 * n, sizeof value);
        for (int k = 0; k < depth; ++k) {
          const int product = ((tiles_[x][m][k] ^ x_flip) - x_flip) *
                              ((tiles_[w][k / 4][4 * n + k % 4] ^ w_flip) - w_flip);
          value += static_cast<uint32_t>(product);
        }
        std::memcpy(tiles_[sum][m] + 4 * n, &value, sizeof value);
      }
    }
  }

 private:
  int rows(int tile) const { return layout_.rows[tile]; }
  int bytes(int tile) const { return layout_.row_bytes[tile]; }

  TileLayout layout_{};
  uint8_t tiles_[kTiles][kRows][kBytes];
};

// What tile_product asks of tiles.
class EmulatedTiles {
 public:
  EmulatedTiles() {
    TileLayout layout{};
    layout.palette = 1;
    for (int i = 0; i < TileFile::kTiles; ++i) {
      layout.rows[i] = TileFile::kRows;
      layout.row_bytes[i] = TileFile::kBytes;
    }
    file_.configure(layout);
  }

  static void split(const int16_t* x, uint8_t* low, uint8_t* high) {
    for (int i = 0; i < 64; ++i) {
      low[i] = static_cast<uint8_t>(x[i]);
      high[i] = static_cast<uint8_t>(x[i] >> 8);
    }
  }

  template <int kTile>
  void zero() {
    file_.zero(kTile);
  }
  template <int kTile>
  void load(const void* base, int64_t stride) {
    file_.load(kTile, base, stride);
  }
  template <int kTile>
  void store(void* base, int64_t stride) {
    file_.store(kTile, base, stride);
  }
  template <int kSum, int kX, int kW>
  void tdpbuud() {
    file_.multiply(kSum, kX, kW, false, false);
  }
  template <int kSum, int kX, int kW>
  void tdpbusd() {
    file_.multiply(kSum, kX, kW, false, true);
  }
  template <int kSum, int kX, int kW>
  void tdpbsud() {
    file_.multiply(kSum, kX, kW, true, false);
  }
  template <int kSum, int kX, int kW>
  void tdpbssd() {
    file_.multiply(kSum, kX, kW, true, true);
  }

 private:
  TileFile file_;
};

}  // namespace cloister

#include "ring_map_tile.hpp"

namespace cloister {
namespace {

// Four lanes in the compilers' own vector type, which becomes whatever 128-bit unit the CPU has.
struct Portable {
  using Reg = uint32_t __attribute__((vector_size(16)));
  using Signed = int32_t __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;
  static constexpr int kVectors = 2;
  static constexpr int kPixels1 = 4, kPixels2 = 2;  // 8 accumulators of 16 registers

  static Reg zero() { return Reg{}; }
  static Reg broadcast(int32_t pair) { return Reg{} + static_cast<uint32_t>(pair); }
  static Reg load(const void* p) {
    Reg v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(void* p, Reg v) { std::memcpy(p, &v, sizeof v); }
  static Reg load_some(const void* p, int64_t lanes) {
    Reg v = {};
    std::memcpy(&v, p, static_cast<size_t>(lanes) * sizeof(uint32_t));
    return v;
  }
  static void store_some(void* p, Reg v, int64_t lanes) {
    std::memcpy(p, &v, static_cast<size_t>(lanes) * sizeof(uint32_t));
  }
  static Reg add(Reg a, Reg b) { return a + b; }
  static Reg multiply(Reg a, Reg b) { return a * b; }
  static Reg shift_left_16(Reg a) { return a << 16; }
  // |x * w| <= 2^30 fits an int; the sums are taken in uint32, which wraps by definition. Which
  // half of a lane comes first in memory does not matter: x and w are read the same way.
  static Reg multiply_add(Reg acc, Reg x, Reg w) {
    return acc + (Reg)(low(x) * low(w)) + (Reg)(high(x) * high(w));
  }
  static void prefetch(const int16_t*) {}

 private:
  static Signed low(Reg v) { return (Signed)(v << 16) >> 16; }
  static Signed high(Reg v) { return (Signed)v >> 16; }
};

}  // namespace

const RingBackend kRingPortable = {&panel<Portable>, &depthwise<Portable>, &split, nullptr};

}  // namespace cloister

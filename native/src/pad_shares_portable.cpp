#include "pad_shares_lanes.hpp"

namespace cloister {
namespace {

struct Portable {
  using Reg = uint64_t;
  static constexpr int64_t kLanes = 1;

  static Reg zero() { return 0; }
  static Reg all(uint64_t v) { return v; }
  static Reg load(const uint64_t* p) { return *p; }
  static Reg widen(const uint32_t* p) { return *p; }
  static void narrow(int16_t* p, Reg v) { *p = static_cast<int16_t>(v); }
  static Reg add(Reg x, Reg y) { return x + y; }
  static Reg subtract(Reg x, Reg y) { return x - y; }
  static Reg both(Reg x, Reg y) { return x & y; }
  static Reg right(Reg x, int bits) { return x >> bits; }
  static Reg multiply(Reg x, Reg y) {
    return static_cast<Reg>(static_cast<int64_t>(x) * static_cast<int32_t>(y));
  }
  static I128 sum(Reg v) { return static_cast<int64_t>(v); }
};

}  // namespace

const PadSharesBackend kPadSharesPortable{split_lanes<Portable>, add_lanes<Portable>};

}  // namespace cloister

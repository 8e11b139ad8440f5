// The plain C++ back end; also the description of what a vector type S offers.
#include <cmath>

#include "p52.hpp"
#include "pass_rows.hpp"
#include "pass_windows.hpp"

namespace cloister {
namespace {

struct Scalar {
  using F = float;
  using I = uint32_t;  // centred integers as words, so that arithmetic wraps
  static constexpr int64_t kLanes = 1;
  static constexpr int64_t kBlock = int64_t{1} << 30;
  static constexpr int64_t kShortBlock = kBlock;
  static int first(int count) { return count; }  // never used: there is no tail

  static F set(float v) { return v; }
  static F load(const float* p, auto...) { return *p; }
  static I load(const uint32_t* p, auto...) { return *p; }
  // volatile: the compiler must not read shared memory a second time.
  static I load_once(const uint32_t* p, auto...) {
    return *static_cast<const volatile uint32_t*>(p);
  }
  static void store(float* p, F v, auto...) { *p = v; }
  static void store(uint32_t* p, I v, auto...) { *static_cast<volatile uint32_t*>(p) = v; }
  static void store_narrow(int16_t* p, I v, auto...) {
    *static_cast<volatile int16_t*>(p) = static_cast<int16_t>(v);
  }
  static F add(F x, F y) { return x + y; }
  static F mul(F x, F y) { return x * y; }
  static F div(F x, F y) { return x / y; }
  static F max(F x, F y) { return x > y ? x : y; }
  static F min(F x, F y) { return x < y ? x : y; }
  static F to_float(I v) { return static_cast<float>(static_cast<int32_t>(v)); }
  static I round(F v) { return static_cast<I>(static_cast<int32_t>(std::nearbyint(v))); }
  static I plus(I x, I y) { return x + y; }
  static F sub(F x, F y) { return x - y; }
  static I sub(I x, I y) { return x - y; }
  static I flip_sign(I v) { return v ^ 0x80000000u; }
  static I zero() { return 0; }
  static F within(F v, F limit) { return min(max(v, -limit), limit); }
  static I count_changed(I count, F before, F after) { return count + (before != after); }
  static uint64_t total(I count) { return count; }
  static const uint64_t* coefficients(const ReplyRow& row, int64_t channel) {
    return row.b + channel;
  }

  // 2^30 products of 52 and 32 bits need 114 bits.
  struct Dot {
    U128 sum = 0;
    void add(const uint64_t* coefficients, I value, auto...) {
      sum += static_cast<U128>(*coefficients) * value;
    }
    void fold() { sum = reduce(sum); }
  };

  struct Sum;

  struct Column {
    U128 sum = 0;
    void add(uint64_t factor, I value) { sum += static_cast<U128>(factor) * value; }
    void into(Sum& total, const uint64_t* coefficients, auto...) const;
  };

  struct Sum {
    uint64_t residue;
    explicit Sum(const CheckLanes& lanes) : residue(lanes.lane[0]) {}
    void add(const Dot& dot, uint64_t factor, int64_t) {
      residue = reduce(static_cast<U128>(reduce(dot.sum)) * factor + residue);
    }
    void add(const Dot& dot) { residue = cloister::add(reduce(dot.sum), residue); }
    void save(CheckLanes& lanes) const { lanes.lane[0] = residue; }
  };
};

void Scalar::Column::into(Sum& total, const uint64_t* coefficients, auto...) const {
  total.residue = reduce(static_cast<U128>(reduce(sum)) * *coefficients + total.residue);
}

}  // namespace

const PassBackend kPassPortable{rows::any_reply<Scalar>,
                                rows::any_values<Scalar>,
                                rows::any_window<Scalar>,
                                rows::any_emit<Scalar>,
                                nullptr,
                                nullptr,
                                Digits::none};

}  // namespace cloister

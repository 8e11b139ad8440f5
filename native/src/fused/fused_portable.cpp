// Fused steps in plain C++, with check sums in 128-bit integers.
#include "check/p52.hpp"
#include "fused/row_kernels.hpp"
#include "fused/window_kernels.hpp"
#include "isa/portable.hpp"

namespace cloister {
namespace {

struct SummingPortable : Portable {
  static constexpr int64_t kBlock = int64_t{1} << 30;
  static constexpr int64_t kShortBlock = kBlock;

  static const uint64_t* coefficients(const ReplyRow& row, int64_t channel) {
    return row.b + channel;
  }

  // 2^30 products of 52 and 32 bits need 114 bits.
  struct Dot {
    U128 sum = 0;
    void add(const uint64_t* coefficients, I value, M lanes = kLanes) {
      for (M i = 0; i < lanes; ++i) sum += static_cast<U128>(coefficients[i]) * value[i];
      CLOISTER_DEBUG_ASSERT(sum >> 114 == 0);
    }
    void fold() { sum = reduce(sum); }
  };

  struct Sum;

  struct Column {
    U128 sum[kLanes] = {};
    void add(uint64_t factor, I value) {
      for (M i = 0; i < kLanes; ++i) sum[i] += static_cast<U128>(factor) * value[i];
    }
    void into(Sum& total, const uint64_t* coefficients, M lanes = kLanes) const;
  };

  struct Sum {
    uint64_t residue;
    explicit Sum(const CheckLanes& lanes) : residue(lanes.part[0][0]) {}
    void add(const Dot& dot, uint64_t factor, int64_t) {
      residue = reduce(static_cast<U128>(reduce(dot.sum)) * factor + residue);
    }
    void add(const Dot& dot) { residue = cloister::add(reduce(dot.sum), residue); }
    void save(CheckLanes& lanes) const { lanes.part[0][0] = residue; }
  };
};

void SummingPortable::Column::into(Sum& total, const uint64_t* coefficients, M lanes) const {
  for (M i = 0; i < lanes; ++i) {
    total.residue = reduce(static_cast<U128>(reduce(sum[i])) * coefficients[i] + total.residue);
  }
}

}  // namespace

const FusedKernels kFusedPortable{rows::any_reply<SummingPortable>,
                                  rows::any_values<Portable>,
                                  rows::any_window<Portable>,
                                  rows::any_emit<SummingPortable>,
                                  nullptr,
                                  nullptr,
                                  Digits::none};

}  // namespace cloister

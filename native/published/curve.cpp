#include "curve.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>

#include "curve_scalar.hpp"
#include "isa/kernels.hpp"
#include "threads/thread_pool.hpp"

namespace cloister {
namespace {

constexpr int64_t kMaxTable = int64_t{1} << 24;
// Half the vector form's lanes idle cost about as much as the portable form's slower arithmetic.
constexpr int64_t kFewItems = 2;

const CurveBackend& backend() {
  return of_active_isa(kCurvePortable, kCurvePortable, kCurveAvx512);
}

using Range = std::function<void(const CurveBackend&, int64_t first, int64_t count)>;

// The items in whole blocks, and a short rest by the portable form. The split changes no result:
// both forms are exact.
void run_range(int64_t first, int64_t count, const Range& work) {
  const CurveBackend& wide = backend();
  const int64_t rest = count % wide.lanes;
  const int64_t blocks = rest <= kFewItems ? count - rest : count;
  if (blocks > 0) work(wide, first, blocks);
  if (blocks < count) work(kCurvePortable, first + blocks, count - blocks);
}

// At least `grain` items per thread, so that a thread is worth starting.
void parallel(int64_t items, int64_t grain, int threads, const Range& work) {
  const int64_t lanes = backend().lanes;
  const int64_t blocks = (items + lanes - 1) / lanes;
  const int64_t wanted = std::clamp<int64_t>(items / std::max<int64_t>(grain, 1), 1, blocks + 1);
  const int64_t count = std::max<int64_t>(1, std::min<int64_t>({threads, wanted, blocks}));
  std::vector<std::exception_ptr> errors(static_cast<size_t>(count));
  const auto part = [&](int64_t t) noexcept {
    const int64_t begin = blocks * t / count * lanes;
    const int64_t end = std::min(items, blocks * (t + 1) / count * lanes);
    try {
      if (end > begin) run_range(begin, end - begin, work);
    } catch (...) {
      errors[static_cast<size_t>(t)] = std::current_exception();
    }
  };
  in_parallel(count, threads, [&](int64_t, int64_t t) { part(t); });
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

// Digits of secrets, gone from memory after use.
struct SecretDigits {
  std::vector<int8_t> values;

  explicit SecretDigits(int64_t n) : values(static_cast<size_t>(n)) {}
  SecretDigits(SecretDigits&&) = default;
  ~SecretDigits() {
    std::fill(values.begin(), values.end(), int8_t{0});
    __asm__ volatile("" : : "r"(values.data()) : "memory");  // or the compiler may drop it
  }
  int8_t* data() { return values.data(); }
};

SecretDigits all_secret_digits(const uint8_t* scalars, int64_t n) {
  SecretDigits digits(n * kSecretWindows);
  for (int64_t i = 0; i < n; ++i) {
    secret_digits(scalars + kScalarBytes * i, digits.data() + kSecretWindows * i);
  }
  return digits;
}

SecretDigits all_small_digits(const int64_t* values, int64_t n, int windows) {
  SecretDigits digits(n * windows);
  for (int64_t i = 0; i < n; ++i) secret_digits(values[i], windows, digits.data() + windows * i);
  return digits;
}

void check_scalars(const uint8_t* scalars, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if (!scalar_is_canonical(scalars + kScalarBytes * i)) {
      throw std::invalid_argument("scalar " + std::to_string(i) + " is not below the group order");
    }
  }
}

void check_plus(const int64_t* plus, int64_t n, uint64_t bound) {
  if (bound >= uint64_t{1} << 62) throw std::invalid_argument("the bound is too large");
  const int64_t limit = static_cast<int64_t>(bound);
  bool outside = false;
  for (int64_t i = 0; i < n; ++i) outside |= plus[i] > limit || plus[i] < -limit;
  if (outside) throw std::invalid_argument("a number lies outside its bound");
}

}  // namespace

int64_t curve_decode(const uint8_t* encodings, int64_t n, CurvePoint* points, int threads) {
  std::atomic<int64_t> bad = n;
  parallel(n, 64, threads, [&](const CurveBackend& b, int64_t first, int64_t count) {
    const int64_t at = b.decode(encodings + kElementBytes * first, count, points + first) + first;
    int64_t lowest = bad;
    while (at < first + count && at < lowest && !bad.compare_exchange_weak(lowest, at)) {
    }
  });
  return bad;
}

void curve_encode(const CurvePoint* points, int64_t n, uint8_t* encodings, int threads) {
  parallel(n, 64, threads, [&](const CurveBackend& b, int64_t first, int64_t count) {
    b.encode(points + first, count, encodings + kElementBytes * first);
  });
}

void curve_generator(int64_t n, CurvePoint* points) {
  uint8_t encoding[32] = {0xe2, 0xf2, 0xae, 0x0a, 0x6a, 0xbc, 0x4e, 0x71, 0xa8, 0x84, 0xa9,
                          0x61, 0xc5, 0x00, 0x51, 0x5f, 0x58, 0xe3, 0x0b, 0x6a, 0xa5, 0x82,
                          0xdd, 0x8d, 0xb6, 0xa6, 0x59, 0x45, 0xe0, 0x8d, 0x2d, 0x76};
  if (n < 1) return;
  kCurvePortable.decode(encoding, 1, points);
  std::fill_n(points + 1, n - 1, points[0]);
}

void curve_powers(const CurvePoint* points, int64_t columns, const uint8_t* scalars, int64_t n,
                  const int64_t* plus, uint64_t plus_bound, CurvePoint* out, int threads) {
  check_scalars(scalars, n);
  if (plus != nullptr) check_plus(plus, n * columns, plus_bound);
  SecretDigits digits = all_secret_digits(scalars, n);
  const int windows = plus == nullptr ? 0 : digits_for_bound(plus_bound);
  SecretDigits small = all_small_digits(plus, windows ? n * columns : 0, windows);
  const PowersJob job{points, columns, digits.data(), n, small.data(), windows, out};
  if (columns <= kFewItems && n > kFewItems) {
    parallel(n, 8, threads, [&](const CurveBackend& b, int64_t first, int64_t count) {
      b.powers_by_scalar(job, first, count);
    });
    return;
  }
  parallel(columns, 1, threads, [&](const CurveBackend& b, int64_t first, int64_t count) {
    b.powers(job, first, count);
  });
}

void curve_sums(const CurvePoint* points, int64_t n, int64_t columns, const uint8_t* scalars,
                const int64_t* plus, uint64_t plus_bound, CurvePoint* out, int threads) {
  check_scalars(scalars, n * columns);
  if (plus != nullptr) check_plus(plus, n, plus_bound);
  SecretDigits digits = all_secret_digits(scalars, n * columns);
  const int windows = plus == nullptr ? 0 : digits_for_bound(plus_bound);
  SecretDigits small = all_small_digits(plus, windows ? n : 0, windows);
  const std::vector<int> all_windows(static_cast<size_t>(columns), kSecretWindows);
  const SumsJob job{points, columns, digits.data(), all_windows.data(), small.data(), windows, out};
  parallel(n, 8, threads,
           [&](const CurveBackend& b, int64_t first, int64_t count) { b.sums(job, first, count); });
}

void curve_differences(const CurvePoint* points, const uint8_t* wide, const int64_t* small,
                       const CurvePoint* subtrahends, int64_t n, CurvePoint* out, int threads) {
  int windows[2] = {kSecretWindows, 1};
  std::vector<int8_t> digits(static_cast<size_t>(2 * n * kSecretWindows));
  const auto place = [&](int64_t i, int64_t c) {
    return digits.data() + (2 * i + c) * kSecretWindows;
  };
  if (wide != nullptr) {
    check_scalars(wide, n);
    for (int64_t i = 0; i < n; ++i) secret_digits(wide + kScalarBytes * i, place(i, 0));
  } else {
    uint64_t any = 0;
    for (int64_t i = 0; i < n; ++i) any |= magnitude(small[i]);
    windows[0] = digits_for_bound(any);
    for (int64_t i = 0; i < n; ++i) secret_digits(small[i], windows[0], place(i, 0));
  }
  for (int64_t i = 0; i < n; ++i) place(i, 1)[0] = -1;
  std::vector<CurvePoint> pairs(static_cast<size_t>(2 * n));
  for (int64_t i = 0; i < n; ++i) {
    pairs[static_cast<size_t>(2 * i)] = points[i];
    pairs[static_cast<size_t>(2 * i + 1)] = subtrahends[i];
  }
  const SumsJob job{pairs.data(), 2, digits.data(), windows, nullptr, 0, out};
  parallel(n, 8, threads,
           [&](const CurveBackend& b, int64_t first, int64_t count) { b.sums(job, first, count); });
}

namespace {

// What is known of a column before its digits are: how many bits its scalars have, and the largest.
struct ColumnSize {
  int bits;
  uint64_t largest;  // as far as it fits; scalars modulo the order are larger than any table

  int windows(int width) const { return windows_of(bits, width); }
  int64_t entries(int width) const {
    if (bits == 0) return 0;
    const uint64_t half = uint64_t{1} << (width - 1);
    return static_cast<int64_t>(windows(width) == 1 ? largest : std::min(largest, half));
  }
};

// Costs in additions: entries of tables, doublings, and a sum per digit.
int64_t cost_by_window(const ColumnSize& size, int64_t scalars, int width) {
  return size.windows(width) * (size.entries(width) + width + scalars);
}

int64_t cost_by_doubling(const std::vector<ColumnSize>& sizes, int64_t scalars, int width) {
  int64_t cost = 0, top = 0;
  for (const ColumnSize& size : sizes) {
    cost += size.entries(width) + scalars * size.windows(width);
    top = std::max<int64_t>(top, size.windows(width));
  }
  return cost + scalars * top * width;
}

struct Plan {
  std::vector<int> widths;  // per column
  bool shared_doublings = false;
};

// The cheaper of the two ways, each with its best widths.
Plan plan(const std::vector<ColumnSize>& sizes, int64_t scalars) {
  Plan by_window;
  int64_t least = 0;
  for (const ColumnSize& size : sizes) {
    int best = 3;
    for (int width = 4; width <= 8; ++width) {
      if (cost_by_window(size, scalars, width) < cost_by_window(size, scalars, best)) best = width;
    }
    by_window.widths.push_back(best);
    least += cost_by_window(size, scalars, best);
  }
  Plan best = std::move(by_window);
  for (int width = 3; width <= 6; ++width) {
    const int64_t cost = cost_by_doubling(sizes, scalars, width);
    if (cost >= least) continue;
    least = cost;
    best = {std::vector<int>(sizes.size(), width), true};
  }
  return best;
}

}  // namespace

void curve_vartime_products(const CurvePoint* points, int64_t n, int64_t wide_columns,
                            const uint8_t* wide, int64_t small_columns, const int64_t* small,
                            int64_t scalars, CurvePoint* out, int threads) {
  check_scalars(wide, scalars * wide_columns);
  std::vector<ColumnSize> sizes(static_cast<size_t>(wide_columns),
                                {kPublicScalarBits, ~uint64_t{0}});
  for (int64_t c = 0; c < small_columns; ++c) {
    uint64_t largest = 0;
    for (int64_t k = 0; k < scalars; ++k) {
      largest = std::max(largest, magnitude(small[k * small_columns + c]));
    }
    sizes.push_back({bits_of(largest), largest});
  }
  const Plan chosen = plan(sizes, scalars);
  std::vector<PublicColumn> columns;
  columns.reserve(sizes.size());
  for (int64_t c = 0; c < wide_columns + small_columns; ++c) {
    const int width = chosen.widths[static_cast<size_t>(c)];
    columns.push_back(
        c < wide_columns
            ? public_column_negated(wide + kScalarBytes * c, wide_columns, scalars, width)
            : public_column(small + c - wide_columns, small_columns, scalars, width));
  }
  const ProductsJob job{points,  columns.data(),          wide_columns + small_columns,
                        scalars, chosen.shared_doublings, out};
  parallel(n, 1, threads, [&](const CurveBackend& b, int64_t first, int64_t count) {
    b.vartime_products(job, first, count);
  });
}

CurveLogarithm::CurveLogarithm(int64_t entries, int threads) : entries_(entries) {
  if (entries < 1 || entries > kMaxTable) {
    throw std::invalid_argument("a table of logarithms has between 1 and 2^24 entries");
  }
  names_.resize(static_cast<size_t>(4 * (entries + 1)));
  negative_.resize(static_cast<size_t>(entries + 1));
  parallel(entries, 1024, threads, [&](const CurveBackend& b, int64_t first, int64_t count) {
    b.vartime_names(first + 1, count, names_.data() + 4 * (first + 1),
                    negative_.data() + first + 1);
  });
  uint64_t slots = 2;
  while (slots < 2 * static_cast<uint64_t>(entries)) slots *= 2;
  slots_.assign(slots, 0);
  slot_key_.assign(slots, 0);
  for (int64_t m = 1; m <= entries; ++m) {
    const uint64_t key = names_[static_cast<size_t>(4 * m)];
    uint64_t slot = (key >> 1) & (slots - 1);
    while (slots_[slot] != 0) slot = (slot + 1) & (slots - 1);
    slots_[slot] = static_cast<uint32_t>(m);
    slot_key_[slot] = key;
  }
}

void CurveLogarithm::vartime_solve(const CurvePoint* points, int64_t n, int64_t lo, int64_t hi,
                                   int64_t* out, int threads) const {
  constexpr int64_t kFar = int64_t{1} << 48;
  if (lo > hi || lo < -kFar || hi > kFar) {
    throw std::invalid_argument("a logarithm's range is empty or wider than 2^48");
  }
  const LogTable table{names_.data(),    negative_.data(),  slots_.data(),
                       slot_key_.data(), slots_.size() - 1, entries_};
  parallel(n, 256, threads, [&](const CurveBackend& b, int64_t first, int64_t count) {
    b.vartime_solve(table, points + first, count, lo, hi, out + first);
  });
}

}  // namespace cloister

// The jobs of curve_backend.hpp whose time depends on values: for public ones only.
#pragma once
#include <algorithm>
#include <vector>

#include "curve_kernel.hpp"

namespace cloister {
namespace {

// ---- products with scalars that all rows share

// P, 2 P, ..., size P, with a place for at least one.
template <class W>
void fill_multiples(const Point<W>& p, int size, Cached<W>* table) {
  table[0] = cached(p);
  Point<W> multiple = p;
  for (int e = 1; e < size; ++e) {
    multiple = add(multiple, table[0]);
    table[e] = cached(multiple);
  }
}

template <class W>
inline void add_digit(Point<W>& sum_so_far, const Cached<W>* table, int digit) {
  if (digit == 0) return;
  const Cached<W>& entry = table[(digit < 0 ? -digit : digit) - 1];
  sum_so_far = sum(sum_so_far, entry, digit < 0).point();
}

// Rows in lanes. Many scalars: a table per window of every point, no doubling per result.
template <class W>
void products_by_window(const ProductsJob& job, int64_t row, int64_t lanes,
                        std::vector<Cached<W>>& space, std::vector<Point<W>>& results) {
  Cached<W>* const table = space.data();
  for (int64_t c = 0; c < job.column_count; ++c) {
    const PublicColumn& column = job.columns[c];
    Point<W> base = load<W>(job.points + row * job.column_count + c, job.column_count, lanes);
    for (int w = 0; w < column.windows; ++w) {
      if (w > 0) base = twice(base, column.width);
      fill_multiples(base, column.largest[static_cast<size_t>(w)], table);
      const int16_t* digit = column.digits.data() + w;
      for (Point<W>& result : results) {
        add_digit(result, table, *digit);
        digit += column.windows;
      }
    }
  }
}

// Few scalars: one table per point, and doublings per result.
template <class W>
void products_by_doubling(const ProductsJob& job, int64_t row, int64_t lanes,
                          std::vector<Cached<W>>& space, std::vector<Point<W>>& results) {
  Cached<W>* table = space.data();
  int top = 0, width = 1;
  for (int64_t c = 0; c < job.column_count; ++c) {
    const PublicColumn& column = job.columns[c];
    top = std::max(top, column.windows);
    if (column.windows > 0) width = column.width;
    fill_multiples(load<W>(job.points + row * job.column_count + c, job.column_count, lanes),
                   column.entries, table);
    table += column.entries;
  }
  for (size_t k = 0; k < results.size(); ++k) {
    for (int w = top - 1; w >= 0; --w) {
      if (w < top - 1) results[k] = twice(results[k], width);
      table = space.data();
      for (int64_t c = 0; c < job.column_count; ++c) {
        const PublicColumn& column = job.columns[c];
        if (w < column.windows) {
          const size_t at = k * static_cast<size_t>(column.windows) + static_cast<size_t>(w);
          add_digit(results[k], table, column.digits[at]);
        }
        table += column.entries;
      }
    }
  }
}

template <class W>
void products(const ProductsJob& job, int64_t first, int64_t count) {
  std::vector<Point<W>> results(static_cast<size_t>(job.scalars));
  int64_t all = 0, most = 1;
  for (int64_t c = 0; c < job.column_count; ++c) {
    all += job.columns[c].entries;
    most = std::max<int64_t>(most, job.columns[c].entries);
  }
  std::vector<Cached<W>> space(static_cast<size_t>(job.shared_doublings ? all : most));
  for (int64_t row = first; row < first + count; row += kLanes<W>) {
    const int64_t lanes = std::min<int64_t>(kLanes<W>, first + count - row);
    for (Point<W>& result : results) result = identity<W>();
    if (job.shared_doublings) {
      products_by_doubling(job, row, lanes, space, results);
    } else {
      products_by_window(job, row, lanes, space, results);
    }
    for (int64_t k = 0; k < job.scalars; ++k) {
      store(results[static_cast<size_t>(k)], job.out + row * job.scalars + k, job.scalars, lanes);
    }
  }
}

// ---- logarithms

// ratios[i].over / ratios[i].under for all i, with one inversion; 0 where `under` is 0.
template <class W>
void divide_all(std::vector<Ratio<W>>& ratios) {
  std::vector<Fe<W>> before(ratios.size());
  Fe<W> product = small<W>(1);
  for (size_t i = 0; i < ratios.size(); ++i) {
    Ratio<W>& r = ratios[i];
    const W zero = is_zero(r.under);
    r.under = select(zero, small<W>(1), r.under);
    r.over = select(zero, small<W>(0), carry(r.over));
    before[i] = product;
    product = mul(product, r.under);
  }
  Fe<W> inverse = invert(product);
  for (size_t i = ratios.size(); i-- > 0;) {
    ratios[i].over = mul(ratios[i].over, mul(inverse, before[i]));
    inverse = mul(inverse, ratios[i].under);
  }
}

// An element's name: |ratio| in words, and which lanes were negative.
template <class W>
struct Names {
  uint64_t words[4][kLanes<W>], negative[kLanes<W>];

  explicit Names(const Fe<W>& quotient) {
    const Fe<W> t = canonical(quotient);
    const W odd = W{} - (t.v[0] & 1);
    W w[4];
    to_words(canonical(select(odd, neg(t), t)), w);
    std::memcpy(words, w, sizeof(w));
    std::memcpy(negative, &odd, sizeof(odd));
  }
};

template <class W>
Point<W> vartime_multiple_of_generator(int64_t m) {
  const uint64_t size = m < 0 ? uint64_t{0} - static_cast<uint64_t>(m) : static_cast<uint64_t>(m);
  const Cached<W> base = cached(generator<W>());
  Point<W> p = identity<W>();
  for (int bit = 63; bit >= 0; --bit) {
    p = twice(p);
    if (size >> bit & 1) p = sum(p, base, m < 0).point();
  }
  return p;
}

template <class W>
void table_names(int64_t first, int64_t count, uint64_t* names, uint8_t* negative) {
  constexpr int64_t kChunk = 512;
  const int64_t per_lane = (count + kLanes<W> - 1) / kLanes<W>;
  CurvePoint starts[kLanes<W>];
  for (int64_t lane = 0; lane < kLanes<W>; ++lane) {
    store(vartime_multiple_of_generator<uint64_t>(first + lane * per_lane), starts + lane, 1, 1);
  }
  Point<W> p = load<W>(starts, 1, kLanes<W>);
  const Cached<W> step = cached(generator<W>());
  std::vector<Ratio<W>> ratios;
  for (int64_t i = 0; i < per_lane; i += kChunk) {
    ratios.clear();
    for (int64_t j = i; j < std::min(i + kChunk, per_lane); ++j) {
      ratios.push_back(ratio(p.x, p.y));
      p = add(p, step);
    }
    divide_all(ratios);
    for (size_t j = 0; j < ratios.size(); ++j) {
      const Names<W> found(ratios[j].over);
      for (int64_t lane = 0; lane < kLanes<W>; ++lane) {
        const int64_t at = lane * per_lane + i + static_cast<int64_t>(j);
        if (at >= std::min(count, (lane + 1) * per_lane)) continue;
        for (int k = 0; k < 4; ++k) names[4 * at + k] = found.words[k][lane];
        negative[at] = found.negative[lane] != 0;
      }
    }
  }
}

// m with |m| <= entries, of an element with this name; kNoLogarithm if it is none of those. The
// slot's key is 64 bits of the name, the comparison is with all of it.
template <class W>
int64_t look_up(const LogTable& table, const Names<W>& names, int64_t lane) {
  const uint64_t key = names.words[0][lane];
  uint64_t rest = 0;
  for (int k = 0; k < 4; ++k) rest |= names.words[k][lane];
  if (rest == 0) return 0;  // divide_all's answer for the identity, and no other element's name
  for (uint64_t slot = (key >> 1) & table.slot_mask; table.slots[slot] != 0;
       slot = (slot + 1) & table.slot_mask) {
    if (table.slot_key[slot] != key) continue;
    const int64_t m = table.slots[slot];
    uint64_t differs = 0;
    for (int k = 0; k < 4; ++k) differs |= table.names[4 * m + k] ^ names.words[k][lane];
    if (differs != 0) continue;
    return (table.negative[m] != 0) == (names.negative[lane] != 0) ? m : -m;
  }
  return kNoLogarithm;
}

// The next centre of 2 entries + 1 numbers: c, c + step, c - step, c + 2 step, ... as far as they
// touch [lo, hi].
template <class W>
struct Centre {
  int64_t at = 0;
  Point<W> point;
};

struct Block {
  int64_t first, count;
};

inline bool all_found(const int64_t* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if (out[i] == kNoLogarithm) return false;
  }
  return true;
}

template <class W>
void solve_round(const LogTable& table, const std::vector<Point<W>>& points, int64_t n,
                 const Centre<W>& centre, int64_t lo, int64_t hi, int64_t* out) {
  const Cached<W> offset = cached(centre.point);
  std::vector<Ratio<W>> ratios;
  std::vector<Block> open;
  for (size_t b = 0; b < points.size(); ++b) {
    const int64_t first = static_cast<int64_t>(b) * kLanes<W>;
    const Block block{first, std::min<int64_t>(kLanes<W>, n - first)};
    if (all_found(out + first, block.count)) continue;
    open.push_back(block);
    if (centre.at == 0) {
      ratios.push_back(ratio(points[b].x, points[b].y));
    } else {
      const Factors<W> moved = sum(points[b], offset, true);
      ratios.push_back(ratio(moved.x(), moved.y()));
    }
  }
  if (open.empty()) return;
  divide_all(ratios);
  for (size_t r = 0; r < open.size(); ++r) {
    const Names<W> names(ratios[r].over);
    for (int64_t lane = 0; lane < open[r].count; ++lane) {
      int64_t& answer = out[open[r].first + lane];
      if (answer != kNoLogarithm) continue;
      const int64_t m = look_up(table, names, lane);
      if (m == kNoLogarithm || centre.at + m < lo || centre.at + m > hi) continue;
      answer = centre.at + m;
    }
  }
}

template <class W>
void solve(const LogTable& table, const CurvePoint* raw, int64_t n, int64_t lo, int64_t hi,
           int64_t* out) {
  std::vector<Point<W>> points;
  for (int64_t i = 0; i < n; i += kLanes<W>) {
    points.push_back(load<W>(raw + i, 1, std::min<int64_t>(kLanes<W>, n - i)));
  }
  for (int64_t i = 0; i < n; ++i) out[i] = kNoLogarithm;
  const int64_t reach = table.entries, step = 2 * reach + 1;
  Centre<W> up;
  up.at = lo > 0 ? lo : std::min<int64_t>(hi, 0);
  up.point = vartime_multiple_of_generator<W>(up.at);
  Centre<W> down = up;
  const Cached<W> stride = cached(vartime_multiple_of_generator<W>(step));
  solve_round(table, points, n, up, lo, hi, out);
  while (up.at + reach < hi || down.at - reach > lo) {
    if (all_found(out, n)) return;
    if (up.at + reach < hi) {
      up = {up.at + step, add(up.point, stride)};
      solve_round(table, points, n, up, lo, hi, out);
    }
    if (down.at - reach > lo) {
      down = {down.at - step, sum(down.point, stride, true).point()};
      solve_round(table, points, n, down, lo, hi, out);
    }
  }
}

template <class W>
constexpr CurveBackend backend_of() {
  return {kLanes<W>, decode_all<W>, encode_all<W>,  powers<W>, powers_by_scalar<W>,
          sums<W>,   products<W>,   table_names<W>, solve<W>};
}

}  // namespace
}  // namespace cloister

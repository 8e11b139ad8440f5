// The jobs of curve_backend.hpp over blocks of kLanes points. Included once per back end, in an
// unnamed namespace (curve_field.hpp says why); for the same reason containers hold only types of
// that namespace, and standard algorithms with a body of their own are not used.
#pragma once
#include <algorithm>
#include <vector>

#include "curve_backend.hpp"
#include "curve_point.hpp"

namespace cloister {
namespace {

// ---- blocks: element `lane` of every word

template <class W>
inline W gather(const uint64_t* source, int64_t stride, int64_t count) {
  uint64_t lanes[kLanes<W>];
  for (int64_t lane = 0; lane < kLanes<W>; ++lane) {
    lanes[lane] = source[std::min(lane, count - 1) * stride];
  }
  W w;
  std::memcpy(&w, lanes, sizeof(w));
  return w;
}

template <class W>
inline void scatter(const W& w, uint64_t* target, int64_t stride, int64_t count) {
  uint64_t lanes[kLanes<W>];
  std::memcpy(lanes, &w, sizeof(w));
  for (int64_t lane = 0; lane < std::min<int64_t>(count, kLanes<W>); ++lane) {
    target[lane * stride] = lanes[lane];
  }
}

// Points source[0], source[stride], ..., `count` of them; the last one again in lanes beyond.
template <class W>
Point<W> load(const CurvePoint* source, int64_t stride, int64_t count) {
  Point<W> p;
  Fe<W>* const coordinates[] = {&p.x, &p.y, &p.z, &p.t};
  for (int i = 0; i < 20; ++i) {
    coordinates[i / 5]->v[i % 5] = gather<W>(source->v + i, 20 * stride, count);
  }
  return p;
}

template <class W>
void store(const Point<W>& p, CurvePoint* target, int64_t stride, int64_t count) {
  const Fe<W>* const coordinates[] = {&p.x, &p.y, &p.z, &p.t};
  for (int i = 0; i < 20; ++i) {
    scatter(coordinates[i / 5]->v[i % 5], target->v + i, 20 * stride, count);
  }
}

// One digit per lane, sign-extended.
template <class W>
inline W gather_digits(const int8_t* source, int64_t stride, int64_t count) {
  uint64_t lanes[kLanes<W>];
  for (int64_t lane = 0; lane < kLanes<W>; ++lane) {
    lanes[lane] = static_cast<uint64_t>(int64_t{source[std::min(lane, count - 1) * stride]});
  }
  W w;
  std::memcpy(&w, lanes, sizeof(w));
  return w;
}

// ---- encodings

template <class W>
int64_t decode_all(const uint8_t* encodings, int64_t n, CurvePoint* points) {
  int64_t first_bad = n;
  for (int64_t i = 0; i < n; i += kLanes<W>) {
    const int64_t count = std::min<int64_t>(kLanes<W>, n - i);
    uint64_t raw[4 * kLanes<W>];  // little-endian machines only, as everywhere in this library
    std::memcpy(raw, encodings + 32 * i, static_cast<size_t>(32 * count));
    W words[4];
    for (int k = 0; k < 4; ++k) words[k] = gather<W>(raw + k, 4, count);
    Point<W> p;
    const W valid = decode(words, p);
    uint64_t lanes[kLanes<W>];
    std::memcpy(lanes, &valid, sizeof(valid));
    for (int64_t lane = count - 1; lane >= 0; --lane) {
      if (lanes[lane] == 0) first_bad = std::min(first_bad, i + lane);
    }
    store(p, points + i, 1, count);
  }
  return first_bad;
}

template <class W>
void encode_all(const CurvePoint* points, int64_t n, uint8_t* encodings) {
  for (int64_t i = 0; i < n; i += kLanes<W>) {
    const int64_t count = std::min<int64_t>(kLanes<W>, n - i);
    W words[4];
    encode(load<W>(points + i, 1, count), words);
    uint64_t raw[4 * kLanes<W>];
    for (int k = 0; k < 4; ++k) scatter(words[k], raw + k, 4, count);
    std::memcpy(encodings + 32 * i, raw, static_cast<size_t>(32 * count));
  }
}

// ---- secret scalars: no branch and no address depends on a digit

constexpr int64_t kAccumulators = 256;  // results that share a table: 320 KiB in the vector form

template <class W>
struct SecretTable {
  Cached<W> entries[8];

  // P, 2 P, ..., 8 P; returns 16 P, the next window's point.
  Point<W> fill(const Point<W>& p1) {
    const Point<W> p2 = twice(p1);
    entries[0] = cached(p1);
    const Point<W> p3 = add(p2, entries[0]), p4 = twice(p2), p6 = twice(p3), p8 = twice(p4);
    entries[1] = cached(p2);
    entries[2] = cached(p3);
    entries[3] = cached(p4);
    entries[4] = cached(add(p4, entries[0]));
    entries[5] = cached(p6);
    entries[6] = cached(add(p6, entries[0]));
    entries[7] = cached(p8);
    return twice(p8);
  }

  // digit * P for digits in [-8, 8], by reading every entry.
  Cached<W> pick(W digit) const {
    const W sign = opaque(W{} - (digit >> 63)), size = (digit ^ sign) - sign;
    const W zero = equal_mask(size, W{});
    // The identity: 1, 1, 2, 0.
    Cached<W> r{small<W>(0), small<W>(0), small<W>(0), small<W>(0)};
    r.plus.v[0] = r.minus.v[0] = zero & 1;
    r.z2.v[0] = zero & 2;
    for (uint64_t e = 0; e < 8; ++e) {
      const W mask = equal_mask(size, splat<W>(e + 1));
      for (int i = 0; i < 5; ++i) {
        r.plus.v[i] = r.plus.v[i] | (mask & entries[e].plus.v[i]);
        r.minus.v[i] = r.minus.v[i] | (mask & entries[e].minus.v[i]);
        r.z2.v[i] = r.z2.v[i] | (mask & entries[e].z2.v[i]);
        r.t2d.v[i] = r.t2d.v[i] | (mask & entries[e].t2d.v[i]);
      }
    }
    return {select(sign, r.minus, r.plus), select(sign, r.plus, r.minus), r.z2,
            select(sign, neg(r.t2d), r.t2d)};
  }
};

constexpr int64_t kFewScalars = 2;  // from three on, a table per window is cheaper

// The digits of plus for scalar i and the points from j on.
template <class W>
W plus_digits(const PowersJob& job, int64_t i, int64_t j, int w, int64_t lanes) {
  const int8_t* digits = job.plus + (i * job.columns + j) * job.plus_windows + w;
  return gather_digits<W>(digits, job.plus_windows, lanes);
}

template <class W>
W shared_digit(const PowersJob& job, int64_t i, int w) {
  return splat<W>(static_cast<uint64_t>(int64_t{job.digits[i * kSecretWindows + w]}));
}

// For few scalars: one table per point, four doublings per digit.
template <class W>
void powers_of_few(const PowersJob& job, int64_t j, int64_t lanes) {
  SecretTable<W> table, fixed;
  table.fill(load<W>(job.points + j, 1, lanes));
  fixed.fill(generator<W>());
  for (int64_t i = 0; i < job.scalars; ++i) {
    Point<W> sum = identity<W>();
    for (int w = kSecretWindows - 1; w >= 0; --w) {
      sum = add(twice(sum, 4), table.pick(shared_digit<W>(job, i, w)));
      if (w < job.plus_windows) sum = add(sum, fixed.pick(plus_digits<W>(job, i, j, w, lanes)));
    }
    store(sum, job.out + i * job.columns + j, 1, lanes);
  }
}

// Points in lanes, scalars one after another: a table serves one window of all of them.
template <class W>
void powers(const PowersJob& job, int64_t first, int64_t count) {
  std::vector<Point<W>> sums(static_cast<size_t>(std::min(job.scalars, kAccumulators)));
  SecretTable<W> table;
  for (int64_t j = first; j < first + count; j += kLanes<W>) {
    const int64_t lanes = std::min<int64_t>(kLanes<W>, first + count - j);
    if (job.scalars <= kFewScalars) {
      powers_of_few<W>(job, j, lanes);
      continue;
    }
    for (int64_t i0 = 0; i0 < job.scalars; i0 += kAccumulators) {
      const int64_t rows = std::min(kAccumulators, job.scalars - i0);
      for (Point<W>& sum : sums) sum = identity<W>();
      Point<W> base = load<W>(job.points + j, 1, lanes);
      for (int w = 0; w < kSecretWindows; ++w) {
        base = table.fill(base);
        for (int64_t i = 0; i < rows; ++i) {
          Point<W>& sum = sums[static_cast<size_t>(i)];
          sum = add(sum, table.pick(shared_digit<W>(job, i0 + i, w)));
        }
      }
      base = generator<W>();
      for (int w = 0; w < job.plus_windows; ++w) {
        base = table.fill(base);
        for (int64_t i = 0; i < rows; ++i) {
          Point<W>& sum = sums[static_cast<size_t>(i)];
          sum = add(sum, table.pick(plus_digits<W>(job, i0 + i, j, w, lanes)));
        }
      }
      for (int64_t i = 0; i < rows; ++i) {
        store(sums[static_cast<size_t>(i)], job.out + (i0 + i) * job.columns + j, 1, lanes);
      }
    }
  }
}

// Scalars in lanes, the same point in all of them: a table serves one window of every block.
template <class W>
void powers_of_point(const PowersJob& job, int64_t j, int64_t first, int64_t count,
                     std::vector<Point<W>>& sums) {
  SecretTable<W> table;
  const int64_t blocks = (count + kLanes<W> - 1) / kLanes<W>;
  const auto add_windows = [&](Point<W> base, int windows, const int8_t* digits, int64_t stride) {
    for (int w = 0; w < windows; ++w) {
      base = table.fill(base);
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t i = b * kLanes<W>;
        Point<W>& sum = sums[static_cast<size_t>(b)];
        sum = add(sum, table.pick(gather_digits<W>(digits + i * stride + w, stride, count - i)));
      }
    }
  };
  for (Point<W>& sum : sums) sum = identity<W>();
  add_windows(load<W>(job.points + j, 0, 1), kSecretWindows, job.digits + first * kSecretWindows,
              kSecretWindows);
  const int64_t stride = job.columns * job.plus_windows;
  if (stride > 0) {
    add_windows(generator<W>(), job.plus_windows, job.plus + first * stride + j * job.plus_windows,
                stride);
  }
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t i = b * kLanes<W>;
    store(sums[static_cast<size_t>(b)], job.out + (first + i) * job.columns + j, job.columns,
          count - i);
  }
}

template <class W>
void powers_by_scalar(const PowersJob& job, int64_t first, int64_t count) {
  std::vector<Point<W>> sums(static_cast<size_t>(kAccumulators));
  for (int64_t i = 0; i < count; i += kAccumulators * kLanes<W>) {
    for (int64_t j = 0; j < job.columns; ++j) {
      const int64_t rows = std::min(count - i, kAccumulators * kLanes<W>);
      powers_of_point(job, j, first + i, rows, sums);
    }
  }
}

// Rows in lanes, the doublings of a row's columns shared.
template <class W>
void sums(const SumsJob& job, int64_t first, int64_t count) {
  const int64_t all = job.columns + (job.plus_windows > 0 ? 1 : 0);
  std::vector<SecretTable<W>> tables(static_cast<size_t>(all));
  int top = job.plus_windows;
  for (int64_t c = 0; c < job.columns; ++c) top = std::max(top, job.windows[c]);
  if (all > job.columns) tables.back().fill(generator<W>());
  for (int64_t i = first; i < first + count; i += kLanes<W>) {
    const int64_t lanes = std::min<int64_t>(kLanes<W>, first + count - i);
    for (int64_t c = 0; c < job.columns; ++c) {
      tables[static_cast<size_t>(c)].fill(
          load<W>(job.points + i * job.columns + c, job.columns, lanes));
    }
    Point<W> sum = identity<W>();
    for (int w = top - 1; w >= 0; --w) {
      if (w < top - 1) sum = twice(sum, 4);
      for (int64_t c = 0; c < job.columns; ++c) {
        if (w >= job.windows[c]) continue;
        const int8_t* digits = job.digits + (i * job.columns + c) * kSecretWindows + w;
        const W digit = gather_digits<W>(digits, job.columns * kSecretWindows, lanes);
        sum = add(sum, tables[static_cast<size_t>(c)].pick(digit));
      }
      if (w < job.plus_windows) {
        const W digit =
            gather_digits<W>(job.plus + i * job.plus_windows + w, job.plus_windows, lanes);
        sum = add(sum, tables.back().pick(digit));
      }
    }
    store(sum, job.out + i, 1, lanes);
  }
}

}  // namespace
}  // namespace cloister

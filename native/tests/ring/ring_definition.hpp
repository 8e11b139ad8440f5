// RingMap beside its definition.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "cloister/ring_map.hpp"

namespace cloister {

inline std::vector<uint32_t> definition(const Geometry& g, const std::vector<int16_t>& w,
                                        const std::vector<uint32_t>& x, int64_t n) {
  std::vector<uint32_t> y;
  for (int64_t i = 0; i < n * g.out_elements(); ++i) {
    const int64_t o = i % g.oc, ox = i / g.oc % g.ow, oy = i / g.oc / g.ow % g.oh;
    const int64_t image = i / g.out_elements(), group = o / g.group_out();
    uint32_t sum = 0;
    for (int64_t k = 0; k < g.kh * g.kw; ++k) {
      const int64_t uy = oy * g.sh + k / g.kw * g.dh - g.ph,
                    ux = ox * g.sw + k % g.kw * g.dw - g.pw;
      if (uy < 0 || ux < 0 || uy % g.uh || ux % g.uw || uy / g.uh >= g.h || ux / g.uw >= g.w) {
        continue;
      }
      const int64_t at = ((image * g.h + uy / g.uh) * g.w + ux / g.uw) * g.c + group * g.group_in();
      for (int64_t c = 0; c < g.group_in(); ++c) {
        const int16_t weight = w[(o * g.kh * g.kw + k) * g.group_in() + c];
        sum += static_cast<uint32_t>(weight) * x[at + c];
      }
    }
    y.push_back(sum);
  }
  return y;
}

// Random entries, or all of them at a bound.
template <typename T>
std::vector<T> entries(std::mt19937& rng, int64_t count, const T* bound) {
  std::vector<T> v(static_cast<size_t>(count), bound ? *bound : T{0});
  if (!bound) {
    for (T& e : v) e = static_cast<T>(rng());
  }
  return v;
}

struct Bounds {
  int16_t weight;
  uint32_t x;
  int16_t narrow;
};
constexpr Bounds kBounds[] = {{-32768, 0x80008000u, -32768},
                              {32767, 0x7FFF7FFFu, 32767},
                              {-1, 0xFFFFFFFFu, -1},
                              {255, 0x00FF00FFu, 255}};

// Exact array sizes, so that the address sanitizer sees a read or write beyond either end.
// `make` makes the map of a geometry and weights; null bounds: random entries.
void compare(const auto& make, const Geometry& g, size_t index, const char* kernel,
             const Bounds* bounds, int threads) {
  const auto expect = [&](bool equal, const char* type) {
    if (equal) return;
    std::fprintf(stderr, "%s: geometry %zu on %s differs from the definition\n", type, index,
                 kernel);
    std::exit(1);
  };
  std::mt19937 rng(static_cast<unsigned>(index));
  const int64_t n = 2;
  const auto w =
      entries(rng, g.oc * g.kh * g.kw * g.group_in(), bounds ? &bounds->weight : nullptr);
  const auto x = entries(rng, n * g.in_elements(), bounds ? &bounds->x : nullptr);
  const auto narrow = entries(rng, n * g.in_elements(), bounds ? &bounds->narrow : nullptr);
  const std::vector<uint32_t> wide(narrow.begin(), narrow.end());
  RingMap map = make(g, w.data());
  std::vector<uint32_t> y(static_cast<size_t>(n * g.out_elements()));
  map.apply(x.data(), n, y.data(), threads);
  expect(y == definition(g, w, x, n), "uint32");
  map.apply(narrow.data(), n, y.data(), threads);
  expect(y == definition(g, w, wide, n), "int16");
  map.apply(x.data(), 0, y.data(), threads);
  // Images apart, with what lies between them kept.
  const int64_t image = g.out_elements(), stride = image + 5;
  std::vector<uint32_t> apart(static_cast<size_t>(stride + image), 7u);
  map.apply(narrow.data(), n, apart.data(), threads, stride);
  expect(std::equal(y.begin(), y.begin() + image, apart.begin()) &&
             std::equal(y.begin() + image, y.end(), apart.begin() + stride) &&
             std::count(apart.begin() + image, apart.begin() + stride, 7u) == 5,
         "images apart");
}

// h w c, oh ow oc, kernel, stride, dilation, upsampling, padding, groups
inline const std::vector<Geometry> kGeometries = {
    {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1},
    {1, 1, 4101, 1, 1, 45, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1},
    {6, 9, 3, 6, 9, 64, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1},
    {4, 5, 300, 4, 5, 34, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1},
    {9, 12, 3, 5, 4, 7, 3, 3, 2, 3, 1, 1, 1, 1, 1, 1, 1},
    {9, 8, 3, 9, 6, 5, 3, 2, 1, 1, 2, 3, 1, 1, 2, 1, 1},
    {5, 6, 6, 5, 6, 9, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 3},
    {6, 5, 19, 6, 5, 19, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 19},
    {6, 5, 5, 3, 3, 15, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 5},
    {3, 4, 2, 5, 9, 3, 2, 3, 1, 1, 1, 1, 2, 3, 1, 0, 1},
    {7, 8, 3, 4, 4, 5, 3, 3, 1, 1, 1, 1, 1, 1, -1, -2, 1},
    {2, 2, 2, 9, 9, 4, 2, 2, 1, 1, 1, 1, 1, 1, 0, 0, 1},
    {1, 11, 3, 1, 11, 8, 1, 3, 1, 1, 1, 2, 1, 1, 0, 2, 1},
};

}  // namespace cloister

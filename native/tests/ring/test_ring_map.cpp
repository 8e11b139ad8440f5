// The kernel against the definition, on every instruction set, under the sanitizers.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "cloister/isa.hpp"
#include "cloister/ring_map.hpp"

namespace {

using cloister::Geometry;
using cloister::Isa;

std::vector<uint32_t> definition(const Geometry& g, const std::vector<int16_t>& w,
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

template <typename T>
std::vector<T> filled(std::mt19937& rng, int64_t count, int64_t extreme, T value) {
  std::vector<T> v(static_cast<size_t>(count), value);
  if (!extreme) {
    for (T& e : v) e = static_cast<T>(rng());
  }
  return v;
}

void expect(bool equal, const char* what, size_t geometry, const char* isa) {
  if (equal) return;
  std::fprintf(stderr, "%s: geometry %zu on %s differs from the definition\n", what, geometry, isa);
  std::exit(1);
}

// Exact array sizes, so that the address sanitizer sees a read or write beyond either end.
void compare(const Geometry& g, size_t index, Isa isa, bool extreme, int threads) {
  std::mt19937 rng(static_cast<unsigned>(index));
  const int64_t n = 2;
  const auto w = filled<int16_t>(rng, g.oc * g.kh * g.kw * g.group_in(), extreme, -32768);
  const auto x = filled<uint32_t>(rng, n * g.in_elements(), extreme, 0x80008000u);
  const auto narrow = filled<int16_t>(rng, n * g.in_elements(), extreme, -32768);
  const std::vector<uint32_t> wide(narrow.begin(), narrow.end());
  cloister::RingMap map(g, w.data());
  std::vector<uint32_t> y(static_cast<size_t>(n * g.out_elements()));
  map.apply(x.data(), n, y.data(), threads);
  expect(y == definition(g, w, x, n), "uint32", index, cloister::isa_name(isa));
  map.apply(narrow.data(), n, y.data(), threads);
  expect(y == definition(g, w, wide, n), "int16", index, cloister::isa_name(isa));
  map.apply(x.data(), 0, y.data(), threads);
}

}  // namespace

int main() {
  // h w c, oh ow oc, kernel, stride, dilation, upsampling, padding, groups
  const std::vector<Geometry> geometries = {
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
      {70, 80, 33, 70, 80, 3, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1},
  };
  for (int isa = 0; isa <= static_cast<int>(cloister::best_isa()); ++isa) {
    cloister::force_isa(static_cast<Isa>(isa));
    for (size_t i = 0; i < geometries.size(); ++i) {
      for (const int threads : {1, 3}) {
        compare(geometries[i], i, static_cast<Isa>(isa), false, threads);
        compare(geometries[i], i, static_cast<Isa>(isa), true, threads);
      }
    }
  }
  return 0;
}

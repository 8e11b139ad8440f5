// Products on tiles against the definition: on emulated tiles everywhere, and as compiled for AMX
// where the processor has AVX-512, with the instructions on tiles interpreted where it has no AMX.
#include <sys/wait.h>
#include <unistd.h>

#include "expect.hpp"
#include "ring/emulated_tiles.hpp"
#include "ring/interpreted_tiles.hpp"
#include "ring/ring_definition.hpp"
#include "ring/ring_tiles.hpp"

using namespace cloister;

namespace {

// Beside kGeometries: inputs of one block of steps exactly, of one element more, and of several
// blocks; groups of several channel tiles; more output channels than one product takes; pixels that
// end beside a tile's end; segments longer and shorter than a chunk; several bands.
const std::vector<Geometry> kTiled = {
    {3, 6, 64, 3, 6, 16, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1},
    {1, 17, 577, 1, 17, 17, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1},
    {4, 4, 70, 4, 4, 530, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1},
    {5, 3, 66, 5, 3, 76, 3, 2, 1, 1, 1, 1, 1, 1, 1, 1, 2},
    {9, 9, 130, 4, 5, 33, 3, 3, 2, 2, 2, 1, 1, 1, 2, 1, 1},
    {3, 4, 40, 6, 8, 20, 3, 3, 1, 1, 1, 1, 2, 2, 1, 1, 1},
    {15, 15, 640, 15, 15, 17, 2, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1},
};

void compare_all(RingTileProduct product, const char* kernel) {
  std::vector<Geometry> geometries = kGeometries;
  geometries.insert(geometries.end(), kTiled.begin(), kTiled.end());
  const auto make = [&](const Geometry& g, const int16_t* w) {
    RingMap map(g, w, product);
    expect(map.on_tiles() == (g.groups == 1 || g.group_in() > 1), "all but depthwise maps");
    return map;
  };
  for (size_t g = 0; g < geometries.size(); ++g) {
    for (const int threads : {1, 3}) compare(make, geometries[g], g, kernel, nullptr, threads);
  }
  for (const size_t g : {0, 1}) {
    for (const Bounds& bounds : kBounds) compare(make, kTiled[g], g, kernel, &bounds, 1);
  }
}

// A map takes tiles by the rule of ring_map.hpp.
void choose_by_shape() {
  const Geometry suited{4, 4, 64, 4, 4, 16, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1};
  Geometry few_pixels = suited, few_channels = suited, few_weights = suited;
  few_pixels.ow = 3;
  few_channels.oc = 15;
  few_weights.c = 63;
  const std::vector<int16_t> weights(64 * 16, 1);
  for (int i = 0; i <= static_cast<int>(best_isa()); ++i) {
    force_isa(static_cast<Isa>(i));
    const bool amx = active_isa() == Isa::amx;
    expect(RingMap(suited, weights.data()).on_tiles() == amx, "a suited shape takes tiles");
    for (const Geometry& g : {few_pixels, few_channels, few_weights}) {
      expect(!RingMap(g, weights.data()).on_tiles(), "an unsuited shape does not");
    }
  }
}

// A process has the permission that its parent was given.
void compare_in_child() {
  const pid_t child = fork();
  if (child == 0) {
    const auto make = [](const Geometry& g, const int16_t* w) {
      return RingMap(g, w, ring_tile_product_amx);
    };
    compare(make, kTiled[0], 0, "AMX in a child process", nullptr, 1);
    _exit(0);
  }
  int status = 0;
  expect(child > 0 && waitpid(child, &status, 0) == child && status == 0, "a child process");
}

}  // namespace

int main() {
  choose_by_shape();
  compare_all(tile_product<EmulatedTiles>, "emulated tiles");
  if (best_isa() == Isa::amx) {
    compare_all(ring_tile_product_amx, "AMX");
    compare_in_child();
  } else if (best_isa() == Isa::avx512 && !amx_refused() && __builtin_cpu_supports("avx512vbmi")) {
    interpret_tile_instructions();
    compare_all(ring_tile_product_amx, "compiled AMX code");
    expect(interpreted_tiles.released(), "the tiles are released after a product");
  }
  return 0;
}

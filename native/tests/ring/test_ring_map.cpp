// The kernel against the definition, on every instruction set, under the sanitizers.
#include "cloister/isa.hpp"
#include "ring/ring_definition.hpp"

using namespace cloister;

int main() {
  std::vector<Geometry> geometries = kGeometries;
  geometries.push_back({70, 80, 33, 70, 80, 3, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1});  // several bands
  const auto make = [](const Geometry& g, const int16_t* w) { return RingMap(g, w); };
  for (int i = 0; i <= static_cast<int>(best_isa()); ++i) {
    force_isa(static_cast<Isa>(i));
    for (size_t g = 0; g < geometries.size(); ++g) {
      for (const int threads : {1, 3}) {
        compare(make, geometries[g], g, isa_name(active_isa()), nullptr, threads);
        for (const Bounds& bounds : kBounds) {
          compare(make, geometries[g], g, isa_name(active_isa()), &bounds, threads);
        }
      }
    }
  }
  return 0;
}

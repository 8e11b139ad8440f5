#include "fixed_point_kernel.hpp"

namespace cloister {

const FixedPointBackend kFixedPointPortable = kFixedPoint;

}  // namespace cloister

#if defined(__x86_64__)
#include "fixed_point_kernel.hpp"

namespace cloister {

const FixedPointBackend kFixedPointAvx2 = kFixedPoint;

}  // namespace cloister

#endif  // __x86_64__

// One point at a time, in 64-bit words.
#include "curve_vartime.hpp"

namespace cloister {

const CurveBackend kCurvePortable = backend_of<uint64_t>();

}  // namespace cloister

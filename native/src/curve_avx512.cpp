#if defined(__x86_64__)
// Eight points at once, with IFMA.
#include "curve_field_avx512.hpp"
#include "curve_vartime.hpp"

namespace cloister {

const CurveBackend kCurveAvx512 = backend_of<Word8>();

}  // namespace cloister
#endif  // __x86_64__

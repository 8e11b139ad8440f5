#include "check/freivalds_kernels.hpp"
#include "isa/avx2.hpp"
#include "pads/aes_ni.hpp"
#include "pads/share_kernels.hpp"
#include "ring/dense_gradient_kernels.hpp"
#include "ring/fixed_point_kernels.hpp"
#include "ring/ring_kernels.hpp"

namespace cloister {

const Kernels kKernelsAvx2{
    .ring = ring_kernels<Avx2, {4, 2, 1}>(nullptr),  // 8 accumulators, 2 weights, 6 to spare
    .dense_gradient = dense_gradient_panel<Avx2, 2>,
    .floats = fixed_point_kernels<float>(),
    .doubles = fixed_point_kernels<double>(),
    .scale_difference = scale_difference_words,
    .transpose = transpose_words,
    .all_finite = all_finite_floats,
    .interleave = interleave_floats,
    .freivalds = kFreivaldsInWords,
    .aes = {aes_expand_key, aes_fill, aes_subtract},
    .pad_shares = pad_share_kernels<Avx2>()};

}  // namespace cloister

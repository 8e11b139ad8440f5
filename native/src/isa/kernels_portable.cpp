#include "check/freivalds_kernels.hpp"
#include "isa/portable.hpp"
#include "pads/share_kernels.hpp"
#include "ring/dense_gradient_kernels.hpp"
#include "ring/fixed_point_kernels.hpp"
#include "ring/ring_kernels.hpp"

namespace cloister {

const Kernels kKernelsPortable{
    .ring = ring_kernels<Portable, {4, 2, 0}>(nullptr),  // 8 accumulators of 16 registers
    .dense_gradient = dense_gradient_panel<Portable, 2>,
    .floats = fixed_point_kernels<float>(),
    .doubles = fixed_point_kernels<double>(),
    .scale_difference = scale_difference_words,
    .transpose = transpose_words,
    .all_finite = all_finite_floats,
    .interleave = interleave_floats,
    .freivalds = kFreivaldsInWords,
    .aes = {},
    .pad_shares = pad_share_kernels<Portable>()};

}  // namespace cloister

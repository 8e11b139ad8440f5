// Shape of a linear map on channels-last tensors; the C++ twin of cloister.ring.linear.Geometry.
//   y[p, o] = sum over (k, c) of W[o, k, c] * xup[p * stride + k * dilation - pad, c]
#pragma once
#include <cstdint>

namespace cloister {

struct Geometry {
  int64_t h, w, c;     // input
  int64_t oh, ow, oc;  // output
  int64_t kh, kw;      // kernel
  int64_t sh, sw;      // stride
  int64_t dh, dw;      // kernel dilation
  int64_t uh, uw;      // input upsampling: zeros inserted between neighbours, plus one
  int64_t ph, pw;      // padding before the first row and column; negative: a crop
  int64_t groups;

  int64_t in_elements() const { return h * w * c; }
  int64_t out_elements() const { return oh * ow * oc; }
  int64_t group_in() const { return c / groups; }
  int64_t group_out() const { return oc / groups; }
};

}  // namespace cloister

// Shape of a linear map on channels-last tensors; the C++ twin of cloister.ring.linear.Geometry.
//   y[p, o] = sum over (k, c) of W[o, k, c] * xup[p * stride + k * dilation - pad, c]
#pragma once
#include <array>
#include <cstddef>
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

  static Geometry from(const std::array<int64_t, 17>& v) {
    return {v[0], v[1],  v[2],  v[3],  v[4],  v[5],  v[6],  v[7], v[8],
            v[9], v[10], v[11], v[12], v[13], v[14], v[15], v[16]};
  }
  int64_t in_elements() const { return h * w * c; }
  int64_t out_elements() const { return oh * ow * oc; }
  int64_t group_in() const { return c / groups; }
  int64_t group_out() const { return oc / groups; }
};

}  // namespace cloister

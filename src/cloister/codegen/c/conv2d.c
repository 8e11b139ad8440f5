/* Convolution of one image: x (h, w, c), packed (oc, kh, kw, c / groups), y (oh, ow, oc). */
KERNEL void conv2d(
    const float *restrict x, const float *restrict packed, const float *restrict bias,
    const float *restrict residual, float *restrict y, float *restrict scratch,
    int h, int w, int c, int oh, int ow, int oc, int kh, int kw, int sh, int sw, int dh, int dw,
    int pt, int pl, int groups, float lo, float hi)
{
    const int own = c / groups, made = oc / groups;
    (void)scratch;
    for (int oy = 0; oy < oh; oy++)
        for (int ox = 0; ox < ow; ox++)
            for (int o = 0; o < oc; o++) {
                const float *filter = packed + (size_t)o * kh * kw * own;
                const float *in = x + o / made * own;
                float sum = bias ? bias[o] : 0.0f;
                for (int ky = 0; ky < kh; ky++)
                    for (int kx = 0; kx < kw; kx++) {
                        int iy = oy * sh - pt + ky * dh, ix = ox * sw - pl + kx * dw;
                        if (iy < 0 || iy >= h || ix < 0 || ix >= w)
                            continue;
                        for (int i = 0; i < own; i++)
                            sum = MADD(in[((size_t)iy * w + ix) * c + i],
                                       filter[(ky * kw + kx) * own + i], sum);
                    }
                size_t at = ((size_t)oy * ow + ox) * oc + o;
                y[at] = clamp(residual ? sum + residual[at] : sum, lo, hi);
            }
}

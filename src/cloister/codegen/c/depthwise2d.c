/* One filter per channel: x (h, w, c), packed (kh, kw, c), y (oh, ow, c). */
KERNEL void depthwise2d(
    const float *restrict x, const float *restrict packed, const float *restrict bias,
    float *restrict y, int h, int w, int c, int oh, int ow, int kh, int kw, int sh, int sw,
    int dh, int dw, int pt, int pl, float lo, float hi)
{
    for (int oy = 0; oy < oh; oy++)
        for (int ox = 0; ox < ow; ox++)
            for (int o = 0; o < c; o++) {
                float sum = bias ? bias[o] : 0.0f;
                for (int ky = 0; ky < kh; ky++)
                    for (int kx = 0; kx < kw; kx++) {
                        int iy = oy * sh - pt + ky * dh, ix = ox * sw - pl + kx * dw;
                        if (iy < 0 || iy >= h || ix < 0 || ix >= w)
                            continue;
                        sum = MADD(x[((size_t)iy * w + ix) * c + o],
                                   packed[(ky * kw + kx) * c + o], sum);
                    }
                y[((size_t)oy * ow + ox) * c + o] = clamp(sum, lo, hi);
            }
}

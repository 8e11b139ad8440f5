/* Windows over x (h, w, c), y (oh, ow, c); positions outside the image are ignored. */
KERNEL void pool2d_max(
    const float *restrict x, float *restrict y, int h, int w, int c, int oh, int ow, int kh,
    int kw, int sh, int sw, int dh, int dw, int pt, int pl, float lo, float hi)
{
    for (int oy = 0; oy < oh; oy++)
        for (int ox = 0; ox < ow; ox++) {
            float *out = y + ((size_t)oy * ow + ox) * c;
            for (int i = 0; i < c; i++)
                out[i] = -POSITIVE_INFINITY;
            for (int ky = 0; ky < kh; ky++)
                for (int kx = 0; kx < kw; kx++) {
                    int iy = oy * sh - pt + ky * dh, ix = ox * sw - pl + kx * dw;
                    if (iy < 0 || iy >= h || ix < 0 || ix >= w)
                        continue;
                    const float *in = x + ((size_t)iy * w + ix) * c;
                    for (int i = 0; i < c; i++)
                        out[i] = larger(out[i], in[i]);
                }
            for (int i = 0; i < c; i++)
                out[i] = clamp(out[i], lo, hi);
        }
}

/* `counted`: of how many positions the mean is; 0: of those inside the image. */
KERNEL void pool2d_average(
    const float *restrict x, float *restrict y, int h, int w, int c, int oh, int ow, int kh,
    int kw, int sh, int sw, int dh, int dw, int pt, int pl, int counted, float lo, float hi)
{
    for (int oy = 0; oy < oh; oy++)
        for (int ox = 0; ox < ow; ox++) {
            float *out = y + ((size_t)oy * ow + ox) * c;
            int inside = 0;
            for (int i = 0; i < c; i++)
                out[i] = 0.0f;
            for (int ky = 0; ky < kh; ky++)
                for (int kx = 0; kx < kw; kx++) {
                    int iy = oy * sh - pt + ky * dh, ix = ox * sw - pl + kx * dw;
                    if (iy < 0 || iy >= h || ix < 0 || ix >= w)
                        continue;
                    const float *in = x + ((size_t)iy * w + ix) * c;
                    inside++;
                    for (int i = 0; i < c; i++)
                        out[i] += in[i];
                }
            float positions = (float)(counted ? counted : inside);
            for (int i = 0; i < c; i++)
                out[i] = clamp(out[i] / positions, lo, hi);
        }
}

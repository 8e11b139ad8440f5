#include "vectors.c"
#include "window.c"
/* Windows over x (h, w, c), y (oh, ow, c); positions outside the image are ignored. */

/* One vector of channels of one window: the sum or the maximum. */
KERNEL vec pool_window(
    const float *restrict x, int lanes, int sum, struct taps down, struct taps across,
    struct window s)
{
    vec found = vec_splat(sum ? 0.0f : -POSITIVE_INFINITY);
    for (int ky = down.begin; ky < down.end; ky++)
        for (int kx = across.begin; kx < across.end; kx++) {
            vec a = vec_load(x + (ky * s.dh * s.w + kx * s.dw) * s.c, lanes);
            found = sum ? found + a : vec_larger(found, a);
        }
    return found;
}

KERNEL void pool_windows(
    const float *restrict x, float *restrict y, int sum, int counted, struct window s, float lo,
    float hi)
{
    for (int oy = 0; oy < s.oh; oy++)
        for (int ox = 0; ox < s.ow; ox++) {
            const int iy = oy * s.sh - s.pt, ix = ox * s.sw - s.pl;
            const struct taps down = taps_inside(iy, s.h, s.kh, s.dh);
            const struct taps across = taps_inside(ix, s.w, s.kw, s.dw);
            const int inside = (down.end - down.begin) * (across.end - across.begin);
            const float *from = x + ((ptrdiff_t)iy * s.w + ix) * s.c;
            float *to = y + ((ptrdiff_t)oy * s.ow + ox) * s.c;
            const vec positions = vec_splat(sum ? (float)(counted ? counted : inside) : 1.0f);
            int i = 0;
            for (; i + WIDTH <= s.c; i += WIDTH) {
                vec found = pool_window(from + i, WIDTH, sum, down, across, s);
                vec_store(to + i, vec_clamp(sum ? found / positions : found, lo, hi), WIDTH);
            }
            if (s.c % WIDTH) {
                vec found = pool_window(from + i, s.c % WIDTH, sum, down, across, s);
                found = vec_clamp(sum ? found / positions : found, lo, hi);
                vec_store(to + i, found, s.c % WIDTH);
            }
        }
}

KERNEL void pool2d_max(
    const float *restrict x, float *restrict y, int h, int w, int c, int oh, int ow, int kh,
    int kw, int sh, int sw, int dh, int dw, int pt, int pl, float lo, float hi)
{
    const struct window s = {h, w, c, oh, ow, kh, kw, sh, sw, dh, dw, pt, pl};
    pool_windows(x, y, 0, 0, s, lo, hi);
}

/* `counted`: of how many positions the mean is; 0: of those inside the image. */
KERNEL void pool2d_average(
    const float *restrict x, float *restrict y, int h, int w, int c, int oh, int ow, int kh,
    int kw, int sh, int sw, int dh, int dw, int pt, int pl, int counted, float lo, float hi)
{
    const struct window s = {h, w, c, oh, ow, kh, kw, sh, sw, dh, dw, pt, pl};
    pool_windows(x, y, 1, counted, s, lo, hi);
}

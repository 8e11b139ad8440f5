#include "vectors.c"
#include "window.c"
/* One filter per channel: x (h, w, c), packed (kh, kw, c), y (oh, ow, c). */
#define PIXELS 4

/* Some pixels of a row; `pixels`, `lanes` and, for several pixels, `across` are literals. */
KERNEL void depthwise_pixels(
    const float *restrict x, const float *restrict packed, const float *restrict bias,
    float *restrict y, int pixels, int lanes, struct taps down, struct taps across,
    struct window s, float lo, float hi)
{
    vec sums[PIXELS];
    UNROLL for (int p = 0; p < pixels; p++)
        sums[p] = bias ? vec_load(bias, lanes) : (vec){0};
    for (int ky = down.begin; ky < down.end; ky++)
        for (int kx = across.begin; kx < across.end; kx++) {
            vec b = vec_load(packed + (ky * s.kw + kx) * s.c, lanes);
            UNROLL for (int p = 0; p < pixels; p++) {
                vec a = vec_load(x + (ky * s.dh * s.w + kx * s.dw + p * s.sw) * s.c, lanes);
                sums[p] = vec_madd(a, b, sums[p]);
            }
        }
    UNROLL for (int p = 0; p < pixels; p++)
        vec_store(y + p * s.c, vec_clamp(sums[p], lo, hi), lanes);
}

/* All channels of the pixels that begin at (oy, ox). */
KERNEL void depthwise_channels(
    const float *restrict x, const float *restrict packed, const float *restrict bias,
    float *restrict y, int oy, int ox, int pixels, struct taps down, struct taps across,
    struct window s, float lo, float hi)
{
    const float *from = x + ((ptrdiff_t)(oy * s.sh - s.pt) * s.w + ox * s.sw - s.pl) * s.c;
    float *to = y + ((ptrdiff_t)oy * s.ow + ox) * s.c;
    int i = 0;
    for (; i + WIDTH <= s.c; i += WIDTH)
        depthwise_pixels(from + i, packed + i, bias ? bias + i : NULL, to + i, pixels, WIDTH,
                         down, across, s, lo, hi);
    if (s.c % WIDTH)
        depthwise_pixels(from + i, packed + i, bias ? bias + i : NULL, to + i, pixels,
                         s.c % WIDTH, down, across, s, lo, hi);
}

KERNEL void depthwise2d(
    const float *restrict x, const float *restrict packed, const float *restrict bias,
    float *restrict y, int h, int w, int c, int oh, int ow, int kh, int kw, int sh, int sw,
    int dh, int dw, int pt, int pl, float lo, float hi)
{
    const struct window s = {h, w, c, oh, ow, kh, kw, sh, sw, dh, dw, pt, pl};
    const struct taps whole = {0, kw};
    /* Between these columns the windows lie inside the image. */
    const int span = w + pl - (kw - 1) * dw, inside = (pl + sw - 1) / sw;
    const int outside = span > 0 ? (span - 1) / sw + 1 : 0;
    for (int oy = 0; oy < oh; oy++) {
        const struct taps down = taps_inside(oy * sh - pt, h, kh, dh);
        for (int ox = 0; ox < ow;) {
            if (ox >= inside && ox + PIXELS <= outside && ox + PIXELS <= ow) {
                depthwise_channels(x, packed, bias, y, oy, ox, PIXELS, down, whole, s, lo, hi);
                ox += PIXELS;
            } else {
                const struct taps across = taps_inside(ox * sw - pl, w, kw, dw);
                depthwise_channels(x, packed, bias, y, oy, ox, 1, down, across, s, lo, hi);
                ox++;
            }
        }
    }
}

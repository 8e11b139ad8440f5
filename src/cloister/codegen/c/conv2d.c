#include "tile.c"
#include "window.c"
/* Convolution of one image: x (h, w, c), y (oh, ow, oc), packed by `pack_conv`.
 * The filters' windows of a block of output pixels are the rows of a matrix in `scratch`, so many
 * of their taps at a time that a block fits into the second cache. */
#define BLOCK_ROWS 96
#define BLOCK_TAPS 576

KERNEL void copy_floats(float *restrict to, const float *restrict from, int count)
{
    int i = 0;
    for (; i + WIDTH <= count; i += WIDTH)
        vec_store(to + i, vec_load(from + i, WIDTH), WIDTH);
    vec_store(to + i, vec_load(from + i, count % WIDTH), count % WIDTH);
}

KERNEL void zero_floats(float *to, int count)
{
    int i = 0;
    for (; i + WIDTH <= count; i += WIDTH)
        vec_store(to + i, (vec){0}, WIDTH);
    vec_store(to + i, (vec){0}, count % WIDTH);
}

/* `channels` floats of some taps of the window at (oy, ox). */
KERNEL void gather_taps(
    const float *restrict x, float *restrict row, int oy, int ox, int tap, int taps, int channels,
    struct window s)
{
    for (int t = tap; t < tap + taps; t++, row += channels) {
        int iy = oy * s.sh - s.pt + t / s.kw * s.dh, ix = ox * s.sw - s.pl + t % s.kw * s.dw;
        if (iy < 0 || iy >= s.h || ix < 0 || ix >= s.w)
            zero_floats(row, channels);
        else
            copy_floats(row, x + ((ptrdiff_t)iy * s.w + ix) * s.c, channels);
    }
}

/* The same for whole rows of taps that lie side by side in x. */
KERNEL void gather_rows(
    const float *restrict x, float *restrict row, int oy, int ox, int tap, int taps, int channels,
    struct window s)
{
    int ix = ox * s.sw - s.pl, inside = ix >= 0 && ix + s.kw <= s.w;
    for (int t = tap; t < tap + taps; t += s.kw, row += s.kw * channels) {
        int iy = oy * s.sh - s.pt + t / s.kw * s.dh;
        if (inside && iy >= 0 && iy < s.h)
            copy_floats(row, x + ((ptrdiff_t)iy * s.w + ix) * s.c, s.kw * channels);
        else
            gather_taps(x, row, oy, ox, t, s.kw, channels, s);
    }
}

/* How a convolution is divided; all literals.
 * own, made                channels of one group, in and out
 * step, part               taps at a time, and channels of each
 * height, tiles, rest      rows of a tile, how many tiles, rows of the last one
 * block                    tiles whose windows are in `scratch` together */
struct division {
    int groups, own, made, taps, step, part, by_rows, height, tiles, rest, block;
    ptrdiff_t row_stride, panel_stride;
};

KERNEL struct division division(int oc, int groups, struct window s)
{
    const int own = s.c / groups, taps = s.kh * s.kw, pixels = s.oh * s.ow;
    const int parts = (own + BLOCK_TAPS - 1) / BLOCK_TAPS;
    const int part = parts == 1 ? own : (own + parts * 16 - 1) / (parts * 16) * 16;
    const int fit = BLOCK_TAPS / part, whole = fit < s.kw ? fit : fit / s.kw * s.kw;
    const int step = whole < taps ? whole : taps;
    const int fewest = (pixels + TILE_ROWS - 1) / TILE_ROWS;
    const int height = (pixels + fewest - 1) / fewest;
    const int tiles = (pixels + height - 1) / height;
    return (struct division){
        .groups = groups, .own = own, .made = oc / groups, .taps = taps, .step = step,
        .part = part, .by_rows = part == s.c && step % s.kw == 0 && s.dw == 1, .height = height,
        .tiles = tiles, .rest = pixels - (tiles - 1) * height, .block = BLOCK_ROWS / height,
        /* An odd number of cache lines, so that few rows share a set of the cache. */
        .row_stride = ((step * part + 15) / 16 | 1) * 16,
        .panel_stride = (ptrdiff_t)taps * own * PANEL,
    };
}

/* The windows of pixels `from` to `until` of these taps, a row each. */
KERNEL void gather(
    const float *restrict x, float *restrict row, int from, int until, int tap, int taps,
    int channels, struct division d, struct window s)
{
    for (int pixel = from; pixel < until; pixel++, row += d.row_stride) {
        if (d.by_rows)
            gather_rows(x, row, pixel / s.ow, pixel % s.ow, tap, taps, channels, s);
        else
            gather_taps(x, row, pixel / s.ow, pixel % s.ow, tap, taps, channels, s);
    }
}

/* `columns` output channels of some tiles: all rows of `scratch`, `k` of their numbers. */
KERNEL void multiply(
    const float *restrict scratch, const float *restrict panels, float *restrict y, int first,
    int end, int k, int columns, int oc, struct ends ends, struct division d)
{
    const struct columns b = {panels, d.panel_stride, PANEL};
    const float *residual = ends.residual;
    for (int t = first; t < end; t++, scratch += d.height * d.row_stride) {
        const ptrdiff_t at = (ptrdiff_t)t * d.height * oc;
        ends.residual = residual ? residual + at : NULL;
        if (t < d.tiles - 1)
            tile(scratch, d.row_stride, b, y + at, oc, k, d.height, columns, ends);
        else
            tile(scratch, d.row_stride, b, y + at, oc, k, d.rest, columns, ends);
    }
}

/* A block of pixels of one group, and a part of what their sums run over. */
KERNEL void conv_block(
    const float *restrict x, const float *restrict packed, float *restrict y,
    float *restrict scratch, int group, int first, int tap, int channel, int oc, struct ends ends,
    struct division d, struct window s)
{
    const int end = first + d.block < d.tiles ? first + d.block : d.tiles;
    const int until = end < d.tiles ? end * d.height : s.oh * s.ow;
    const int taps = tap + d.step < d.taps ? d.step : d.taps - tap;
    const int channels = channel + d.part < d.own ? d.part : d.own - channel;
    const int panels = (d.made + PANEL - 1) / PANEL, k = taps * channels;
    const float *bias = ends.bias, *residual = ends.residual;
    x += group * d.own + channel;
    gather(x, scratch, first * d.height, until, tap, taps, channels, d, s);
    ends.first = tap == 0 && channel == 0;
    ends.last = tap + taps == d.taps && channel + channels == d.own;
    packed += group * panels * d.panel_stride + ((ptrdiff_t)tap * d.own + channel) * PANEL;
    for (int column = 0; column < d.made; column += TILE_COLUMNS) {
        const int out = group * d.made + column;
        const float *from = packed + column / PANEL * d.panel_stride;
        ends.bias = bias ? bias + out : NULL;
        ends.residual = residual ? residual + out : NULL;
        if (column + TILE_COLUMNS <= d.made)
            multiply(scratch, from, y + out, first, end, k, TILE_COLUMNS, oc, ends, d);
        else
            multiply(scratch, from, y + out, first, end, k, d.made % TILE_COLUMNS, oc, ends, d);
    }
}

KERNEL void conv2d(
    const float *restrict x, const float *restrict packed, const float *restrict bias,
    const float *restrict residual, float *restrict y, float *restrict scratch,
    int h, int w, int c, int oh, int ow, int oc, int kh, int kw, int sh, int sw, int dh, int dw,
    int pt, int pl, int groups, float lo, float hi)
{
    const struct window s = {h, w, c, oh, ow, kh, kw, sh, sw, dh, dw, pt, pl};
    const struct division d = division(oc, groups, s);
    const struct ends ends = {.bias = bias, .residual = residual, .lo = lo, .hi = hi};
    for (int group = 0; group < groups; group++)
        for (int first = 0; first < d.tiles; first += d.block)
            for (int tap = 0; tap < d.taps; tap += d.step)
                for (int channel = 0; channel < d.own; channel += d.part)
                    conv_block(x, packed, y, scratch, group, first, tap, channel, oc, ends, d, s);
}

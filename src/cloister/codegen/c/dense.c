#include "conv2d.c"
/* Matrix product: x (m, k), y (m, n), packed by `pack_dense`. One row is a stream through the
 * weights, several rows are an image one pixel high. */
#if WIDTH > 4
#define DENSE_COLUMNS 64
#else
#define DENSE_COLUMNS 32
#endif

KERNEL void dense(
    const float *restrict x, const float *restrict packed, const float *restrict bias,
    const float *restrict residual, float *restrict y, float *restrict scratch, int m, int k, int n,
    float lo, float hi)
{
    if (m > 1) {
        conv2d(x, packed, bias, residual, y, scratch, 1, m, k, 1, m, n, 1, 1, 1, 1, 1, 1, 0, 0, 1,
               lo, hi);
        return;
    }
    for (int column = 0; column < n; column += DENSE_COLUMNS) {
        const struct columns b = {
            packed + (ptrdiff_t)column * k, (ptrdiff_t)k * PANEL, PANEL,
        };
        const struct ends ends = {
            bias ? bias + column : NULL, residual ? residual + column : NULL, lo, hi, 1, 1,
        };
        if (column + DENSE_COLUMNS <= n)
            tile(x, k, b, y + column, n, k, 1, DENSE_COLUMNS, ends);
        else
            tile(x, k, b, y + column, n, k, 1, n % DENSE_COLUMNS, ends);
    }
}

#include "tile.c"
/* Product of two computed matrices: a (m, k), b (k, n), y (m, n). */
KERNEL void matmul_columns(
    const float *restrict a, const float *restrict b, float *restrict y, int m, int k, int n,
    int columns)
{
    const struct columns from = {b, PANEL, n};
    const struct ends ends = {NULL, NULL, -POSITIVE_INFINITY, POSITIVE_INFINITY, 1, 1};
    ptrdiff_t row = 0;
    for (; row + TILE_ROWS <= m; row += TILE_ROWS)
        tile(a + row * k, k, from, y + row * n, n, k, TILE_ROWS, columns, ends);
    if (m % TILE_ROWS)
        tile(a + row * k, k, from, y + row * n, n, k, m % TILE_ROWS, columns, ends);
}

KERNEL void matmul(
    const float *restrict a, const float *restrict b, float *restrict y, int m, int k, int n)
{
    int column = 0;
    for (; column + TILE_COLUMNS <= n; column += TILE_COLUMNS)
        matmul_columns(a, b + column, y + column, m, k, n, TILE_COLUMNS);
    if (n % TILE_COLUMNS)
        matmul_columns(a, b + column, y + column, m, k, n, n % TILE_COLUMNS);
}

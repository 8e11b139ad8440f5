#include "vectors.c"
/* The product of a few rows and columns, whose sums stay in registers.
 * A panel of weights is (k, 16) floats: 16 columns (output channels), the last panel's filled up
 * with zeros. Each sum begins with its bias and runs over k in order, whatever the tile. */
#define PANEL 16
#if defined(__AVX512F__)
#define TILE_ROWS 12
#define TILE_COLUMNS 32
#elif defined(__AVX__)
#if defined(__clang__)
#define TILE_ROWS 6
#else
#define TILE_ROWS 5 /* GCC keeps the bounds of the clamp in three of the 16 registers. */
#endif
#define TILE_COLUMNS 16
#else
#define TILE_ROWS 2
#define TILE_COLUMNS 16
#endif
#define TILE_SUMS 24

/* What happens to a sum before and after. `first`, `last`: whether k begins, ends here; between
 * parts of k the sums lie in y. */
struct ends {
    const float *bias, *residual;
    float lo, hi;
    int first, last;
};

/* What the rows are multiplied by: 16 columns of a row of `at`, the next 16 columns, the next row.
 * Of packed panels, all 16 columns exist. */
struct columns {
    const float *at;
    ptrdiff_t next_panel, next_row;
};

/* `rows`, `columns` and the strides are literals. */
KERNEL void tile(
    const float *restrict a, ptrdiff_t a_stride, struct columns b, float *restrict y,
    ptrdiff_t y_stride, int k, int rows, int columns, struct ends ends)
{
    const int vecs = (columns + WIDTH - 1) / WIDTH;
    vec sums[TILE_SUMS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vecs; v++) {
            int lanes = columns - v * WIDTH;
            vec begin = {0};
            if (!ends.first)
                begin = vec_load(y + r * y_stride + v * WIDTH, lanes);
            else if (ends.bias)
                begin = vec_load(ends.bias + v * WIDTH, lanes);
            sums[r * vecs + v] = begin;
        }
    for (int i = 0; i < k; i++) {
        vec row[TILE_SUMS];
        UNROLL for (int v = 0; v < vecs; v++) {
            int lanes = b.next_row == PANEL ? WIDTH : columns - v * WIDTH;
            row[v] = vec_load(b.at + v * WIDTH / PANEL * b.next_panel + v * WIDTH % PANEL
                              + i * b.next_row, lanes);
        }
        UNROLL for (int r = 0; r < rows; r++) {
            vec x = vec_splat(a[r * a_stride + i]);
            UNROLL for (int v = 0; v < vecs; v++)
                sums[r * vecs + v] = vec_madd(x, row[v], sums[r * vecs + v]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vecs; v++) {
            int lanes = columns - v * WIDTH;
            vec sum = sums[r * vecs + v];
            if (ends.last && ends.residual)
                sum += vec_load(ends.residual + r * y_stride + v * WIDTH, lanes);
            if (ends.last)
                sum = vec_clamp(sum, ends.lo, ends.hi);
            vec_store(y + r * y_stride + v * WIDTH, sum, lanes);
        }
}

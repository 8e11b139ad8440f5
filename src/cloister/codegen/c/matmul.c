/* Product of two computed matrices: a (m, k), b (k, n), y (m, n). */
KERNEL void matmul(const float *restrict a, const float *restrict b, float *restrict y,
                   int m, int k, int n)
{
    for (int row = 0; row < m; row++) {
        float *out = y + (size_t)row * n;
        for (int j = 0; j < n; j++)
            out[j] = 0.0f;
        for (int i = 0; i < k; i++)
            for (int j = 0; j < n; j++)
                out[j] = MADD(a[(size_t)row * k + i], b[(size_t)i * n + j], out[j]);
    }
}

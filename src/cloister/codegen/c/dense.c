/* Matrix product: x (m, k), packed (k, n), y (m, n). */
KERNEL void dense(
    const float *restrict x, const float *restrict packed, const float *restrict bias,
    const float *restrict residual, float *restrict y, int m, int k, int n, float lo, float hi)
{
    for (int row = 0; row < m; row++) {
        float *out = y + (size_t)row * n;
        for (int j = 0; j < n; j++)
            out[j] = bias ? bias[j] : 0.0f;
        for (int i = 0; i < k; i++) {
            float value = x[(size_t)row * k + i];
            for (int j = 0; j < n; j++)
                out[j] = MADD(value, packed[(size_t)i * n + j], out[j]);
        }
        for (int j = 0; j < n; j++)
            out[j] = clamp(residual ? out[j] + residual[(size_t)row * n + j] : out[j], lo, hi);
    }
}

/* Rows of a table (outer, rows, inner) by their indices. Every row is read for every index, so that
 * no address depends on one. A negative index counts from the back; one outside the table gives
 * zeros. */
KERNEL void table_rows(const float *restrict table, const int64_t *restrict index, float *restrict y,
                   int outer, int rows, int inner, int count)
{
    for (int o = 0; o < outer; o++)
        for (int j = 0; j < count; j++) {
            const float *row = table + (size_t)o * rows * inner;
            float *out = y + ((size_t)o * count + j) * inner;
            int64_t wanted = index[j] + (int64_t)((uint64_t)index[j] >> 63) * rows;
            for (int i = 0; i < inner; i++)
                out[i] = 0.0f;
            for (int r = 0; r < rows; r++, row += inner) {
                uint32_t mask = opaque(0u - (uint32_t)(wanted == r));
                for (int i = 0; i < inner; i++)
                    out[i] = bits_float(float_bits(out[i]) | (float_bits(row[i]) & mask));
            }
        }
}

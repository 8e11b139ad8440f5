/* Of sign * x, the largest value that comes behind (value, index) in descending order, the first
 * of equal ones; with `begin`, the largest of all. With `last`, the last of equal ones. A NaN is
 * never chosen; where nothing is left, the value is NaN and the index 0. */
KERNEL void next_largest(const float *restrict x, int count, int step, float sign, int begin,
                         int last, float *value, int64_t *index)
{
    float most = NOT_A_NUMBER;
    uint32_t at = 0, found = 0;
    for (int i = 0; i < count; i++) {
        float one = sign * x[(size_t)i * step];
        uint32_t behind = (uint32_t)(one < *value)
            | ((uint32_t)(one == *value) & (uint32_t)(i > *index)) | (uint32_t)begin;
        uint32_t better = (uint32_t)(one > most) | ((uint32_t)(one == most) & (uint32_t)last);
        uint32_t taken = (uint32_t)(one == one) & behind & (better | (1u - found));
        uint32_t mask = opaque(0u - taken);
        most = bits_float((float_bits(one) & mask) | (float_bits(most) & ~mask));
        at = ((uint32_t)i & mask) | (at & ~mask);
        found |= taken;
    }
    *value = most;
    *index = (int64_t)at;
}

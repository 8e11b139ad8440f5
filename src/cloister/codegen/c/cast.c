/* Cut towards zero, and limited to what fits. NaN becomes 0. */
KERNEL int32_t float_to_int32(float x)
{
    float limited = clamp(x, -2147483648.0f, 2147483520.0f);
    return (int32_t)choose((uint32_t)(x == x), limited, 0.0f);
}

KERNEL int64_t float_to_int64(float x)
{
    float limited = clamp(x, -9223372036854775808.0f, 9223371487098961920.0f);
    return (int64_t)choose((uint32_t)(x == x), limited, 0.0f);
}

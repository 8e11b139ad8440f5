/* x = n ln 2 + r with |r| <= ln(2) / 2, for |x| <= 104: gives e^r - 1, and n + 512 as `power`.
 * The polynomial is within 5e-11 of (e^r - 1 - r) / r^2. n times the first constant is exact. */
KERNEL float reduced_exponential(float x, uint32_t *power)
{
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    float shifted = MADD(x, 1.44269504f, shift);
    float n = shifted - shift;
    float r = MADD(n, -0.693359375f, x);
    r = MADD(n, 2.12194440e-4f, r);
    float p = MADD(r, 1.99157337e-4f, 1.39462471e-3f);
    p = MADD(r, p, 8.33326951e-3f);
    p = MADD(r, p, 4.16662656e-2f);
    p = MADD(r, p, 1.66666672e-1f);
    p = MADD(r, p, 0.5f);
    *power = float_bits(shifted) - float_bits(shift) + 512u;
    return MADD(r * r, p, r);
}

/* e^x. Error: at most 2 units in the last place. 2^n is applied in two factors, so that results
 * below the smallest normal number are rounded once; above 88.72 the result is infinite. */
KERNEL float exponential(float x)
{
    uint32_t power;
    float p = reduced_exponential(clamp(x, -104.0f, 89.0f), &power) + 1.0f;
    uint32_t half = (power >> 1) - 256u, rest = power - 512u - half;
    return p * bits_float((half + 127u) << 23) * bits_float((rest + 127u) << 23);
}

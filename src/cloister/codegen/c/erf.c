#include "exp.c"
/* The error function. Error: at most 4 units in the last place. Below 0.92 a polynomial in x^2,
 * above it 1 - e^-q with a polynomial q; both are evaluated, and one is chosen. */
KERNEL float error_function(float x)
{
    uint32_t sign = float_bits(x) & 0x80000000u;
    float size = bits_float(float_bits(x) ^ sign);
    float s = size * size;
    float small = MADD(s, -5.97688602e-4f, 4.99097863e-3f);
    small = MADD(s, small, -2.67655663e-2f);
    small = MADD(s, small, 1.12818025e-1f);
    small = MADD(s, small, -3.76124948e-1f);
    small = MADD(s, small, 1.28379151e-1f);
    small = MADD(size, small, size);
    float t = smaller(4.0f, size);
    float q = MADD(t, -1.98223846e-4f, 3.06552835e-3f);
    q = MADD(t, q, -2.23153532e-2f);
    q = MADD(t, q, 1.04113944e-1f);
    q = MADD(t, q, 6.36975825e-1f);
    q = MADD(t, q, 1.12779737f);
    q = MADD(t, q, 1.66413171e-4f);
    float wide = 1.0f - exponential(-q);
    float result = choose((uint32_t)(size < 0.92f), small, wide);
    return bits_float(float_bits(result) ^ sign);
}

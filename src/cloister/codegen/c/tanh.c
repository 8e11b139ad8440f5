#include "exp.c"
/* tanh x = -e / (2 + e), e = e^(-2 |x|) - 1, with the sign of x. Error: at most 4 units in the
 * last place. */
KERNEL float hyperbolic_tangent(float x)
{
    uint32_t power, sign = float_bits(x) & 0x80000000u;
    float size = bits_float(float_bits(x) ^ sign);
    float q = reduced_exponential(larger(-40.0f, -2.0f * size), &power);
    float scale = bits_float((power - 512u + 127u) << 23);
    float e = MADD(scale, q, scale - 1.0f);
    return bits_float(float_bits(-e / (2.0f + e)) ^ sign);
}

#include "erf.c"
/* x Phi(x). Error: at most 2^-22 |x|. */
KERNEL float gelu(float x)
{
    return 0.5f * x * (1.0f + error_function(x * 0.707106781f));
}

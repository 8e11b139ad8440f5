#include "exp.c"
/* 1 / (1 + e^-x). Error: at most 4 units in the last place, and 2^-126 below x = -87. */
KERNEL float sigmoid(float x)
{
    return 1.0f / (1.0f + exponential(-x));
}

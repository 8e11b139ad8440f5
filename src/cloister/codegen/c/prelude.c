#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif

#define KERNEL static inline __attribute__((unused, always_inline))
#if defined(__wasm__)
#define EXPORT __attribute__((visibility("default"), used))
#else
#define EXPORT __attribute__((visibility("default")))
#endif
#define POSITIVE_INFINITY __builtin_inff()
#define NOT_A_NUMBER __builtin_nanf("")

KERNEL uint32_t float_bits(float x)
{
    union { float value; uint32_t bits; } both = { .value = x };
    return both.bits;
}

KERNEL float bits_float(uint32_t bits)
{
    union { uint32_t bits; float value; } both = { .bits = bits };
    return both.value;
}

/* The same mask, of which the compiler knows nothing: it cannot make a branch of it. */
KERNEL uint32_t opaque(uint32_t mask)
{
    __asm__ volatile("" : "+r"(mask));
    return mask;
}

/* a where a condition (0 or 1) holds, else b; without a branch. */
KERNEL float choose(uint32_t condition, float a, float b)
{
    uint32_t mask = 0u - condition;
    return bits_float((float_bits(a) & mask) | (float_bits(b) & ~mask));
}

/* MADD(a, b, c) is a b + c. With CONTRACT it is rounded once on every processor, else twice. */
#if !defined(CONTRACT)
#define MADD(a, b, c) ((a) * (b) + (c))
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define MADD(a, b, c) __builtin_fmaf((a), (b), (c))
#else
/* The product is exact in double. The sum is rounded to odd (its last bit says that something was
 * lost), after which the second rounding, to float, is right: 53 >= 2 * 24 + 2. */
KERNEL float rounded_once(float a, float b, float c)
{
    double product = (double)a * (double)b, addend = (double)c, sum = product + addend;
    double part = sum - product;
    double lost = (product - (sum - part)) + (addend - part);
    union { double value; uint64_t bits; } odd = { .value = sum };
    uint64_t inexact = (uint64_t)(lost != 0.0) & (uint64_t)(sum - sum == 0.0) & ~odd.bits & 1u;
    uint64_t away = (uint64_t)((lost > 0.0) == (sum > 0.0));
    odd.bits += inexact * (2u * away - 1u);
    return (float)odd.value;
}
#define MADD(a, b, c) rounded_once((a), (b), (c))
#endif

KERNEL float larger(float a, float x)
{
    return a > x ? a : x;
}

KERNEL float smaller(float a, float x)
{
    return a < x ? a : x;
}

KERNEL float clamp(float x, float lo, float hi)
{
    return smaller(hi, larger(lo, x));
}

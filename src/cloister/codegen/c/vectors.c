#include "prelude.c"
/* Vectors of the machine's width. A sum has the same order for every width: one lane, one sum. */
#if !defined(__clang__)
/* Every function is inlined: no vector is passed as an ABI says. */
#pragma GCC diagnostic ignored "-Wpsabi"
#if defined(__FMA__)
#include <immintrin.h>
#endif
#endif

#if defined(__AVX512F__)
#define WIDTH 16
#elif defined(__AVX__)
#define WIDTH 8
#else
#define WIDTH 4
#endif
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

typedef float vec __attribute__((vector_size(4 * WIDTH)));
typedef int32_t vec_mask __attribute__((vector_size(4 * WIDTH)));
typedef float vec_in_memory __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

KERNEL vec vec_splat(float x)
{
    return x - (vec){0};
}

/* The first `lanes` floats (a literal); other lanes are 0, and are not written. */
KERNEL vec vec_load(const float *p, int lanes)
{
    vec v = {0};
    if (lanes >= WIDTH)
        return *(const vec_in_memory *)p;
    UNROLL for (int i = 0; i < WIDTH; i++)
        if (i < lanes)
            v[i] = p[i];
    return v;
}

KERNEL void vec_store(float *p, vec v, int lanes)
{
    if (lanes >= WIDTH) {
        *(vec_in_memory *)p = v;
        return;
    }
    UNROLL for (int i = 0; i < WIDTH; i++)
        if (i < lanes)
            p[i] = v[i];
}

KERNEL vec vec_choose(vec_mask mask, vec a, vec b)
{
    return (vec)((mask & (vec_mask)a) | (~mask & (vec_mask)b));
}

KERNEL vec vec_larger(vec a, vec x)
{
    return vec_choose(a > x, a, x);
}

KERNEL vec vec_clamp(vec x, float lo, float hi)
{
    vec high = vec_splat(hi), limited = vec_larger(vec_splat(lo), x);
    return vec_choose(high < limited, high, limited);
}

#if !defined(CONTRACT)
KERNEL vec vec_madd(vec a, vec b, vec c)
{
    return a * b + c;
}
#elif (defined(__FMA__) || defined(__ARM_FEATURE_FMA)) && defined(__clang__)
KERNEL vec vec_madd(vec a, vec b, vec c)
{
    return __builtin_elementwise_fma(a, b, c);
}
#elif defined(__AVX512F__)
KERNEL vec vec_madd(vec a, vec b, vec c)
{
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
#elif defined(__FMA__)
KERNEL vec vec_madd(vec a, vec b, vec c)
{
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
#else
/* `rounded_once` of four lanes: an inexact sum is truncated, and its last bit is set. */
typedef double vec_double __attribute__((vector_size(8 * WIDTH)));
typedef int64_t vec_bits __attribute__((vector_size(8 * WIDTH)));
typedef uint64_t vec_word __attribute__((vector_size(8 * WIDTH)));

KERNEL vec vec_madd(vec a, vec b, vec c)
{
    vec_double product =
        __builtin_convertvector(a, vec_double) * __builtin_convertvector(b, vec_double);
    vec_double addend = __builtin_convertvector(c, vec_double), sum = product + addend;
    vec_double part = sum - product;
    vec_double lost = (product - (sum - part)) + (addend - part);
    vec_double size = (vec_double)((vec_bits)lost & INT64_MAX);
    vec_word inexact = (vec_word)(size > 0.0) & 1u;
    vec_word beyond = (((vec_word)lost ^ (vec_word)sum) >> 63) & inexact;
    vec_word odd = ((vec_word)sum - beyond) | inexact;
    return __builtin_convertvector((vec_double)odd, vec);
}
#endif

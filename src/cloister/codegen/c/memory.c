/* The compiler may call these for copies, and there is no libc; HOSTED: there is one. */
#if !defined(HOSTED)
void *memcpy(void *restrict target, const void *restrict source, size_t bytes);
void *memmove(void *target, const void *source, size_t bytes);
void *memset(void *target, int value, size_t bytes);

__attribute__((used)) void *memcpy(void *restrict target, const void *restrict source, size_t bytes)
{
    unsigned char *to = target;
    const unsigned char *from = source;
    for (size_t i = 0; i < bytes; i++)
        to[i] = from[i];
    return target;
}

__attribute__((used)) void *memmove(void *target, const void *source, size_t bytes)
{
    unsigned char *to = target;
    const unsigned char *from = source;
    if ((uintptr_t)to < (uintptr_t)from)
        for (size_t i = 0; i < bytes; i++)
            to[i] = from[i];
    else
        for (size_t i = bytes; i > 0; i--)
            to[i - 1] = from[i - 1];
    return target;
}

__attribute__((used)) void *memset(void *target, int value, size_t bytes)
{
    unsigned char *to = target;
    for (size_t i = 0; i < bytes; i++)
        to[i] = (unsigned char)value;
    return target;
}
#endif

/* `choose` of integers. */
KERNEL int32_t choose_int32(uint32_t condition, int32_t a, int32_t b)
{
    uint32_t mask = 0u - condition;
    return (int32_t)(((uint32_t)a & mask) | ((uint32_t)b & ~mask));
}

KERNEL int64_t choose_int64(uint32_t condition, int64_t a, int64_t b)
{
    uint64_t mask = (uint64_t)0 - condition;
    return (int64_t)(((uint64_t)a & mask) | ((uint64_t)b & ~mask));
}

/* Calls a module once: driver WEIGHTS INPUTS OUTPUTS, files of exactly the module's sizes. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

uint64_t cloister_module_size(int32_t which);
int32_t cloister_module_run(const void *weights, uint64_t weights_bytes, const void *inputs,
                            uint64_t inputs_bytes, void *outputs, uint64_t outputs_bytes,
                            void *arena, uint64_t arena_bytes);

static void *filled(const char *path, uint64_t bytes)
{
    void *memory = aligned_alloc(64, bytes ? bytes : 64);
    if (!path || !bytes)
        return memory;
    FILE *file = fopen(path, "rb");
    if (!memory || !file || fread(memory, 1, bytes, file) != bytes)
        exit(2);
    fclose(file);
    return memory;
}

int main(int count, char **paths)
{
    if (count != 4)
        return 2;
    uint64_t size[5];
    for (int i = 0; i < 5; i++)
        size[i] = cloister_module_size(i);
    void *weights = filled(paths[1], size[1]), *inputs = filled(paths[2], size[2]);
    void *outputs = filled(NULL, size[3]), *arena = filled(NULL, size[4]);
    int status = cloister_module_run(weights, size[1], inputs, size[2], outputs, size[3], arena,
                                     size[4]);
    FILE *file = fopen(paths[3], "wb");
    if (!file || fwrite(outputs, 1, size[3], file) != size[3])
        return 2;
    fclose(file);
    free(weights);
    free(inputs);
    free(outputs);
    free(arena);
    return status;
}

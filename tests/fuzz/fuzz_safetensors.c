/* Fuzzes .safetensors: the input is parsed, and every byte of every tensor is read. */
#include "lib/formats/formats_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct err e;
    struct raw_table t = {0};
    struct arena a = {0};
    volatile unsigned char sum = 0;
    if (!safetensors_parse(&t, data, size, &a, &e) && !raw_table_sort(&t, &e))
        for (size_t i = 0; i < t.n; i++) {
            if (raw_table_find(&t, t.items[i].name) != &t.items[i]) abort();
            for (uint64_t k = 0; k < t.items[i].n_bytes; k++) sum = (unsigned char)(sum + t.items[i].data[k]);
        }
    raw_table_release(&t);
    arena_release(&a);
    return 0;
}

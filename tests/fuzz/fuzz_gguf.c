/* Fuzzes GGUF: the input is opened, tokenizer included, and every tensor is read. */
#include "lib/formats/formats_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct err e;
    struct foreign_model *f;
    if (foreign_open_gguf(&f, data, size, NULL, &e)) return 0;
    volatile unsigned char sum = 0;
    for (size_t i = 0; i < model_slot_count(&f->config); i++) {
        struct tensor_desc d;
        const void *p;
        if (foreign_tensor(f, model_slot_at(&f->config, i), &d, &p, &e)) abort(); /* open has checked them all */
        const unsigned char *bytes = p;
        for (uint64_t k = 0; k < tensor_bytes(&d); k++) sum = (unsigned char)(sum + bytes[k]);
        (void)tensor_first_nonfinite(d.dtype, p, tensor_elems(&d));
    }
    foreign_close(f);
    return 0;
}

/* Converts between the two orders of rotary rows. */
#include "lib/formats/formats_internal.h"

bool slot_is_rotary(struct model_slot s) {
    return s.role == ROLE_Q || s.role == ROLE_K || s.role == ROLE_Q_BIAS || s.role == ROLE_K_BIAS;
}

/*
 * A head's rows form pairs that rotate together. Hugging Face has the first halves of all pairs, then the second halves
 * (x0 x1 .. y0 y1 ..); GGUF's llama architecture interleaves them (x0 y0 x1 y1 ..). Whole rows are moved, so quantized
 * blocks remain intact.
 */
void rows_interleave(unsigned char *to, const unsigned char *from, uint64_t rows, uint64_t row_bytes, uint32_t heads) {
    uint64_t per_head = rows / heads, half = per_head / 2;
    for (uint64_t h = 0; h < heads; h++)
        for (uint64_t i = 0; i < per_head; i++) {
            uint64_t source = h * per_head + (i % 2) * half + i / 2;
            memcpy(to + (h * per_head + i) * row_bytes, from + source * row_bytes, row_bytes);
        }
}

void rows_split(unsigned char *to, const unsigned char *from, uint64_t rows, uint64_t row_bytes, uint32_t heads) {
    uint64_t per_head = rows / heads, half = per_head / 2;
    for (uint64_t h = 0; h < heads; h++)
        for (uint64_t i = 0; i < per_head; i++) {
            uint64_t target = h * per_head + (i % 2) * half + i / 2;
            memcpy(to + target * row_bytes, from + (h * per_head + i) * row_bytes, row_bytes);
        }
}

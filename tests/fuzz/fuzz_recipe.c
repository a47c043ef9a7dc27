/* Fuzzes recipes of forged provenance: JSON in, a Makefile or an error out. */
#include "lib/recipe/recipe_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct err e;
    struct recipe r;
    struct buf text = {0};
    cJSON *entries = json_parse((const char *)data, size, &e);
    if (!entries) return 0;
    if (recipe_build(&r, entries, "target", &e) == 0 && recipe_print(&r, &text, &e) == 0) {
        /* whatever the entries say, no text that is unsafe for a terminal may reach the Makefile */
        char shown[ESCAPE_MAX];
        for (size_t i = 0, took; i < text.len; i += took)
            if (escape_char((char *)text.data + i, text.len - i, &took, shown) && !strchr("\n\t", text.data[i]))
                abort();
    }
    buf_release(&text);
    recipe_release(&r);
    cJSON_Delete(entries);
    return 0;
}

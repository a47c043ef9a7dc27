/* The table of tensors of a foreign file of any format: lookup by name, checked sizes. */
#include <stdlib.h>

#include "lib/formats/formats_internal.h"

int raw_table_reserve(struct raw_table *t, size_t extra, struct err *e) {
    if (t->cap - t->n >= extra) return 0;
    size_t cap = t->n + extra > 2 * t->cap ? t->n + extra : 2 * t->cap;
    struct raw_tensor *items = mem_array(cap, sizeof *items, e);
    if (!items) return e->code;
    if (t->n) memcpy(items, t->items, t->n * sizeof *items);
    mem_free(t->items);
    t->items = items;
    t->cap = cap;
    return 0;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct raw_tensor *)a)->name, ((const struct raw_tensor *)b)->name);
}

int raw_table_sort(struct raw_table *t, struct err *e) {
    if (t->n) qsort(t->items, t->n, sizeof *t->items, by_name);
    for (size_t i = 1; i < t->n; i++)
        if (strcmp(t->items[i - 1].name, t->items[i].name) == 0)
            return err_set(e, ERR_DATA, "tensor '%s' occurs twice", t->items[i].name);
    return 0;
}

struct raw_tensor *raw_table_find(const struct raw_table *t, const char *name) {
    struct raw_tensor key = {.name = name};
    return t->n ? bsearch(&key, t->items, t->n, sizeof key, by_name) : NULL;
}

void raw_table_release(struct raw_table *t) {
    mem_free(t->items);
    *t = (struct raw_table){0};
}

/* Every multiplication is checked: an overflow would let a huge tensor pass for a small one (CVE-2026-33298). */
int raw_tensor_size(const struct raw_tensor *r, uint64_t *n_bytes, struct err *e) {
    const struct dtype_info *type = dtype_info(r->dtype);
    uint64_t row = r->rank ? r->dims[r->rank - 1] : 1, n = 1;
    if (row % type->block_elems)
        return err_set(e, ERR_DATA, "tensor '%s': rows of %llu elements are not a whole number of blocks of %u (%s)",
                       r->name, (unsigned long long)row, type->block_elems, type->name);
    for (unsigned i = 0; i < r->rank; i++) {
        if (r->dims[i] == 0) return err_set(e, ERR_DATA, "tensor '%s': dimension %u is zero", r->name, i);
        if (!u64_mul(n, r->dims[i], &n))
            return err_set(e, ERR_DATA, "tensor '%s': the number of elements overflows", r->name);
    }
    if (!u64_mul(n / type->block_elems, type->block_bytes, n_bytes))
        return err_set(e, ERR_DATA, "tensor '%s': the number of bytes overflows", r->name);
    return 0;
}

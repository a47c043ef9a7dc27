/*
 * Reads a GGUF split into several files as llama-gguf-split writes them: each has tensors and keys that say which part
 * it is (split.no, split.count, split.tensors.count); only the first has the model's keys.
 */
#include "lib/formats/formats_internal.h"

char *gguf_part_name(struct arena *a, const char *stem, size_t n_stem, uint32_t no, uint32_t count, struct err *e) {
    return arena_printf(a, e, "%.*s-%05u-of-%05u.gguf", (int)n_stem, stem, no + 1, count);
}

/* *n_stem = the length of the path without the suffix of the first part, "-00001-of-00003.gguf". */
static int find_stem(const char *path, uint32_t count, struct arena *a, size_t *n_stem, struct err *e) {
    const char *end = gguf_part_name(a, "", 0, 0, count, e);
    if (!end) return e->code;
    size_t n = strlen(path), m = strlen(end);
    if (n < m || strcmp(path + n - m, end) != 0)
        return err_set(e, ERR_DATA,
                       "the first of %u parts of a split GGUF, but the names of the others follow only from one "
                       "that ends in '%s'",
                       count, end);
    *n_stem = n - m;
    return 0;
}

static int check_part(const struct gguf_file *part, uint32_t no, uint32_t count, struct err *e) {
    uint64_t its_no, its_count;
    int rc = gguf_get_u64(part, "split.no", 0, GGUF_MAX_PARTS, &its_no, e);
    if (!rc) rc = gguf_get_u64(part, "split.count", 0, GGUF_MAX_PARTS, &its_count, e);
    if (rc || (its_no == no && its_count == count)) return rc;
    return err_set(e, ERR_DATA, "says that it is part %llu of %llu, expected %u of %u", (unsigned long long)its_no + 1,
                   (unsigned long long)its_count, no + 1, count);
}

static int add_part(struct foreign_model *f, struct gguf_file *g, const char *path, uint32_t no, uint32_t count,
                    struct err *e) {
    const struct mapped_file *m;
    struct gguf_file part = {0};
    if (source_map(f, path, &m, e)) return e->code; /* the message names the path already */
    int rc = gguf_parse(&part, m->data, m->size, &f->memory, e);
    if (!rc) rc = check_part(&part, no, count, e);
    if (rc) rc = err_prefix(e, "%s", path);
    if (!rc) rc = raw_table_reserve(&g->tensors, part.tensors.n, e);
    for (size_t i = 0; i < part.tensors.n && !rc; i++) g->tensors.items[g->tensors.n++] = part.tensors.items[i];
    gguf_release(&part);
    return rc;
}

int gguf_join(struct foreign_model *f, struct gguf_file *g, const char *path, struct err *e) {
    uint64_t count = 1, no, n_tensors;
    size_t n_stem = 0;
    int rc = gguf_opt_u64(g, "split.count", 0, GGUF_MAX_PARTS, &count, e);
    if (rc || count <= 1) return rc;
    if (!path) return err_set(e, ERR_DATA, "one of %llu parts of a split GGUF", (unsigned long long)count);
    rc = gguf_get_u64(g, "split.no", 0, count - 1, &no, e);
    if (!rc && no)
        rc = err_set(e, ERR_DATA, "part %llu of %llu of a split GGUF: name the first, the others are found from it",
                     (unsigned long long)no + 1, (unsigned long long)count);
    if (!rc) rc = gguf_get_u64(g, "split.tensors.count", 0, INT32_MAX, &n_tensors, e);
    if (!rc) rc = find_stem(path, (uint32_t)count, &f->memory, &n_stem, e);
    for (uint32_t i = 1; i < count && !rc; i++) {
        const char *name = gguf_part_name(&f->memory, path, n_stem, i, (uint32_t)count, e);
        rc = name ? add_part(f, g, name, i, (uint32_t)count, e) : e->code;
    }
    if (!rc && g->tensors.n != n_tensors)
        rc = err_set(e, ERR_DATA, "%llu parts with %zu tensors, but key 'split.tensors.count' is %llu",
                     (unsigned long long)count, g->tensors.n, (unsigned long long)n_tensors);
    return rc ? rc : raw_table_sort(&g->tensors, e);
}

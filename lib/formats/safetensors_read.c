/*
 * Reads safetensors: u64 length of the header, the header (JSON: name -> dtype, shape, data_offsets), then the data.
 * The offsets must cover the data exactly, without gap or overlap, as the reference implementation requires.
 */
#include <stdlib.h>

#include "lib/formats/formats_internal.h"

static const struct {
    const char *name;
    enum dtype dtype;
} dtype_names[] = {
    {"F32", DT_F32}, {"F16", DT_F16}, {"BF16", DT_BF16}, {"F64", DT_F64}, {"I8", DT_I8},   {"I16", DT_I16},
    {"I32", DT_I32}, {"I64", DT_I64}, {"U8", DT_U8},     {"U16", DT_U16}, {"U32", DT_U32}, {"U64", DT_U64},
};

const char *safetensors_dtype_name(enum dtype dtype) {
    for (size_t i = 0; i < COUNT_OF(dtype_names); i++)
        if (dtype_names[i].dtype == dtype) return dtype_names[i].name;
    return NULL;
}

static int read_dtype(const cJSON *entry, struct raw_tensor *t, struct err *e) {
    const char *name;
    int rc = json_get_str(entry, "dtype", &name, e);
    if (rc) return rc;
    for (size_t i = 0; i < COUNT_OF(dtype_names); i++)
        if (strcmp(dtype_names[i].name, name) == 0) {
            t->dtype = dtype_names[i].dtype;
            return 0;
        }
    return err_set(e, ERR_DATA, "dtype '%.32s' is not supported", name);
}

/* Reads a list of whole numbers; *n = its length, at most max. */
static int read_list(const cJSON *entry, const char *key, uint64_t *out, unsigned max, unsigned *n, struct err *e) {
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(entry, key);
    if (!cJSON_IsArray(list)) return err_set(e, ERR_DATA, "\"%s\" is not a list", key);
    *n = 0;
    for (const cJSON *x = list->child; x; x = x->next) {
        if (*n == max) return err_set(e, ERR_DATA, "\"%s\" has more than %u entries", key, max);
        double v = cJSON_IsNumber(x) ? x->valuedouble : -1;
        if (!(v >= 0 && v <= (double)JSON_MAX_INTEGER) || v != (double)(uint64_t)v)
            return err_set(e, ERR_DATA, "\"%s\" holds something that is not a whole number below 2^53", key);
        out[(*n)++] = (uint64_t)v;
    }
    return 0;
}

/* A tensor's byte range within the data section; its data pointer is set once all ranges are known to be valid. */
struct placed {
    struct raw_tensor *tensor;
    uint64_t begin, end;
};

static int read_entry(const cJSON *entry, struct raw_tensor *t, struct placed *at, struct err *e) {
    uint64_t offsets[2];
    unsigned n;
    int rc = read_dtype(entry, t, e);
    if (!rc) rc = read_list(entry, "shape", t->dims, TENSOR_MAX_RANK, &t->rank, e);
    if (!rc) rc = read_list(entry, "data_offsets", offsets, 2, &n, e);
    if (!rc && n != 2) rc = err_set(e, ERR_DATA, "\"data_offsets\" are not two numbers");
    if (!rc) rc = raw_tensor_size(t, &t->n_bytes, e);
    if (rc) return rc;
    if (offsets[1] < offsets[0] || offsets[1] - offsets[0] != t->n_bytes)
        return err_set(e, ERR_DATA, "dtype and shape need %llu bytes, \"data_offsets\" are %llu to %llu",
                       (unsigned long long)t->n_bytes, (unsigned long long)offsets[0], (unsigned long long)offsets[1]);
    *at = (struct placed){t, offsets[0], offsets[1]};
    return 0;
}

static int by_begin(const void *a, const void *b) {
    uint64_t x = ((const struct placed *)a)->begin, y = ((const struct placed *)b)->begin;
    return (x > y) - (x < y);
}

static int place_all(struct placed *at, size_t n, const unsigned char *data, uint64_t size, struct err *e) {
    uint64_t running = 0;
    if (n) qsort(at, n, sizeof *at, by_begin);
    for (size_t i = 0; i < n; i++) {
        const char *name = at[i].tensor->name;
        if (at[i].begin != running)
            return err_set(e, ERR_DATA,
                           "tensor '%s' begins at byte %llu of the data, expected %llu: a gap or an overlap", name,
                           (unsigned long long)at[i].begin, (unsigned long long)running);
        if (at[i].end > size)
            return err_set(e, ERR_DATA, "tensor '%s' ends at byte %llu of %llu bytes of data", name,
                           (unsigned long long)at[i].end, (unsigned long long)size);
        at[i].tensor->data = data + at[i].begin;
        running = at[i].end;
    }
    if (running != size)
        return err_set(e, ERR_DATA, "the tensors end at byte %llu of %llu bytes of data", (unsigned long long)running,
                       (unsigned long long)size);
    return 0;
}

static int check_metadata(const cJSON *metadata, struct err *e) {
    if (!cJSON_IsObject(metadata)) return err_set(e, ERR_DATA, "\"__metadata__\" is not an object");
    for (const cJSON *x = metadata->child; x; x = x->next)
        if (!cJSON_IsString(x)) return err_set(e, ERR_DATA, "\"__metadata__\": '%.100s' is not a string", x->string);
    return 0;
}

static int read_entries(struct raw_table *t, const cJSON *header, struct placed *at, size_t *n, struct arena *a,
                        struct err *e) {
    int rc = 0;
    for (const cJSON *x = header->child; x && !rc; x = x->next) {
        if (strcmp(x->string, "__metadata__") == 0) {
            rc = check_metadata(x, e);
            continue;
        }
        if (!name_valid(x->string, strlen(x->string)))
            return err_set(e, ERR_DATA, "a tensor name is not 1 to 1024 bytes without control characters");
        struct raw_tensor *r = &t->items[t->n];
        *r = (struct raw_tensor){.name = arena_strdup(a, x->string, e)};
        if (!r->name) return e->code;
        rc = read_entry(x, r, &at[*n], e);
        if (rc && rc != ERR_IO) err_prefix(e, "tensor '%s'", r->name);
        t->n++;
        ++*n;
    }
    return rc;
}

static int read_header(struct raw_table *t, const cJSON *header, const unsigned char *data, uint64_t size,
                       struct arena *a, struct err *e) {
    if (!cJSON_IsObject(header)) return err_set(e, ERR_DATA, "the header is not a JSON object");
    size_t n = 0, n_placed = 0;
    for (const cJSON *x = header->child; x; x = x->next) n++;
    int rc = raw_table_reserve(t, n, e);
    if (rc) return rc;
    struct placed *at = mem_array(n, sizeof *at, e);
    if (!at) return e->code;
    rc = read_entries(t, header, at, &n_placed, a, e);
    if (!rc) rc = place_all(at, n_placed, data, size, e);
    mem_free(at);
    return rc;
}

int safetensors_parse(struct raw_table *t, const unsigned char *data, uint64_t n, struct arena *a, struct err *e) {
    uint64_t header_size;
    if (n < sizeof header_size) return err_set(e, ERR_DATA, "a safetensors file of %llu bytes", (unsigned long long)n);
    memcpy(&header_size, data, sizeof header_size);
    if (header_size > SAFETENSORS_MAX_HEADER || header_size > n - sizeof header_size)
        return err_set(e, ERR_DATA,
                       "the header has %llu bytes (the file has %llu, %u are allowed): no safetensors file, or cut",
                       (unsigned long long)header_size, (unsigned long long)n, SAFETENSORS_MAX_HEADER);
    const unsigned char *body = data + sizeof header_size + header_size;
    cJSON *header = json_parse((const char *)data + sizeof header_size, header_size, e);
    if (!header) return err_prefix(e, "header");
    int rc = read_header(t, header, body, n - sizeof header_size - header_size, a, e);
    cJSON_Delete(header);
    return rc;
}

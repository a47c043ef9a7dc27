/*
 * NumPy's .npy, version 1.0: magic, version, u16 length of a Python dictionary padded so that the data begins at
 * a multiple of 64, then the data. NumPy has no bf16 or quantized types; these are written as f32, which
 * represents them exactly.
 */
#include <inttypes.h>
#include <unistd.h>

#include "lib/formats/formats_internal.h"

static const struct {
    enum dtype dtype;
    const char *descr;
} npy_types[] = {
    {DT_F32, "<f4"}, {DT_F16, "<f2"}, {DT_F64, "<f8"}, {DT_I8, "|i1"},  {DT_I16, "<i2"}, {DT_I32, "<i4"},
    {DT_I64, "<i8"}, {DT_U8, "|u1"},  {DT_U16, "<u2"}, {DT_U32, "<u4"}, {DT_U64, "<u8"},
};

static const char *npy_descr(enum dtype dtype) {
    for (size_t i = 0; i < COUNT_OF(npy_types); i++)
        if (npy_types[i].dtype == dtype) return npy_types[i].descr;
    return NULL;
}

/* A one-element tuple needs a trailing comma, so every dimension gets one. */
static int npy_header(const struct tensor_desc *d, enum dtype as, struct buf *out, struct err *e) {
    int rc = buf_append(out, "\x93NUMPY\x01\x00\x00\x00", 10, e);
    if (!rc) rc = buf_printf(out, e, "{'descr': '%s', 'fortran_order': False, 'shape': (", npy_descr(as));
    for (unsigned i = 0; i < d->rank && !rc; i++) rc = buf_printf(out, e, "%" PRIu64 ", ", d->dims[i]);
    if (!rc) rc = buf_printf(out, e, "), }");
    while (!rc && (out->len + 1) % 64) rc = buf_append(out, " ", 1, e);
    if (!rc) rc = buf_append(out, "\n", 1, e);
    if (rc) return rc;
    uint16_t n = (uint16_t)(out->len - 10); /* at most 8 dimensions of 20 digits */
    memcpy(out->data + 8, &n, sizeof n);
    return 0;
}

static int write_npy(struct export_source *x, size_t number, const struct tensor_desc *d, int fd, struct err *e) {
    struct buf header = {0};
    struct tensor_desc in_file = *d;
    if (!npy_descr(d->dtype)) in_file.dtype = DT_F32;
    const void *data;
    int rc = npy_header(d, in_file.dtype, &header, e);
    if (!rc) rc = export_data(x, number, d, in_file.dtype, &data, e);
    if (!rc) rc = write_all(fd, header.data, header.len, e);
    if (!rc) rc = write_all(fd, data, tensor_bytes(&in_file), e);
    buf_release(&header);
    return rc;
}

int npy_export(struct stream_map *m, const char *tensor, int fd, struct err *e) {
    struct export_source x = {.map = m};
    struct stream_map_entry entry;
    long i = stream_map_find(m, tensor);
    if (i < 0) return err_set(e, ERR_USAGE, "no tensor '%s' (rill ls lists them)", tensor);
    int rc = stream_map_entry(m, (size_t)i, &entry, e);
    if (!rc) rc = write_npy(&x, (size_t)i, &entry.desc, fd, e);
    export_release(&x);
    return rc;
}

/* A tensor's name must be a valid file name. Names of roles have no slash, but those in other streams may. */
static int write_file(struct export_source *x, size_t i, struct out_folder *f, struct err *e) {
    struct stream_map_entry entry;
    char name[TENSOR_MAX_NAME + 8];
    int fd, rc = stream_map_entry(x->map, i, &entry, e);
    if (rc) return rc;
    snprintf(name, sizeof name, "%s.npy", entry.desc.name);
    if (strchr(name, '/') || name[0] == '.' || strlen(name) > 255)
        return err_set(e, ERR_DATA, "tensor '%s': its name is not a file name (export it alone)", entry.desc.name);
    rc = out_folder_create(f, name, &fd, e);
    if (rc) return rc;
    rc = write_npy(x, i, &entry.desc, fd, e);
    if (rc) {
        close(fd);
        return rc;
    }
    return out_folder_close(f, name, fd, e);
}

int npy_export_all(struct stream_map *m, const char *folder, struct err *e) {
    struct export_source x = {.map = m};
    struct out_folder f = OUT_FOLDER_NONE;
    int rc = out_folder_begin(&f, folder, e);
    for (size_t i = 0; i < stream_map_count(m) && !rc; i++) rc = write_file(&x, i, &f, e);
    if (!rc) rc = out_folder_commit(&f, e);
    out_folder_release(&f);
    export_release(&x);
    return rc;
}

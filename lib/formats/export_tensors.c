/* Lays out the tensors of a foreign file: one for each slot, or several slots fused in one. */
#include "lib/formats/arch_internal.h"

static bool is_fused(const struct arch_place *p) {
    return (p->tensor->layout & (FUSED_ROWS | FUSED_HEADS)) != 0;
}

/* The tensor of this name in the list, which the slot joins; NULL: there is none yet. */
static struct out_tensor *joined(struct out_tensors *t, const struct arch_place *p) {
    for (size_t i = t->n; is_fused(p) && i-- > 0;)
        if (strcmp(t->items[i].name, p->name) == 0) return &t->items[i];
    return NULL;
}

/* Its type in the stream; biases share with others where their matrices do. */
static int stored_type(struct export_source *x, struct model_slot s, enum dtype *out, struct err *e) {
    struct stream_map_entry entry;
    size_t number;
    if (s.role >= ROLE_Q_BIAS && s.role <= ROLE_V_BIAS) s.role = s.role - ROLE_Q_BIAS + ROLE_Q;
    int rc = export_find(x, s, &entry, &number, e);
    *out = entry.desc.dtype;
    return rc;
}

/* Can all that share this tensor be written as one? */
static int check_alike(struct export_source *x, struct model_slot s, const struct arch_place *p, bool *alike,
                       struct err *e) {
    enum dtype first, other;
    int rc = stored_type(x, s, &first, e);
    *alike = true;
    for (size_t i = 0; i < p->table->n && !rc && *alike; i++) {
        const struct arch_tensor *t = &p->table->items[i];
        if (strcmp(t->name, p->tensor->name) != 0) continue;
        rc = stored_type(x, (struct model_slot){t->role, s.layer}, &other, e);
        *alike = other == first || (!dtype_info(other)->is_quantized && !dtype_info(first)->is_quantized);
    }
    return rc;
}

/* Where the slot goes: separate from others of another quantized type, if the format has a name for that. */
static int find_place(const struct out_tensors *t, struct export_source *x, struct model_slot s,
                      const struct arch_tensors *own, const struct arch_tensors *common, struct arch_place *p,
                      struct err *e) {
    char name[TENSOR_MAX_NAME + 1];
    struct arch_place apart;
    bool alike = true;
    if (!arch_place(own, common, &x->config, s, p))
        return err_set(e, ERR_DATA, "the format has no tensor for '%s' of architecture %s", model_slot_name(s, name),
                       x->config.arch);
    if (!is_fused(p) || t->by_value) return 0;
    int rc = check_alike(x, s, p, &alike, e);
    if (!rc && !alike && arch_place_apart(p, &x->config, s, &apart)) *p = apart;
    return rc;
}

static int add_slot(struct out_tensors *t, struct export_source *x, struct model_slot s, const struct arch_tensors *own,
                    const struct arch_tensors *common, struct err *e) {
    struct stream_map_entry entry;
    size_t number;
    char name[TENSOR_MAX_NAME + 1];
    struct arch_place place;
    int rc = export_find(x, s, &entry, &number, e);
    if (!rc) rc = find_place(t, x, s, own, common, &place, e);
    if (rc) return rc;
    enum dtype stored = entry.desc.dtype;
    struct out_tensor *to = joined(t, &place);
    if (!to) {
        to = &t->items[t->n++];
        *to = (struct out_tensor){.stored = stored, .kind = model_role_info(s.role)->kind};
        snprintf(to->name, sizeof to->name, "%s", place.name);
        to->rank = arch_foreign_shape(&x->config, s, &place, to->dims);
    }
    if (to->stored != stored) {
        /* Types that differ are converted to one that holds both. */
        if (!t->by_value && (dtype_info(to->stored)->is_quantized || dtype_info(stored)->is_quantized))
            return err_set(e, ERR_DATA,
                           "tensor '%s' is of type %s, but shares '%s' with others of type %s, which need one type "
                           "(quantize them alike)",
                           model_slot_name(s, name), dtype_info(stored)->name, place.name,
                           dtype_info(to->stored)->name);
        to->stored = DT_F32;
    }
    to->slots[to->n_slots] = s;
    to->places[to->n_slots++] = place;
    return 0;
}

/* A vector of zeros where the format wants one that this model has not. */
static void add_zeros(struct out_tensors *t, const struct export_source *x, struct model_slot s,
                      const struct arch_tensors *own) {
    struct arch_place place;
    if (!arch_place(own, NULL, &x->config, s, &place)) return;
    struct out_tensor *to = &t->items[t->n++];
    *to = (struct out_tensor){.stored = t->items[t->n - 2].stored, .kind = KIND_BIAS, .rank = 1};
    if (dtype_info(to->stored)->is_quantized) to->stored = DT_F32;
    snprintf(to->name, sizeof to->name, "%s", place.name);
    to->dims[0] = place.total;
}

int out_tensors_make(struct out_tensors *t, struct export_source *x, const struct arch_tensors *own,
                     const struct arch_tensors *common, bool (*zeros)(const struct model_config *, enum model_role),
                     struct err *e) {
    const struct model_config *c = &x->config;
    size_t n = model_slot_count(c);
    t->items = arena_array(&x->memory, n + (zeros ? c->n_layers : 0), sizeof *t->items, e);
    t->n = 0;
    int rc = t->items ? 0 : e->code;
    for (size_t i = 0; i < n && !rc; i++) {
        struct model_slot s = model_slot_at(c, i), next = {s.role + 1, s.layer};
        rc = add_slot(t, x, s, own, common, e);
        if (!rc && zeros && s.role + 1 < ROLE_COUNT && !model_has_role(c, next.role) && zeros(c, next.role))
            add_zeros(t, x, next, own);
    }
    return rc;
}

uint64_t out_tensor_bytes(const struct out_tensor *t, enum dtype as) {
    uint64_t cols = t->dims[t->rank - 1], rows = t->rank == 2 ? t->dims[0] : 1;
    return rows * dtype_row_bytes(as, cols);
}

/* Rows in the order of interleaved pairs. */
static int interleave(struct export_source *x, struct model_slot s, uint64_t rows, uint64_t row_bytes,
                      const void **data, struct err *e) {
    const struct model_layer *l = &x->config.layers[s.layer];
    uint32_t heads = model_role_info(s.role)->rows == AXIS_QUERY ? l->n_heads : l->n_kv_heads;
    x->altered.len = 0;
    int rc = buf_reserve(&x->altered, rows * row_bytes, e);
    if (rc) return rc;
    rows_interleave(x->altered.data, *data, rows, row_bytes, heads);
    *data = x->altered.data;
    return 0;
}

static int slot_data(struct export_source *x, const struct out_tensor *t, size_t i, enum dtype as, bool interleaved,
                     const void **data, struct tensor_desc *d, struct err *e) {
    struct stream_map_entry entry;
    size_t number;
    struct model_slot s = t->slots[i];
    int rc = export_find(x, s, &entry, &number, e);
    if (rc) return rc;
    *d = entry.desc;
    bool minus_one = t->places[i].tensor->layout & MINUS_ONE;
    rc = export_data(x, number, d, minus_one ? DT_F32 : as, data, e);
    if (rc) return rc;
    uint64_t cols = d->rank == 2 ? d->dims[1] : 1;
    if (interleaved && slot_is_rotary(s)) return interleave(x, s, d->dims[0], dtype_row_bytes(as, cols), data, e);
    if (!minus_one) return 0;
    uint64_t n = tensor_elems(d);
    x->altered.len = x->made.len = 0;
    rc = buf_reserve(&x->altered, n * sizeof(float), e);
    if (!rc) rc = buf_reserve(&x->made, n * dtype_info(as)->block_bytes, e);
    if (rc) return rc;
    float *values = (void *)x->altered.data;
    for (uint64_t k = 0; k < n; k++) values[k] = ((const float *)*data)[k] - 1;
    *data = values;
    if (as == DT_F32) return 0;
    *data = x->made.data;
    return tensor_from_f32_checked(as, values, x->made.data, n, NULL, e) ? err_prefix(e, "tensor '%s'", d->name) : 0;
}

int out_tensor_data(struct export_source *x, const struct out_tensor *t, enum dtype as, bool interleaved,
                    const void **data, struct err *e) {
    struct tensor_desc d;
    if (t->n_slots == 0) {
        x->fused.len = 0;
        int failed = buf_reserve(&x->fused, out_tensor_bytes(t, as), e);
        if (!failed) memset(x->fused.data, 0, out_tensor_bytes(t, as));
        *data = x->fused.data;
        return failed;
    }
    bool plain = t->n_slots == 1 && !(t->places[0].tensor->layout & (FUSED_ROWS | FUSED_HEADS | TRANSPOSED)) &&
                 !t->places[0].missing;
    if (plain) return slot_data(x, t, 0, as, interleaved, data, &d, e);
    if ((t->places[0].tensor->layout & TRANSPOSED) && dtype_info(as)->is_quantized)
        return err_set(e, ERR_DATA, "tensor '%s' is stored transposed there, which quantized weights cannot be",
                       t->name);
    x->fused.len = 0;
    int rc = buf_reserve(&x->fused, out_tensor_bytes(t, as), e);
    for (size_t i = 0; i < t->n_slots && !rc; i++) {
        const void *part;
        rc = slot_data(x, t, i, as, interleaved, &part, &d, e);
        if (!rc) arch_scatter(&t->places[i], as, d.dims[0], d.rank == 2 ? d.dims[1] : 1, part, x->fused.data);
    }
    *data = x->fused.data;
    return rc;
}

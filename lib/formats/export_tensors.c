/* Lists the tensors of a foreign file, each of one slot or of several fused slots, and makes their data. */
#include "lib/formats/arch_internal.h"

#define MOST_FUSED 3 /* roles in one tensor: q, k and v */

static bool is_fused(const struct arch_place *p) {
    return (p->tensor->layout & (FUSED_ROWS | FUSED_HEADS | STACKED)) != 0;
}

/* The listed tensor that the slot joins; NULL: none yet. */
static struct out_tensor *joined(struct out_tensors *t, const struct arch_place *p) {
    for (size_t i = t->n; is_fused(p) && i-- > 0;)
        if (strcmp(t->items[i].name, p->name) == 0) return &t->items[i];
    return NULL;
}

/* The slot's type in the stream. Biases are fused if their matrices are, so they take the matrix's type. */
static int stored_type(struct export_source *x, struct model_slot s, enum dtype *out, struct err *e) {
    struct stream_map_entry entry;
    size_t number;
    if (s.role >= ROLE_Q_BIAS && s.role <= ROLE_V_BIAS) s.role = s.role - ROLE_Q_BIAS + ROLE_Q;
    int rc = export_find(x, s, &entry, &number, e);
    *out = entry.desc.dtype;
    return rc;
}

/* Can all roles that share this tensor be written as one? */
static int check_alike(struct export_source *x, struct model_slot s, const struct arch_place *p, bool *alike,
                       struct err *e) {
    enum dtype first, other;
    int rc = stored_type(x, s, &first, e);
    *alike = true;
    for (size_t i = 0; i < p->table->n && !rc && *alike; i++) {
        const struct arch_tensor *t = &p->table->items[i];
        if (strcmp(t->name, p->tensor->name) != 0) continue;
        rc = stored_type(x, (struct model_slot){.role = t->role, .layer = s.layer}, &other, e);
        *alike = other == first || (!dtype_info(other)->is_quantized && !dtype_info(first)->is_quantized);
    }
    return rc;
}

/* Finds the place of the slot: apart from slots of other quantized types, if the format has a name for that. */
static int find_place(const struct out_tensors *t, struct export_source *x, struct model_slot s,
                      const struct arch_tensors *own, const struct arch_tensors *common, struct arch_place *p,
                      struct err *e) {
    char name[TENSOR_MAX_NAME + 1];
    struct arch_place apart;
    bool alike = true;
    if (!arch_place(own, common, &x->config, s, p))
        return err_set(e, ERR_DATA, "the format has no tensor for '%s' of architecture %s", model_slot_name(s, name),
                       x->config.arch);
    if (!x->map || !is_fused(p) || t->by_value || p->tensor->layout & STACKED) return 0;
    int rc = check_alike(x, s, p, &alike, e);
    if (!rc && !alike && arch_place_apart(p, &x->config, s, &apart)) *p = apart;
    return rc;
}

/* Adds a tensor to the list, with space for all slots that may join it. */
static struct out_tensor *begin(struct out_tensors *t, struct export_source *x, struct model_slot s,
                                const struct arch_place *place, struct err *e) {
    struct out_tensor *to = &t->items[t->n++];
    size_t most = is_fused(place) ? MOST_FUSED * (place->stacked ? place->stacked : 1) : 1;
    *to = (struct out_tensor){.kind = model_role_info(s.role)->kind};
    to->slots = arena_array(&x->memory, most, sizeof *to->slots, e);
    to->places = arena_array(&x->memory, most, sizeof *to->places, e);
    snprintf(to->name, sizeof to->name, "%s", place->name);
    to->rank = arch_foreign_shape(&x->config, s, place, to->dims);
    return to->slots && to->places ? to : NULL;
}

/* Different types are converted to f32, which holds all. */
int out_tensor_join(const struct out_tensors *t, struct out_tensor *to, size_t part, enum dtype stored, struct err *e) {
    char name[TENSOR_MAX_NAME + 1];
    if (to->stored == stored) return 0;
    if (!t->by_value && (dtype_info(to->stored)->is_quantized || dtype_info(stored)->is_quantized))
        return err_set(e, ERR_DATA,
                       "tensor '%s' is of type %s, but shares '%s' with others of type %s, which need one type "
                       "(quantize them alike)",
                       model_slot_name(to->slots[part], name), dtype_info(stored)->name, to->name,
                       dtype_info(to->stored)->name);
    to->stored = DT_F32;
    return 0;
}

static int add_slot(struct out_tensors *t, struct export_source *x, struct model_slot s, const struct arch_tensors *own,
                    const struct arch_tensors *common, struct err *e) {
    struct stream_map_entry entry;
    size_t number;
    struct arch_place place;
    enum dtype stored = DT_F32; /* not known yet */
    int rc = x->map ? export_find(x, s, &entry, &number, e) : 0;
    if (!rc) rc = find_place(t, x, s, own, common, &place, e);
    if (rc) return rc;
    if (x->map) stored = entry.desc.dtype;
    struct out_tensor *to = joined(t, &place);
    if (!to) {
        to = begin(t, x, s, &place, e);
        if (!to) return e->code;
        to->stored = stored;
    }
    to->slots[to->n_slots] = s;
    to->places[to->n_slots++] = place;
    return out_tensor_join(t, to, to->n_slots - 1, stored, e);
}

void out_tensor_like_last(struct out_tensors *t, size_t i) {
    enum dtype last = t->items[i - 1].stored;
    t->items[i].stored = dtype_info(last)->is_quantized ? DT_F32 : last;
}

/* Adds a vector of zeros that the format requires and the model lacks. */
static void add_zeros(struct out_tensors *t, const struct export_source *x, struct model_slot s,
                      const struct arch_tensors *own) {
    struct arch_place place;
    if (!arch_place(own, NULL, &x->config, s, &place)) return;
    struct out_tensor *to = &t->items[t->n++];
    *to = (struct out_tensor){.kind = KIND_BIAS, .rank = 1};
    out_tensor_like_last(t, t->n - 1);
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
        struct model_slot s = model_slot_at(c, i), next = {s.role + 1, s.layer, 0};
        rc = add_slot(t, x, s, own, common, e);
        if (!rc && zeros && s.role + 1 < ROLE_COUNT && !model_has_role(c, next.role) && zeros(c, next.role))
            add_zeros(t, x, next, own);
    }
    return rc;
}

uint64_t out_tensor_bytes(const struct out_tensor *t, enum dtype as) {
    uint64_t cols = t->dims[t->rank - 1], rows = 1;
    for (unsigned i = 0; i + 1 < t->rank; i++) rows *= t->dims[i];
    return rows * dtype_row_bytes(as, cols);
}

/* Reorders rows into interleaved pairs. */
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

/* The tensor as it is in the stream. */
static int stored_data(struct export_source *x, struct model_slot s, struct tensor_desc *d, const void **data,
                       struct err *e) {
    struct stream_map_entry entry;
    size_t number, i = 0;
    if (x->map) {
        int rc = export_find(x, s, &entry, &number, e);
        *d = entry.desc;
        return rc ? rc : stream_map_data(x->map, number, &x->stored, data, e);
    }
    /* always found: the caller holds all parts of a tensor */
    while (!x->held[i].data || x->held[i].slot.role != s.role || x->held[i].slot.layer != s.layer ||
           x->held[i].slot.expert != s.expert)
        i++;
    *d = x->held[i].desc;
    *data = x->held[i].data;
    return 0;
}

int out_tensor_part(struct export_source *x, const struct out_tensor *t, size_t i, enum dtype as, bool interleaved,
                    const void **data, struct tensor_desc *d, struct err *e) {
    struct model_slot s = t->slots[i];
    bool minus_one = t->places[i].tensor->layout & MINUS_ONE;
    int rc = stored_data(x, s, d, data, e);
    if (!rc) rc = export_convert(x, d, minus_one ? DT_F32 : as, data, e);
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
    bool plain = t->n_slots == 1 && !is_fused(&t->places[0]) && !(t->places[0].tensor->layout & TRANSPOSED) &&
                 !t->places[0].missing;
    if (plain) return out_tensor_part(x, t, 0, as, interleaved, data, &d, e);
    if ((t->places[0].tensor->layout & TRANSPOSED) && dtype_info(as)->is_quantized)
        return err_set(e, ERR_DATA, "tensor '%s' is stored transposed there, which quantized weights cannot be",
                       t->name);
    x->fused.len = 0;
    int rc = buf_reserve(&x->fused, out_tensor_bytes(t, as), e);
    for (size_t i = 0; i < t->n_slots && !rc; i++) {
        const void *part;
        rc = out_tensor_part(x, t, i, as, interleaved, &part, &d, e);
        if (!rc) arch_scatter(&t->places[i], as, d.dims[0], d.rank == 2 ? d.dims[1] : 1, part, x->fused.data);
    }
    *data = x->fused.data;
    return rc;
}

bool out_tensors_follow_types(const struct out_tensors *t, const struct export_source *x) {
    struct arch_place apart;
    for (size_t i = 0; i < t->n && !t->by_value; i++) {
        const struct out_tensor *o = &t->items[i];
        if (o->n_slots && is_fused(&o->places[0]) && !(o->places[0].tensor->layout & STACKED) &&
            arch_place_apart(&o->places[0], &x->config, o->slots[0], &apart))
            return true;
    }
    return false;
}

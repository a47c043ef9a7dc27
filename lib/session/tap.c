/* Taps: parses which points of a teacher become fields, selects fields to pass on, and collects rows of fields while a
 * block of sequences goes through the teacher. */
#include <fnmatch.h>
#include <string.h>

#include "lib/session/session.h"

#define WEIGHT_FLOATS ((size_t)1 << 22) /* attention weights computed at a time, unless one position has more */

/* ---- names ------------------------------------------------------------------------------------------------------- */

static const struct point {
    const char *name;
    enum model_point point; /* to observe; for attention that of the queries */
    bool in_layer;
    enum knowledge_per per;
    bool alone; /* a position's row is used only for that position; q, k, v are also used by others that attend to it */
} points[] = {
    {"embed", POINT_EMBED, false, PER_POSITION, true},
    {"hidden", POINT_LAYER, true, PER_POSITION, true},
    {"attention", POINT_Q, true, PER_PAIR, true},
    {"q", POINT_Q, true, PER_POSITION, false},
    {"k", POINT_K, true, PER_POSITION, false},
    {"v", POINT_V, true, PER_POSITION, false},
    {"output", POINT_HEAD_IN, false, PER_POSITION, true},
};

static const struct point *point_named(const char *name, size_t len) {
    for (size_t i = 0; i < COUNT_OF(points); i++)
        if (strlen(points[i].name) == len && !memcmp(points[i].name, name, len)) return &points[i];
    return NULL;
}

static bool parse_dtype(const char *name, enum dtype *dtype) {
    static const struct {
        const char *name;
        enum dtype dtype;
    } all[] = {{"bf16", DT_BF16}, {"int8", DT_I8}, {"f32", DT_F32}};
    for (size_t i = 0; i < COUNT_OF(all); i++)
        if (!strcmp(all[i].name, name)) {
            *dtype = all[i].dtype;
            return true;
        }
    return false;
}

int session_field_dtype(const char *name, enum dtype *out, struct err *e) {
    return parse_dtype(name, out) ? 0
                                  : err_set(e, ERR_USAGE, "a field of type \"%s\": expected bf16, int8 or f32", name);
}

/* Adds one field, of a layer or of a point outside layers. */
static int add_field(const struct point *p, const struct model_config *c, uint32_t layer, enum dtype dtype,
                     bool counted, struct knowledge_format *f, struct err *e) {
    struct knowledge_field field = {.layer = p->in_layer ? layer : KNOWLEDGE_NO_LAYER,
                                    .per = p->per,
                                    .dtype = dtype,
                                    .sampled = f->tap_positions != 0,
                                    .counted = counted && p->alone && !f->tap_positions && f->target != TARGET_SEQUENCE,
                                    .causal = p->per == PER_PAIR && !c->bidirectional};
    memcpy(field.point, p->name, strlen(p->name) + 1);
    if (p->point == POINT_Q) field.heads = c->layers[layer].n_heads;
    if (p->point == POINT_K || p->point == POINT_V) field.heads = c->layers[layer].n_kv_heads;
    field.cols = p->per == PER_PAIR ? field.heads : (uint32_t)model_point_cols(c, p->point, p->in_layer ? layer : 0);
    if (!field.cols) return err_set(e, ERR_DATA, "--tap %s: layer %u of this model has no such point", p->name, layer);
    return knowledge_field_add(f, &field, e);
}

/* Adds a field for each layer of "3,5-7", "all" or "last"; `text` has length len. */
static int add_layers(const char *text, size_t len, const struct point *p, const struct model_config *c,
                      enum dtype dtype, bool counted, struct knowledge_format *f, struct err *e) {
    char copy[256], *save = NULL;
    uint64_t first = c->n_layers - 1, last = first;
    if (len >= sizeof copy) return err_set(e, ERR_USAGE, "--tap %s: a list of layers too long", p->name);
    memcpy(copy, text, len);
    copy[len] = 0;
    for (char *item = strtok_r(copy, ",", &save); item; item = strtok_r(NULL, ",", &save)) {
        char *dash = strchr(item, '-');
        if (!strcmp(item, "all"))
            first = 0, last = c->n_layers - 1;
        else if (!strcmp(item, "last"))
            first = last = c->n_layers - 1;
        else {
            if (dash) *dash++ = 0;
            if (!parse_u64(item, &first) || !parse_u64(dash ? dash : item, &last) || first > last)
                return err_set(e, ERR_USAGE, "--tap %s: \"%.*s\" is not a list of layers", p->name, (int)len, text);
            if (last >= c->n_layers)
                return err_set(e, ERR_USAGE, "--tap %s: layer %llu of a teacher of %u, which are numbered from 0",
                               p->name, (unsigned long long)last, c->n_layers);
        }
        for (uint64_t l = first; l <= last; l++)
            if (add_field(p, c, (uint32_t)l, dtype, counted, f, e)) return e->code;
    }
    return 0;
}

int session_tap_parse(const char *text, const struct model_config *c, bool counted, struct knowledge_format *f,
                      struct err *e) {
    static const char dtype_key[] = "dtype=";
    const char *layers = NULL;
    size_t len = strcspn(text, ":"), layers_len = 0;
    const struct point *p = point_named(text, len);
    enum dtype dtype = DT_BF16;
    if (!p)
        return err_set(e, ERR_USAGE, "--tap %s: expected embed, hidden, attention, q, k, v or output, and layers",
                       text);
    for (const char *s = text + len; *s;) {
        size_t n = strcspn(++s, ":");
        if (!strncmp(s, dtype_key, sizeof dtype_key - 1)) {
            char name[8] = "";
            if (n - (sizeof dtype_key - 1) < sizeof name)
                memcpy(name, s + sizeof dtype_key - 1, n + 1 - sizeof dtype_key);
            if (!parse_dtype(name, &dtype)) return err_set(e, ERR_USAGE, "--tap %s: dtype is bf16, int8 or f32", text);
        } else if (layers || !n || !p->in_layer)
            return err_set(e, ERR_USAGE, "--tap %s: expected POINT%s[:dtype=TYPE]", text,
                           p->in_layer ? "[:LAYERS]" : "");
        else
            layers = s, layers_len = n;
        s += n;
    }
    if (!p->in_layer) return add_field(p, c, 0, dtype, counted, f, e);
    return add_layers(layers ? layers : "last", layers ? layers_len : 4, p, c, dtype, counted, f, e);
}

/* ---- selecting fields to pass on ------------------------------------------------------------------------------- */

/* A pattern that matches nothing is an error. */
static int drop_fields(struct knowledge_format *f, const char *pattern, struct err *e) {
    uint32_t kept = 0;
    bool response = f->encoding && !fnmatch(pattern, "response", 0);
    for (uint32_t i = 0; i < f->n_fields; i++)
        if (fnmatch(pattern, f->fields[i].name, 0) != 0) f->fields[kept++] = f->fields[i];
    if (kept == f->n_fields && !response) return err_set(e, ERR_USAGE, "--drop %s: there is no such field", pattern);
    f->n_fields = kept;
    if (response) f->encoding = KNOW_NONE;
    return 0;
}

int session_choose_fields(const struct cli_list *drop, const char *field_dtype, struct knowledge_format *f,
                          struct err *e) {
    enum dtype dtype = DT_BF16;
    bool sampled = false;
    if (field_dtype && !f->n_fields) return err_set(e, ERR_USAGE, "--field-dtype: nothing was tapped");
    for (size_t i = 0; i < drop->n; i++)
        if (drop_fields(f, drop->items[i], e)) return e->code;
    if (field_dtype && session_field_dtype(field_dtype, &dtype, e)) return e->code;
    for (uint32_t i = 0; i < f->n_fields; i++) {
        if (field_dtype) f->fields[i].dtype = dtype;
        sampled |= f->fields[i].sampled;
    }
    if (!sampled) f->tap_positions = 0;
    return 0;
}

/* ---- collecting -------------------------------------------------------------------------------------------------- */

/* A field, and how far into the block its rows have been collected. */
struct tapped {
    const struct point *point;
    uint32_t layer;
    size_t seq, at; /* index of the next sequence, and of its first position in the block */
    struct knowledge_part part;
    struct buf queries; /* for attention, until the keys arrive */
};

struct session_taps {
    const struct model_config *c;
    const struct knowledge_format *f;
    uint64_t seed;
    const uint32_t *lengths;
    size_t n_seqs;
    const uint8_t *counted; /* [positions of the block]; NULL: all are counted */
    struct buf sampled;     /* u8, [positions of the block] */
    struct buf weights;
    struct tapped fields[KNOWLEDGE_MAX_FIELDS];
};

int session_taps_new(struct session_taps **out, const struct model_config *c, const struct knowledge_format *f,
                     uint64_t seed, struct err *e) {
    struct session_taps *t = mem_zalloc(sizeof *t, e);
    if (!t) return e->code;
    t->c = c;
    t->f = f;
    t->seed = seed;
    for (uint32_t i = 0; i < f->n_fields; i++) {
        t->fields[i].point = point_named(f->fields[i].point, strlen(f->fields[i].point));
        t->fields[i].layer = f->fields[i].layer == KNOWLEDGE_NO_LAYER ? 0 : f->fields[i].layer;
    }
    *out = t;
    return 0;
}

void session_taps_free(struct session_taps *t) {
    if (!t) return;
    for (uint32_t i = 0; i < t->f->n_fields; i++) {
        knowledge_part_release(&t->fields[i].part);
        buf_release(&t->fields[i].queries);
    }
    buf_release(&t->sampled);
    buf_release(&t->weights);
    mem_free(t);
}

int session_taps_begin(struct session_taps *t, const struct session_tap_block *b, struct err *e) {
    uint8_t *flags;
    size_t at = 0;
    t->lengths = b->lengths;
    t->n_seqs = b->n_seqs;
    t->counted = b->counted;
    t->sampled.len = 0;
    for (uint32_t i = 0; i < t->f->n_fields; i++) {
        struct tapped *x = &t->fields[i];
        x->seq = x->at = x->part.values.len = x->part.scales.len = 0;
    }
    for (size_t i = 0; t->f->tap_positions && i < b->n_seqs; at += b->lengths[i++]) {
        if (buf_reserve(&t->sampled, b->lengths[i], e)) return e->code;
        flags = t->sampled.data + t->sampled.len;
        knowledge_sample_positions(t->seed, b->seqs[i], t->f->tap_positions, b->lengths[i],
                                   b->counted ? b->counted + at : NULL, flags);
        t->sampled.len += b->lengths[i];
    }
    return 0;
}

const uint8_t *session_taps_sampled(const struct session_taps *t) {
    return t->f->tap_positions ? t->sampled.data : NULL;
}

/* Returns which positions of the block have rows of the field; NULL: all. */
static const uint8_t *rows_of(const struct session_taps *t, const struct knowledge_field *field) {
    return field->sampled ? t->sampled.data : field->counted ? t->counted : NULL;
}

/* Advances by whole sequences, which have `rows` positions in total. */
static void advance(struct session_taps *t, struct tapped *x, size_t rows) {
    for (size_t n = 0; n < rows && x->seq < t->n_seqs; x->seq++) n += t->lengths[x->seq];
    x->at += rows;
}

static int see_rows(struct session_taps *t, uint32_t i, const float *x, size_t rows, size_t cols, struct err *e) {
    const struct knowledge_field *field = &t->f->fields[i];
    struct tapped *to = &t->fields[i];
    const uint8_t *some = rows_of(t, field);
    int rc = 0;
    if (!some) rc = knowledge_part_add(&to->part, field, rows, cols, x, e);
    for (size_t r = 0; some && !rc && r < rows; r++)
        if (some[to->at + r]) rc = knowledge_part_add(&to->part, field, 1, cols, x + r * cols, e);
    advance(t, to, rows);
    return rc;
}

/* Keeps the weights of positions [first, first + n) of a sequence that have rows, each cut to its own length. */
static int keep_weights(struct session_taps *t, uint32_t i, size_t first, size_t n, size_t length, struct err *e) {
    const struct knowledge_field *field = &t->f->fields[i];
    const float *p = (const float *)t->weights.data;
    struct tapped *to = &t->fields[i];
    const uint8_t *some = rows_of(t, field);
    for (size_t r = 0; r < n; r++, p += field->heads * length) {
        if (some && !some[to->at + first + r]) continue;
        size_t seen = field->causal ? first + r + 1 : length;
        for (uint32_t h = 0; h < field->heads; h++)
            if (knowledge_part_add(&to->part, field, 1, seen, p + h * length, e)) return e->code;
    }
    return 0;
}

static int see_keys(struct session_taps *t, uint32_t i, const float *k, size_t rows, size_t cols, struct err *e) {
    struct tapped *to = &t->fields[i];
    struct kernel_attention shape = model_attention_shape(t->c, to->layer);
    const float *q = (const float *)to->queries.data;
    for (size_t done = 0; done < rows;) {
        size_t length = t->lengths[to->seq], row = shape.n_heads * length;
        size_t step = WEIGHT_FLOATS / row ? WEIGHT_FLOATS / row : 1;
        uint32_t starts[2] = {0, (uint32_t)length};
        shape.n_seqs = 1;
        shape.starts = starts;
        t->weights.len = 0;
        if (step > length) step = length;
        if (buf_reserve(&t->weights, step * row * sizeof(float), e)) return e->code;
        for (size_t first = 0; first < length; first += step) {
            size_t n = length - first < step ? length - first : step;
            kernel_attention_weights(&shape, 0, first, n, kernel_f32((float *)t->weights.data),
                                     kernel_f32(q + done * shape.n_heads * shape.head_dim),
                                     kernel_f32(k + done * cols));
            if (keep_weights(t, i, first, n, length, e)) return e->code;
        }
        done += length;
        advance(t, to, length);
    }
    return 0;
}

static int keep_queries(struct tapped *x, const float *q, size_t n, struct err *e) {
    x->queries.len = 0;
    return buf_append(&x->queries, q, n * sizeof *q, e);
}

int session_taps_see(void *ctx, const struct model_seen *seen, struct err *e) {
    struct session_taps *t = ctx;
    const float *x = NULL; /* widened once for all fields */
    for (uint32_t i = 0; i < t->f->n_fields; i++) {
        struct tapped *to = &t->fields[i];
        bool pairs = to->point->per == PER_PAIR;
        bool queries = pairs && seen->point == POINT_Q, keys = pairs && seen->point == POINT_K;
        bool rows = !pairs && seen->point == to->point->point;
        if (to->layer != seen->layer || !(queries || keys || rows)) continue;
        int rc = x ? 0 : model_seen_f32(seen, &x, e);
        if (!rc && queries) rc = keep_queries(to, x, seen->rows * seen->cols, e);
        if (!rc && keys) rc = see_keys(t, i, x, seen->rows, seen->cols, e);
        if (!rc && rows) rc = see_rows(t, i, x, seen->rows, seen->cols, e);
        if (rc) return rc;
    }
    return 0;
}

int session_taps_give(struct session_taps *t, struct knowledge_encoder *k, struct err *e) {
    for (uint32_t i = 0; i < t->f->n_fields; i++) {
        struct knowledge_part *part = &t->fields[i].part;
        if (knowledge_encoder_field(k, i, part, e)) return e->code;
        part->values.len = part->scales.len = 0;
    }
    return 0;
}

/*
 * Reads a SentencePiece model, tokenizer.model or spiece.model: the protocol buffer of sentencepiece_model.proto.
 * Settings that Rill does not implement are refused by name.
 */
#include "lib/formats/formats_internal.h"

/* ---- protocol buffers: a sequence of tags and values (protobuf.dev, "Encoding") ---- */

enum wire { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

struct proto {
    const unsigned char *at, *end;
};
struct field {
    uint32_t number;
    enum wire wire;
    uint64_t value;     /* of WIRE_VARINT, WIRE_64, WIRE_32 */
    struct proto bytes; /* of WIRE_BYTES */
};

static bool varint(struct proto *p, uint64_t *out) {
    *out = 0;
    for (unsigned shift = 0; shift < 64 && p->at < p->end; shift += 7) {
        unsigned char byte = *p->at++;
        *out |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) return shift < 63 || byte < 2;
    }
    return false;
}

static bool fixed(struct proto *p, unsigned n, uint64_t *out) {
    *out = 0;
    if ((size_t)(p->end - p->at) < n) return false;
    for (unsigned i = 0; i < n; i++) *out |= (uint64_t)*p->at++ << 8 * i;
    return true;
}

static bool take(struct proto *p, uint64_t n, struct proto *out) {
    if (n > (uint64_t)(p->end - p->at)) return false;
    *out = (struct proto){p->at, p->at + n};
    p->at += n;
    return true;
}

/* Reads the next field; *more is false at the end. */
static int next_field(struct proto *p, struct field *f, bool *more, struct err *e) {
    uint64_t tag, n;
    *more = p->at < p->end;
    if (!*more) return 0;
    bool ok = varint(p, &tag) && tag >> 3 && tag >> 3 < (1u << 29);
    if (ok) *f = (struct field){.number = (uint32_t)(tag >> 3), .wire = (enum wire)(tag & 7)};
    if (ok && f->wire == WIRE_VARINT) ok = varint(p, &f->value);
    if (ok && f->wire == WIRE_64) ok = fixed(p, 8, &f->value);
    if (ok && f->wire == WIRE_32) ok = fixed(p, 4, &f->value);
    if (ok && f->wire == WIRE_BYTES) ok = varint(p, &n) && take(p, n, &f->bytes);
    if (ok && (f->wire == 3 || f->wire == 4 || f->wire > WIRE_32)) ok = false;
    return ok ? 0 : err_set(e, ERR_DATA, "not a SentencePiece model, or a cut one");
}

static int expect(const struct field *f, enum wire wire, const char *name, struct err *e) {
    return f->wire == wire ? 0 : err_set(e, ERR_DATA, "field \"%s\" has another type than SentencePiece's", name);
}

/* ---- settings ---- */

enum piece_type { PIECE_NORMAL = 1, PIECE_UNKNOWN, PIECE_CONTROL, PIECE_USER_DEFINED, PIECE_UNUSED, PIECE_BYTE };
enum model_type { MODEL_UNIGRAM = 1, MODEL_BPE = 2 };

struct spm_settings {
    uint64_t model_type;
    bool byte_fallback, suffix; /* from trainer_spec */
    int64_t unk, bos, eos, pad;
    struct proto charsmap; /* from normalizer_spec */
    bool dummy_prefix, remove_extra, escape;
    bool denormalizes;
    bool trainer, normalizer; /* present; both follow the pieces, so a truncated file lacks them */
};

static int read_trainer(struct proto p, struct spm_settings *s, struct err *e) {
    struct field f;
    bool more;
    int rc;
    while ((rc = next_field(&p, &f, &more, e)) == 0 && more) {
        const struct {
            uint32_t number;
            const char *name;
            int64_t *id;
            bool *on;
        } known[] = {{24, "treat_whitespace_as_suffix", NULL, &s->suffix},
                     {35, "byte_fallback", NULL, &s->byte_fallback},
                     {40, "unk_id", &s->unk, NULL},
                     {41, "bos_id", &s->bos, NULL},
                     {42, "eos_id", &s->eos, NULL},
                     {43, "pad_id", &s->pad, NULL}};
        for (size_t i = 0; i < COUNT_OF(known) && !rc; i++) {
            if (f.number != known[i].number) continue;
            rc = expect(&f, WIRE_VARINT, known[i].name, e);
            if (known[i].id)
                *known[i].id = (int32_t)(uint32_t)f.value;
            else
                *known[i].on = f.value;
        }
        if (f.number == 3 && !rc) rc = expect(&f, WIRE_VARINT, "model_type", e);
        if (f.number == 3) s->model_type = f.value;
        if (rc) return rc;
    }
    return rc;
}

static int read_normalizer(struct proto p, struct spm_settings *s, struct err *e) {
    struct field f;
    bool more;
    int rc;
    while ((rc = next_field(&p, &f, &more, e)) == 0 && more) {
        bool *on = f.number == 3   ? &s->dummy_prefix
                   : f.number == 4 ? &s->remove_extra
                   : f.number == 5 ? &s->escape
                                   : NULL;
        if (on) rc = expect(&f, WIRE_VARINT, "normalizer_spec", e);
        if (on) *on = f.value;
        if (f.number == 2) {
            rc = expect(&f, WIRE_BYTES, "precompiled_charsmap", e);
            s->charsmap = f.bytes;
        }
        if (rc) return rc;
    }
    return rc;
}

static int read_denormalizer(struct proto p, struct spm_settings *s, struct err *e) {
    struct spm_settings d = {0};
    int rc = read_normalizer(p, &d, e);
    s->denormalizes = d.charsmap.at != d.charsmap.end;
    return rc;
}

static int check_settings(const struct spm_settings *s, struct err *e) {
    if (!s->trainer || !s->normalizer)
        return err_set(e, ERR_DATA, "\"%s\" is missing: not a SentencePiece model, or a cut one",
                       s->trainer ? "normalizer_spec" : "trainer_spec");
    if (s->model_type != MODEL_UNIGRAM && s->model_type != MODEL_BPE)
        return err_set(e, ERR_DATA, "\"model_type\" %llu is not supported (1, UNIGRAM, and 2, BPE, are)",
                       (unsigned long long)s->model_type);
    if (s->suffix) return err_set(e, ERR_DATA, "\"treat_whitespace_as_suffix\" is not supported");
    if (!s->escape) return err_set(e, ERR_DATA, "\"escape_whitespaces\" false is not supported");
    return s->denormalizes ? err_set(e, ERR_DATA, "\"denormalizer_spec\" is not supported") : 0;
}

/* ---- pieces ---- */

static int read_piece(struct vocab *spec, struct proto p, uint32_t id, struct spm_settings *s, struct err *e) {
    struct field f;
    struct proto text = {0};
    uint64_t type = PIECE_NORMAL;
    uint32_t bits = 0;
    bool more;
    int rc;
    while ((rc = next_field(&p, &f, &more, e)) == 0 && more) {
        if (f.number == 1) {
            rc = expect(&f, WIRE_BYTES, "piece", e);
            text = f.bytes;
        } else if (f.number == 2) {
            rc = expect(&f, WIRE_32, "score", e);
            bits = (uint32_t)f.value;
        } else if (f.number == 3) {
            rc = expect(&f, WIRE_VARINT, "type", e);
            type = f.value;
        }
        if (rc) return rc;
    }
    if (rc) return rc;
    if (type < PIECE_NORMAL || type > PIECE_BYTE)
        return err_set(e, ERR_DATA, "type %llu is not known", (unsigned long long)type);
    if (type == PIECE_UNUSED) return 0;
    static const uint32_t flags[] = {[PIECE_UNKNOWN] = TOKEN_SPECIAL | TOKEN_ADDED,
                                     [PIECE_CONTROL] = TOKEN_SPECIAL | TOKEN_ADDED,
                                     [PIECE_USER_DEFINED] = TOKEN_ADDED | TOKEN_NORMALIZED,
                                     [PIECE_BYTE] = 0};
    if (!utf8_valid((const char *)text.at, (size_t)(text.end - text.at)))
        return err_set(e, ERR_DATA, "the piece is not UTF-8");
    rc = draft_piece(spec, id, text.at, (size_t)(text.end - text.at), flags[type], e);
    memcpy(&spec->tokens[id].score, &bits, sizeof bits);
    if (type == PIECE_UNKNOWN && s->unk < 0) s->unk = id;
    if (type == PIECE_BYTE) s->byte_fallback = true;
    return rc;
}

static int read_fields(struct vocab *spec, struct proto p, bool pieces, struct spm_settings *s, uint64_t *n,
                       struct err *e) {
    struct field f;
    bool more;
    int rc;
    *n = 0;
    while ((rc = next_field(&p, &f, &more, e)) == 0 && more) {
        if (f.number < 1 || f.number > 5 || f.number == 4) continue;
        rc = expect(&f, WIRE_BYTES, "model", e);
        if (!rc && f.number == 1 && pieces) {
            rc = read_piece(spec, f.bytes, (uint32_t)*n, s, e);
            if (rc) return err_prefix(e, "piece %llu", (unsigned long long)*n);
        }
        if (f.number == 1) ++*n;
        if (f.number == 2) s->trainer = true;
        if (f.number == 3) s->normalizer = true;
        if (!rc && !pieces && f.number == 2) rc = read_trainer(f.bytes, s, e);
        if (!rc && !pieces && f.number == 3) rc = read_normalizer(f.bytes, s, e);
        if (!rc && !pieces && f.number == 5) rc = read_denormalizer(f.bytes, s, e);
        if (rc) return rc;
    }
    return rc;
}

/* ---- the model ---- */

int spm_steps(struct vocab *spec, struct span charsmap, bool remove_extra, bool prefix, struct err *e) {
    static const struct span space = {" ", 1}, meta = {METASPACE_TEXT, sizeof METASPACE_TEXT - 1}, none = {0};
    bool first =
        spec->model_flags & MODEL_REPLACE_BAD; /* sentencepiece adds the prefix once, llama.cpp to every fragment */
    int rc = charsmap.n ? draft_step(spec, NORM_CHARSMAP, 1, charsmap, none, e) : 0;
    if (!rc && remove_extra) rc = draft_step(spec, NORM_SPACES, 0, none, none, e);
    if (!rc && prefix) rc = draft_step(spec, NORM_PREPEND, first, space, none, e);
    if (!rc) rc = draft_step(spec, NORM_REPLACE, 0, space, meta, e);
    if (!rc) rc = draft_step(spec, DECODE_REPLACE, 0, meta, space, e);
    if (!rc && (spec->model_flags & MODEL_BYTE_FALLBACK)) rc = draft_step(spec, DECODE_BYTES, 0, none, none, e);
    if (!rc) rc = draft_step(spec, DECODE_FUSE, 0, none, none, e);
    if (!rc && (prefix || remove_extra)) rc = draft_step(spec, DECODE_STRIP, remove_extra ? 64 : 1, space, none, e);
    return rc;
}

static uint32_t role(const struct vocab *spec, int64_t id) {
    return id >= 0 && id < spec->n_tokens && !(spec->tokens[id].flags & TOKEN_UNUSED) ? (uint32_t)id : TOKEN_NONE;
}

static int read_model(struct vocab *spec, struct span data, struct err *e) {
    const struct proto all = {(const unsigned char *)data.s, (const unsigned char *)data.s + data.n};
    struct spm_settings s = {.model_type = MODEL_UNIGRAM, .bos = 1, .eos = 2, .pad = -1, .unk = -1};
    s.dummy_prefix = s.remove_extra = s.escape = true;
    uint64_t n;
    int rc = read_fields(spec, all, false, &s, &n, e);
    if (!rc) rc = check_settings(&s, e);
    s.unk = -1; /* determined by the type of the piece */
    if (!rc) rc = draft_tokens(spec, n, e);
    if (!rc) rc = read_fields(spec, all, true, &s, &n, e);
    if (rc) return rc;
    spec->kind = s.model_type == MODEL_BPE ? TEXT_CHAR_BPE : TEXT_UNIGRAM;
    spec->pre = PRE_STEPS;
    spec->model_flags = MODEL_FUSE_UNK | MODEL_REPLACE_BAD | (s.byte_fallback ? MODEL_BYTE_FALLBACK : 0) |
                        (s.model_type == MODEL_UNIGRAM ? MODEL_FLOAT_SUMS : 0);
    spec->unk = role(spec, s.unk);
    spec->bos = role(spec, s.bos);
    spec->eos = role(spec, s.eos);
    spec->pad = role(spec, s.pad);
    const struct span charsmap = {(const char *)s.charsmap.at, (uint64_t)(s.charsmap.end - s.charsmap.at)};
    return spm_steps(spec, charsmap, s.remove_extra, s.dummy_prefix, e);
}

int spm_read(struct vocab *spec, struct span data, struct err *e) {
    int rc = read_model(spec, data, e);
    return rc ? err_prefix(e, "SentencePiece model") : 0;
}

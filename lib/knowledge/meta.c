/* The description of a knowledge stream in META: writing, reading, and comparing formats. */
#include <stdio.h>
#include <string.h>

#include "lib/knowledge/knowledge_internal.h"

/* Below this range a softmax is an argmax, above it uniform; neither teaches anything. */
#define MIN_TEMPERATURE 0.01
#define MAX_TEMPERATURE 1000.0

/* ---- writing ----------------------------------------------------------------------------------------------------- */

/* Members of META that this file owns. Streams of rill 1.0 have "knowledge" in place of "fields". */
static const char *const ours[] = {"kind",    "vocab",   "vocab_size", "knowledge",    "target",
                                   "classes", "teacher", "fields",     "tap_positions"};

static bool put_response(cJSON *list, const struct knowledge_format *f) {
    const struct knowledge_response_codec *codec = knowledge_response_codec(f->encoding);
    cJSON *o = cJSON_CreateObject();
    if (!o || !cJSON_AddItemToArray(list, o)) {
        cJSON_Delete(o);
        return false;
    }
    enum knowledge_per per = f->target == TARGET_SEQUENCE ? PER_SEQUENCE : PER_POSITION;
    return json_put_str(o, "name", KNOWLEDGE_RESPONSE) && json_put_str(o, "per", knowledge_per_name(per)) &&
           json_put_str(o, "codec", codec->name) && codec->describe(o, f) &&
           json_put_f64(o, "temperature", f->temperature);
}

static bool put_field(cJSON *list, const struct knowledge_field *field) {
    cJSON *o = cJSON_CreateObject();
    if (!o || !cJSON_AddItemToArray(list, o)) {
        cJSON_Delete(o);
        return false;
    }
    bool ok = json_put_str(o, "name", field->name) && json_put_str(o, "per", knowledge_per_name(field->per)) &&
              json_put_str(o, "codec", field->codec->name) &&
              json_put_str(o, "dtype", dtype_info(field->dtype)->name) && json_put_str(o, "point", field->point);
    if (ok && field->layer != KNOWLEDGE_NO_LAYER) ok = json_put_u64(o, "layer", field->layer);
    ok = ok && json_put_u64(o, "cols", field->cols);
    if (ok && field->heads) ok = json_put_u64(o, "heads", field->heads);
    if (ok && field->sampled) ok = json_put_bool(o, "sampled", true);
    if (ok && field->counted) ok = json_put_bool(o, "counted", true);
    return ok && (field->per != PER_PAIR || json_put_bool(o, "causal", field->causal));
}

static bool put_members(cJSON *meta, const struct knowledge_format *f) {
    bool knows = f->encoding || f->n_fields;
    for (size_t i = 0; i < COUNT_OF(ours); i++) cJSON_DeleteItemFromObjectCaseSensitive(meta, ours[i]);
    bool ok = json_put_str(meta, "kind", stream_kind_name(knows ? STREAM_KNOWLEDGE : STREAM_TOKENS));
    if (f->vocab[0]) ok = ok && json_put_str(meta, "vocab", f->vocab);
    if (f->vocab_size) ok = ok && json_put_u64(meta, "vocab_size", f->vocab_size);
    if (f->target != TARGET_NEXT || knows) ok = ok && json_put_str(meta, "target", stream_target_name(f->target));
    if (f->classes) ok = ok && json_put_u64(meta, "classes", f->classes);
    if (!knows || !ok) return ok;
    if (f->teacher[0]) ok = json_put_str(meta, "teacher", f->teacher);
    if (f->tap_positions) ok = ok && json_put_u64(meta, "tap_positions", f->tap_positions);
    cJSON *list = ok ? cJSON_AddArrayToObject(meta, "fields") : NULL;
    ok = list && (!f->encoding || put_response(list, f));
    for (uint32_t i = 0; ok && i < f->n_fields; i++) ok = put_field(list, &f->fields[i]);
    return ok;
}

int knowledge_meta_put(cJSON *meta, const struct knowledge_format *f, struct err *e) {
    return put_members(meta, f) ? 0 : err_nomem(e, "META of knowledge");
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

/* Reads an optional digest into a fixed-size string. */
static int get_digest(const cJSON *object, const char *key, char out[DIGEST_TEXT_SIZE], struct err *e) {
    const char *text = NULL;
    struct digest d;
    if (json_opt_str(object, key, &text, e)) return e->code;
    if (!text) return 0;
    if (!digest_parse(text, &d)) return err_set(e, ERR_DATA, "\"%s\" is not a digest: \"%.80s\"", key, text);
    digest_text(d, out);
    return 0;
}

/* Reads the response, whose codec is named by `key`. */
static int get_response(const cJSON *o, const char *key, struct knowledge_format *f, struct err *e) {
    const char *name;
    if (!knowledge_stored_columns(f))
        return err_set(e, ERR_DATA, "META of knowledge has no \"%s\"",
                       stream_target_classes(f->target) ? "classes" : "vocab_size");
    if (json_get_str(o, key, &name, e)) return e->code;
    const struct knowledge_response_codec *codec = knowledge_response_codec_find(name, strlen(name));
    if (!codec) return err_set(e, ERR_DATA, "unknown encoding \"%.40s\": made by a newer version?", name);
    f->encoding = codec->encoding;
    if (json_get_f64(o, "temperature", MIN_TEMPERATURE, MAX_TEMPERATURE, &f->temperature, e)) return e->code;
    return codec->read(o, f, e);
}

/* Reads a stream of rill 1.0, which has only a response. */
static int get_old(const cJSON *o, struct knowledge_format *f, struct err *e) {
    if (!cJSON_IsObject(o)) return err_set(e, ERR_DATA, "META has no \"fields\"");
    return get_digest(o, "teacher", f->teacher, e) ? e->code : get_response(o, "encoding", f, e);
}

static int get_per(const cJSON *o, enum knowledge_per *per, struct err *e) {
    const char *name;
    if (json_get_str(o, "per", &name, e)) return e->code;
    for (*per = 0; *per <= PER_PAIR; ++*per)
        if (!strcmp(name, knowledge_per_name(*per))) return 0;
    return err_set(e, ERR_DATA, "a field per \"%.40s\": made by a newer version?", name);
}

static int get_row_shape(const cJSON *o, struct knowledge_field *field, struct err *e) {
    const char *dtype, *codec;
    uint64_t layer = KNOWLEDGE_NO_LAYER, cols, heads = 0;
    if (json_get_str(o, "codec", &codec, e) || json_get_str(o, "dtype", &dtype, e) ||
        json_opt_u64(o, "layer", 0, 65535, &layer, e) || json_get_u64(o, "cols", 1, KNOWLEDGE_MAX_COLS, &cols, e) ||
        json_opt_u64(o, "heads", 1, KNOWLEDGE_MAX_COLS, &heads, e) || get_per(o, &field->per, e))
        return e->code;
    const struct dtype_info *info = dtype_by_name(dtype);
    if (!info || knowledge_codec_find(codec) != knowledge_codec_of(field->per))
        return err_set(e, ERR_DATA, "codec \"%.40s\" of type \"%.40s\": made by a newer version?", codec, dtype);
    field->dtype = info->dtype;
    field->layer = (uint32_t)layer;
    field->cols = (uint32_t)cols;
    field->heads = (uint32_t)heads;
    return 0;
}

static int get_flags(const cJSON *o, struct knowledge_field *field, struct err *e) {
    if (cJSON_HasObjectItem(o, "sampled") && json_get_bool(o, "sampled", &field->sampled, e)) return e->code;
    if (json_opt_bool(o, "counted", &field->counted, e)) return e->code;
    return field->per == PER_PAIR ? json_get_bool(o, "causal", &field->causal, e) : 0;
}

static int get_field(const cJSON *o, const char *name, struct knowledge_format *f, struct err *e) {
    struct knowledge_field field = {0};
    const char *point;
    if (json_get_str(o, "point", &point, e) || get_row_shape(o, &field, e) || get_flags(o, &field, e)) return e->code;
    if (strlen(point) >= sizeof field.point) return err_set(e, ERR_DATA, "point \"%.40s\": too long", point);
    memcpy(field.point, point, strlen(point) + 1);
    if (knowledge_field_check(&field, e) || knowledge_field_add(f, &field, e)) return e->code = ERR_DATA;
    if (strcmp(name, field.name) != 0)
        return err_set(e, ERR_DATA, "its name is \"%s\": expected \"%s\"", name, field.name);
    return 0;
}

/* PER_PAIR fields must agree on their rows, and sampled fields need tap_positions. */
static int check_fields(const struct knowledge_format *f, struct err *e) {
    const struct knowledge_field *first = NULL;
    for (uint32_t i = 0; i < f->n_fields; i++) {
        const struct knowledge_field *field = &f->fields[i];
        if (field->sampled && !f->tap_positions)
            return err_set(e, ERR_DATA, "the field %s is sampled, and META has no \"tap_positions\"", field->name);
        if (field->per != PER_PAIR) continue;
        if (first &&
            (first->causal != field->causal || first->sampled != field->sampled || first->counted != field->counted))
            return err_set(e, ERR_DATA, "the fields %s and %s are of other positions", first->name, field->name);
        first = field;
    }
    return 0;
}

static int get_fields(const cJSON *meta, struct knowledge_format *f, struct err *e) {
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(meta, "fields"), *o;
    const char *name;
    uint64_t positions = 0;
    if (!list) return get_old(cJSON_GetObjectItemCaseSensitive(meta, "knowledge"), f, e);
    if (!cJSON_IsArray(list)) return err_set(e, ERR_DATA, "\"fields\" is not an array");
    if (get_digest(meta, "teacher", f->teacher, e) || json_opt_u64(meta, "tap_positions", 1, UINT32_MAX, &positions, e))
        return e->code;
    f->tap_positions = (uint32_t)positions;
    cJSON_ArrayForEach(o, list) {
        if (json_get_str(o, "name", &name, e)) return err_prefix(e, "\"fields\"");
        bool response = !strcmp(name, KNOWLEDGE_RESPONSE);
        if (response && f->encoding) return err_set(e, ERR_DATA, "\"fields\" has two responses");
        if (response ? get_response(o, "codec", f, e) : get_field(o, name, f, e))
            return err_prefix(e, "field \"%.40s\"", name);
    }
    if (!f->encoding && !f->n_fields) return err_set(e, ERR_DATA, "\"fields\" is empty");
    return check_fields(f, e);
}

static int get_target(const cJSON *meta, struct knowledge_format *f, struct err *e) {
    const char *name = stream_target_name(TARGET_NEXT);
    uint64_t classes = 0;
    if (json_opt_str(meta, "target", &name, e) || json_opt_u64(meta, "classes", 1, KNOWLEDGE_MAX_VOCAB, &classes, e))
        return e->code;
    f->classes = (uint32_t)classes;
    for (f->target = TARGET_NEXT; f->target <= TARGET_TOKEN; f->target++)
        if (!strcmp(name, stream_target_name(f->target))) return 0;
    return err_set(e, ERR_DATA, "target \"%.40s\": made by a newer version?", name);
}

int knowledge_meta_get(const cJSON *meta, struct knowledge_format *f, struct err *e) {
    const char *name;
    enum stream_kind kind;
    uint64_t vocab_size = 0, pack = 0;
    memset(f, 0, sizeof *f);
    f->temperature = 1;
    if (json_get_str(meta, "kind", &name, e) || stream_kind_parse(name, &kind, e)) return e->code;
    if (kind != STREAM_TOKENS && kind != STREAM_KNOWLEDGE)
        return err_set(e, ERR_DATA, "this is a %s stream, expected tokens or knowledge", stream_kind_name(kind));
    if (get_digest(meta, "vocab", f->vocab, e) || get_target(meta, f, e)) return e->code;
    if (json_opt_u64(meta, "vocab_size", 1, KNOWLEDGE_MAX_VOCAB, &vocab_size, e)) return e->code;
    if (json_opt_u64(meta, "pack", 1, UINT32_MAX, &pack, e)) return e->code;
    f->vocab_size = (uint32_t)vocab_size;
    f->pack = (uint32_t)pack;
    return kind == STREAM_KNOWLEDGE ? get_fields(meta, f, e) : 0;
}

const char *knowledge_labels_option(enum stream_target target) {
    static const char *const names[] = {[TARGET_NEXT] = "--lines",
                                        [TARGET_MASKED] = "--mask-rate",
                                        [TARGET_SEQUENCE] = "--labels",
                                        [TARGET_TOKEN] = "--tags"};
    return names[target];
}

bool knowledge_may_count(const struct knowledge_format *f) {
    bool may = f->encoding != KNOW_NONE && f->target != TARGET_SEQUENCE;
    for (uint32_t i = 0; !may && i < f->n_fields; i++) may = f->fields[i].counted;
    return may;
}

uint32_t knowledge_columns(const struct knowledge_format *f) {
    return f->n_used ? f->n_used : knowledge_stored_columns(f);
}

static int fit_classes(struct knowledge_format *f, uint32_t classes, struct err *e) {
    if (f->classes > classes || (f->encoding && f->classes != classes))
        return err_set(e, ERR_DATA, "data with %u classes, but the model has %u", f->classes, classes);
    f->classes = classes;
    return 0;
}

int knowledge_fit_target(struct knowledge_format *f, enum stream_target target, uint32_t columns, struct err *e) {
    if (f->target == TARGET_NEXT && !f->encoding) f->target = target; /* plain tokens have no labels yet */
    if (f->target != target)
        return err_set(e, ERR_DATA, "the target of the data is \"%s\", that of the model \"%s\"",
                       stream_target_name(f->target), stream_target_name(target));
    return stream_target_classes(target) ? fit_classes(f, columns, e) : knowledge_fit(f, columns, e);
}

void knowledge_cut_padding(struct knowledge_format *f, uint32_t n_tokens) {
    if (stream_target_classes(f->target) || f->encoding != KNOW_DENSE) return;
    if (f->vocab[0] && f->vocab_size > n_tokens) f->n_used = n_tokens;
}

int knowledge_fit(struct knowledge_format *f, uint32_t n_tokens, struct err *e) {
    bool wider = f->vocab_size > n_tokens;
    if (f->encoding == KNOW_NONE) f->vocab_size = n_tokens;
    knowledge_cut_padding(f, n_tokens);
    if (knowledge_columns(f) == n_tokens) return 0;
    if (!wider || !f->vocab[0])
        return err_set(e, ERR_DATA, "knowledge over %u tokens, but the model has %u", f->vocab_size, n_tokens);
    return err_set(e, ERR_DATA,
                   "knowledge over %u rows of an embedding, %u of them tokens: the rest has a share in its "
                   "probabilities (encode it again, from a teacher with its vocabulary)",
                   f->vocab_size, n_tokens);
}

/* A plain stream of a named vocabulary may differ in vocab_size, which depends on its model's padding. */
static bool same_tokens(const struct knowledge_format *a, const struct knowledge_format *b) {
    bool padding_alone = a->encoding == KNOW_NONE && a->vocab[0];
    return !strcmp(a->vocab, b->vocab) && (a->vocab_size == b->vocab_size || padding_alone);
}

static bool same_fields(const struct knowledge_format *a, const struct knowledge_format *b) {
    if (a->n_fields != b->n_fields || a->tap_positions != b->tap_positions) return false;
    for (uint32_t i = 0; i < a->n_fields; i++) {
        const struct knowledge_field *x = &a->fields[i], *y = &b->fields[i];
        if (strcmp(x->name, y->name) != 0 || x->per != y->per || x->dtype != y->dtype || x->cols != y->cols ||
            x->heads != y->heads || x->sampled != y->sampled || x->counted != y->counted || x->causal != y->causal)
            return false;
    }
    return true;
}

static bool same_format(const struct knowledge_format *a, const struct knowledge_format *b) {
    if (a->target != b->target || a->p != b->p || !same_fields(a, b)) return false;
    if (stream_target_classes(a->target) && a->encoding && a->classes != b->classes) return false;
    return a->encoding == b->encoding && a->n == b->n && a->temperature == b->temperature && a->dtype == b->dtype &&
           a->log_probs == b->log_probs && a->partial == b->partial && same_tokens(a, b);
}

/* The teachers are not compared: streams of several teachers may be concatenated. */
int knowledge_check_same(const struct knowledge_format *first, const struct knowledge_format *other, struct err *e) {
    if (same_format(first, other)) return 0;
    char was[64], is[64];
    if (!same_fields(first, other) || first->target != other->target)
        return err_set(e, ERR_DATA, "first %u fields and target %s, then %u others and %s", first->n_fields,
                       stream_target_name(first->target), other->n_fields, stream_target_name(other->target));
    knowledge_encoding_text(first, was, sizeof was);
    knowledge_encoding_text(other, is, sizeof is);
    return err_set(e, ERR_DATA, "first %s at temperature %g, vocabulary %s of %u, then %s at %g, %s of %u", was,
                   first->temperature, first->vocab[0] ? first->vocab : "unnamed", first->vocab_size, is,
                   other->temperature, other->vocab[0] ? other->vocab : "unnamed", other->vocab_size);
}

static int check_segment(const struct knowledge_format *f, const struct stream_reader *r, struct err *e) {
    struct knowledge_format now;
    if (knowledge_meta_get(stream_reader_meta(r), &now, e)) return err_prefix(e, "%s", stream_reader_name(r));
    if (!knowledge_check_same(f, &now, e)) return 0;
    return err_prefix(e, "%s: the segments disagree", stream_reader_name(r));
}

int knowledge_read(struct stream_reader *r, const struct knowledge_format *f, struct batch *b, bool *more,
                   struct err *e) {
    if (batch_read(r, b, more, e)) return e->code;
    return *more ? check_segment(f, r, e) : 0;
}

int knowledge_check_temperature(const struct knowledge_format *f, double temperature, struct err *e) {
    char name[64];
    if (!(temperature >= MIN_TEMPERATURE && temperature <= MAX_TEMPERATURE))
        return err_set(e, ERR_USAGE, "temperature %g: expected %g to %g", temperature, MIN_TEMPERATURE,
                       MAX_TEMPERATURE);
    if (!knowledge_is_sparse(f) || temperature == f->temperature) return 0;
    return err_set(e, ERR_DATA,
                   "temperature %g is not possible: the knowledge is %s at temperature %g (encode dense predictions "
                   "with logit-dump --temperature)",
                   temperature, knowledge_encoding_text(f, name, sizeof name), f->temperature);
}

int knowledge_check_encode(const struct knowledge_format *from, const struct knowledge_format *to, struct err *e) {
    char was[64], want[64];
    uint32_t columns = knowledge_stored_columns(from);
    knowledge_encoding_text(from, was, sizeof was);
    knowledge_encoding_text(to, want, sizeof want);
    if (to->encoding == KNOW_NONE || to->encoding == KNOW_DENSE)
        return err_set(e, ERR_USAGE, "encoding \"%s\" is not for this: teacher-infer writes it", want);
    if (from->encoding == KNOW_NONE)
        return err_set(e, ERR_DATA, "a plain token stream has no predictions to encode (run teacher-infer first)");
    if (knowledge_is_top(to) && to->encoding != KNOW_TOPP && to->n > columns)
        return err_set(e, ERR_DATA, "%s of a vocabulary of %u tokens", want, columns);
    if (from->encoding == KNOW_DENSE) return knowledge_check_temperature(from, to->temperature, e);
    if (from->encoding == KNOW_SAMPLE || to->encoding == KNOW_SAMPLE)
        return err_set(e, ERR_DATA,
                       "%s cannot become %s: draws are made from the whole distribution (encode the teacher's "
                       "dense output; --encode keep leaves it as it is)",
                       was, want);
    if (from->partial && to->encoding != from->encoding)
        return err_set(e, ERR_DATA, "%s of several teachers cannot become %s: its entries are lower bounds", was, want);
    bool fewer = from->encoding == KNOW_TOPP ? to->encoding == KNOW_TOPP && to->p <= from->p
                                             : to->encoding != KNOW_TOPP && to->n <= from->n;
    if (!fewer) return err_set(e, ERR_DATA, "%s cannot become %s: the further entries are gone", was, want);
    return knowledge_check_temperature(from, to->temperature, e);
}

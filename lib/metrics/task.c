/*
 * Minimal pairs and multiple choice from JSON lines, by the conventions of EleutherAI's lm-evaluation-harness: trailing
 * white space of a context belongs to the continuation, both are encoded together, and texts that are too long lose
 * their beginning.
 */
#include "lib/metrics/metrics_internal.h"

enum task_kind { TASK_NONE, TASK_PAIRS, TASK_CHOICE };
static const char *const kind_names[] = {"none", "minimal_pairs", "multiple_choice"};

/* Divisors of a continuation's log-probability. */
enum { BY_NOTHING, BY_CHARS, BY_BYTES, BY_TOKENS, N_SCORES };
static const char *const score_names[N_SCORES] = {"acc", "acc_norm", "acc_bytes", "acc_tokens"};

/* A continuation in the current batch. */
struct run {
    size_t positions;        /* in the scorer */
    double length[N_SCORES]; /* 1, characters, bytes, tokens */
    bool first, gold;        /* first run of an item; the correct one */
};

struct task {
    struct model *m;
    char *name;
    enum task_kind kind;
    struct scorer scorer;
    struct buf line; /* a line of the file without its newline so far */
    uint64_t n_lines;
    bool begun;      /* the first bytes have been checked */
    struct buf runs; /* struct run, of complete items */
    uint64_t n, truncated, right[N_SCORES];
    /* scratch */
    struct buf text;                /* context and continuation */
    struct text_ids context, whole; /* tokens of the context alone, and of both */
    struct buf tokens, labels;      /* u32 */
};

static char *name_of(const char *path, struct err *e) {
    char name[256];
    const char *base = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    const char *dot = strrchr(base, '.');
    snprintf(name, sizeof name, "%.*s", dot && dot > base ? (int)(dot - base) : (int)strlen(base), base);
    return mem_strdup(utf8_valid(name, strlen(name)) ? name : "task", e);
}

int task_new(struct task **out, struct model *m, const char *path, struct err *e) {
    if (!m->vocab) return err_set(e, ERR_DATA, "tasks are text, and this model has no vocabulary");
    struct task *t = mem_zalloc(sizeof *t, e);
    if (!t) return e->code;
    t->m = m;
    int rc = scorer_init(&t->scorer, m, e);
    if (!rc && !(t->name = name_of(path, e))) rc = e->code;
    if (rc)
        task_free(t);
    else
        *out = t;
    return rc;
}

void task_free(struct task *t) {
    if (!t) return;
    scorer_release(&t->scorer);
    buf_release(&t->line);
    buf_release(&t->runs);
    buf_release(&t->text);
    buf_release(&t->tokens);
    buf_release(&t->labels);
    text_ids_release(&t->context);
    text_ids_release(&t->whole);
    mem_free(t->name);
    mem_free(t);
}

/* ---- scores ------------------------------------------------------------------------------------------------------ */

/* Scores the continuations of one item, starting with `run`: finds which one each score prefers, the first of ties
 * (like numpy's argmax). Returns the next item's first run. */
static const struct run *judge(struct task *t, const struct run *run, const struct run *end, const double **nll) {
    double best[N_SCORES] = {0};
    bool right[N_SCORES] = {false};
    const struct run *r = run;
    do {
        double sum = 0;
        for (size_t i = 0; i < r->positions; i++) sum -= *(*nll)++;
        for (int s = 0; s < N_SCORES; s++) {
            double score = sum / r->length[s];
            if (r != run && score <= best[s]) continue;
            best[s] = score;
            right[s] = r->gold;
        }
    } while (++r < end && !r->first);
    for (int s = 0; s < N_SCORES; s++) t->right[s] += right[s];
    t->n++;
    return r;
}

static int score_waiting(struct task *t, struct err *e) {
    int rc = scorer_run(&t->scorer, e);
    if (rc) return rc;
    const struct run *r = (const void *)t->runs.data, *end = t->runs.len ? r + t->runs.len / sizeof *r : r;
    const double *nll = buf_f64(&t->scorer.nll);
    while (r < end) r = judge(t, r, end, &nll);
    t->runs.len = 0;
    scorer_clear(&t->scorer);
    return 0;
}

/* ---- encoding texts ---------------------------------------------------------------------------------------------- */

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static size_t characters(const char *s) {
    size_t n = 0;
    for (; *s; s++) n += ((unsigned char)*s & 0xc0) != 0x80;
    return n;
}

/* Encodes context and continuation into t->tokens, after BOS if the model adds one or the continuation has no context.
 * *from: index of the continuation's first token. */
static int encode(struct task *t, const char *context, const char *continuation, size_t *from, struct err *e) {
    size_t n = strlen(context);
    while (n && is_space(context[n - 1])) n--;
    bool space = *context && !context[n] && !is_space(*continuation);
    t->text.len = t->tokens.len = 0;
    t->whole.n = t->whole.n_lost = t->context.n = 0;
    int rc = buf_printf(&t->text, e, "%s%s%s", context, space ? " " : "", continuation);
    if (!rc && n) rc = text_encode(t->m->vocab, context, n, NULL, &t->context, e);
    if (!rc) rc = text_encode(t->m->vocab, t->text.data, t->text.len, NULL, &t->whole, e);
    uint32_t prefix = n && !t->m->vocab->add_bos ? TOKEN_NONE : metrics_prefix_token(t->m);
    if (!rc && prefix != TOKEN_NONE) rc = buf_append(&t->tokens, &prefix, sizeof prefix, e);
    *from = t->context.n + (prefix != TOKEN_NONE);
    if (*from == 0) *from = 1; /* nothing precedes the first token, so it is not scored */
    return rc ? rc : buf_append(&t->tokens, t->whole.ids, t->whole.n * sizeof *t->whole.ids, e);
}

/* Adds the encoded text as a run in which tokens[from .. n) are scored. The beginning is dropped if the model's context
 * is too short. */
static int add_run(struct task *t, size_t from, struct run r, struct err *e) {
    size_t n = t->tokens.len / sizeof(uint32_t), limit = t->m->config.context;
    size_t skip = n - 1 > limit ? n - 1 - limit : 0;
    if (n - from > limit)
        return err_set(e, ERR_DATA, "a continuation of %zu tokens, the model's context is %zu", n - from, limit);
    t->truncated += skip > 0;
    t->labels.len = 0;
    r.positions = n - 1 - skip;
    int rc = buf_reserve(&t->labels, r.positions * sizeof(uint32_t), e);
    if (rc) return rc;
    const uint32_t *tokens = buf_u32(&t->tokens) + skip;
    uint32_t *labels = buf_u32(&t->labels);
    for (size_t i = 0; i < r.positions; i++) labels[i] = i + 1 + skip >= from ? tokens[i + 1] : UINT32_MAX;
    rc = scorer_add(&t->scorer, tokens, labels, r.positions, e);
    return rc ? rc : buf_append(&t->runs, &r, sizeof r, e);
}

static int put_run(struct task *t, const char *context, const char *continuation, struct run r, struct err *e) {
    size_t from;
    if (!*continuation) return err_set(e, ERR_DATA, "an empty text has nothing to score");
    int rc = encode(t, context, continuation, &from, e);
    if (rc) return rc;
    if (t->whole.n_lost)
        log_line(LOG_WARN, "%s: \"%.64s\": %llu bytes have no token and were left out", t->name, continuation,
                 (unsigned long long)t->whole.n_lost);
    size_t n = t->tokens.len / sizeof(uint32_t);
    if (n <= from) return err_set(e, ERR_DATA, "\"%.64s\" has no token to score", continuation);
    r.length[BY_NOTHING] = 1;
    r.length[BY_CHARS] = (double)characters(continuation);
    r.length[BY_BYTES] = (double)strlen(continuation);
    r.length[BY_TOKENS] = (double)(n - from);
    return add_run(t, from, r, e);
}

/* ---- lines ------------------------------------------------------------------------------------------------------- */

/* Finds the member with one of these names (NULL ends them). More than one is an error, because all but one would be
 * ignored. */
static int find_one(const cJSON *o, const char *const *names, const cJSON **out, struct err *e) {
    const char *found = NULL;
    *out = NULL;
    for (; *names; names++) {
        const cJSON *item = cJSON_GetObjectItemCaseSensitive(o, *names);
        if (!item) continue;
        if (found) return err_set(e, ERR_DATA, "both \"%s\" and \"%s\": which one is meant?", found, *names);
        found = *names;
        *out = item;
    }
    return 0;
}

static int check_kind(struct task *t, enum task_kind kind, struct err *e) {
    if (t->kind != TASK_NONE && t->kind != kind)
        return err_set(e, ERR_DATA, "%s among %s", kind_names[kind], kind_names[t->kind]);
    t->kind = kind;
    return 0;
}

static int minimal_pair(struct task *t, const cJSON *o, struct err *e) {
    const char *good, *bad;
    int rc = json_get_str(o, "sentence_good", &good, e);
    if (!rc) rc = json_get_str(o, "sentence_bad", &bad, e);
    if (!rc) rc = check_kind(t, TASK_PAIRS, e);
    /* The bad sentence comes first: the first of equal scores wins, and a tie is not correct. */
    if (!rc) rc = put_run(t, "", bad, (struct run){.first = true}, e);
    return rc ? rc : put_run(t, "", good, (struct run){.gold = true}, e);
}

/* Reads an index: a number, or a string of digits. */
static int gold_index(const cJSON *item, int n, int *out, struct err *e) {
    uint64_t v = UINT64_MAX;
    if (cJSON_IsString(item) && !parse_u64(item->valuestring, &v)) v = UINT64_MAX;
    if (cJSON_IsNumber(item) && item->valuedouble >= 0 && item->valuedouble < n) v = (uint64_t)item->valuedouble;
    if (v >= (uint64_t)n || (cJSON_IsNumber(item) && (double)v != item->valuedouble))
        return err_set(e, ERR_DATA, "the answer is not a number from 0 to %d", n - 1);
    *out = (int)v;
    return 0;
}

static int multiple_choice(struct task *t, const cJSON *o, struct err *e) {
    static const char *const contexts[] = {"context", "query", "question", "ctx", NULL};
    static const char *const choices[] = {"choices", "endings", NULL}, *const golds[] = {"answer", "gold", "label",
                                                                                         NULL};
    const cJSON *context, *list, *answer, *choice;
    int gold = 0, i = 0, rc = find_one(o, contexts, &context, e);
    if (!rc) rc = find_one(o, choices, &list, e);
    if (!rc) rc = find_one(o, golds, &answer, e);
    if (rc) return rc;
    if (!cJSON_IsString(context) || !cJSON_IsArray(list) || !answer)
        return err_set(e, ERR_DATA,
                       "expected \"sentence_good\" and \"sentence_bad\", or \"context\" (a string), \"choices\" (an "
                       "array) and \"answer\"");
    if (cJSON_GetArraySize(list) < 2) return err_set(e, ERR_DATA, "fewer than two choices");
    rc = gold_index(answer, cJSON_GetArraySize(list), &gold, e);
    if (!rc) rc = check_kind(t, TASK_CHOICE, e);
    cJSON_ArrayForEach(choice, list) {
        if (rc) return rc;
        if (!cJSON_IsString(choice)) return err_set(e, ERR_DATA, "choice %d is not a string", i);
        struct run r = {.first = i == 0, .gold = i == gold};
        rc = put_run(t, context->valuestring, choice->valuestring, r, e);
        i++;
    }
    return rc;
}

static bool is_blank(const char *line, size_t n) {
    while (n && is_space(line[n - 1])) n--;
    return n == 0;
}

/* Rejects input that is not text as soon as its first bytes are available. */
static int begin_text(struct task *t, struct err *e) {
    size_t skip; /* length of a byte order mark; take_line skips it */
    t->begun = true;
    return text_begin(t->line.data, t->line.len, &skip, e);
}

static int take_line(struct task *t, struct err *e) {
    size_t bom = text_bom(t->line.data, t->line.len), n = t->line.len - bom;
    const char *line = (const char *)t->line.data + bom;
    if (!t->begun && begin_text(t, e)) return e->code;
    t->n_lines++;
    if (is_blank(line, n)) return 0;
    cJSON *o = json_parse(line, n, e);
    int rc = o ? 0 : e->code;
    if (!rc && !cJSON_IsObject(o)) rc = err_set(e, ERR_DATA, "expected a JSON object");
    if (!rc) {
        bool pair = cJSON_HasObjectItem(o, "sentence_good") || cJSON_HasObjectItem(o, "sentence_bad");
        rc = pair ? minimal_pair(t, o, e) : multiple_choice(t, o, e);
    }
    cJSON_Delete(o);
    if (rc) return err_prefix(e, "line %llu", (unsigned long long)t->n_lines);
    return scorer_positions(&t->scorer) < METRICS_BATCH ? 0 : score_waiting(t, e);
}

#define MAX_LINE ((size_t)16 << 20)

int task_feed(struct task *t, const char *text, size_t n, struct err *e) {
    const char *end = text + n, *newline;
    int rc = 0;
    for (; !rc && text < end && (newline = memchr(text, '\n', (size_t)(end - text))); text = newline + 1) {
        rc = buf_append(&t->line, text, (size_t)(newline - text), e);
        if (!rc) rc = take_line(t, e);
        t->line.len = 0;
    }
    if (!rc) rc = buf_append(&t->line, text, (size_t)(end - text), e);
    if (!rc && !t->begun && t->line.len >= TEXT_BEGIN_BYTES) rc = begin_text(t, e);
    if (!rc && t->line.len > MAX_LINE)
        rc = err_set(e, ERR_DATA, "line %llu is longer than %zu MiB", (unsigned long long)t->n_lines + 1,
                     MAX_LINE >> 20);
    return rc;
}

/* ---- results ----------------------------------------------------------------------------------------------------- */

int task_finish(struct task *t, struct err *e) {
    int rc = t->line.len ? take_line(t, e) : 0;
    if (!rc) rc = score_waiting(t, e);
    return rc || t->n ? rc : err_set(e, ERR_DATA, "no items");
}

uint64_t task_items(const struct task *t) {
    return t->n;
}

cJSON *task_json(const struct task *t, struct err *e) {
    cJSON *o = cJSON_CreateObject();
    bool ok = o && json_put_str(o, "metric", "task") && json_put_str(o, "task", t->name) &&
              json_put_str(o, "kind", kind_names[t->kind]) && json_put_u64(o, "n", t->n);
    for (int s = 0; ok && s < N_SCORES; s++) ok = put_share(o, score_names[s], t->right[s], t->n);
    if (ok && json_put_u64(o, "truncated", t->truncated)) return o;
    cJSON_Delete(o);
    err_nomem(e, "results");
    return NULL;
}

/* Returns the mean over tasks of one kind, each with the same weight, however many items it has. */
static cJSON *mean_of(struct task *const *tasks, size_t n_tasks, enum task_kind kind) {
    double sum[N_SCORES] = {0};
    uint64_t n = 0, items = 0;
    for (size_t i = 0; i < n_tasks; i++) {
        const struct task *t = tasks[i];
        if (t->kind != kind) continue;
        n++;
        items += t->n;
        for (int s = 0; s < N_SCORES; s++) sum[s] += (double)t->right[s] / (double)t->n;
    }
    cJSON *o = cJSON_CreateObject();
    bool ok = o && json_put_str(o, "metric", "task_mean") && json_put_str(o, "kind", kind_names[kind]) &&
              json_put_u64(o, "tasks", n) && json_put_u64(o, "n", items);
    for (int s = 0; ok && s < N_SCORES; s++) ok = json_put_f64(o, score_names[s], sum[s] / (double)n);
    if (ok) return o;
    cJSON_Delete(o);
    return NULL;
}

int task_means(struct task *const *tasks, size_t n_tasks, cJSON *results, struct err *e) {
    for (enum task_kind kind = TASK_PAIRS; kind <= TASK_CHOICE; kind++) {
        size_t n = 0;
        for (size_t i = 0; i < n_tasks; i++) n += tasks[i]->kind == kind;
        if (n < 2) continue;
        cJSON *o = mean_of(tasks, n_tasks, kind);
        if (!o || !cJSON_AddItemToArray(results, o)) {
            cJSON_Delete(o);
            return err_nomem(e, "results");
        }
    }
    return 0;
}

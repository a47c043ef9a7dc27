/*
 * Generation: each sequence in flight gets one token per step; when one is finished, the next waiting sequence takes
 * its place.
 *
 * A step is one forward pass over the newest token of every sequence in flight and the whole prompts of those that
 * join, so the weights are read once for both. Sequences start and are delivered in the order in which they were added;
 * one that finishes early is kept until those before it are delivered.
 */
#include "lib/model/model_internal.h"
#include "lib/model/sampling.h"

#include <stdlib.h>
#include <time.h>

#define MAX_FLIGHT        64                /* sequences in flight */
#define PREFILL_POSITIONS 2048              /* prompt positions per step, except that one prompt always fits */
#define CACHE_BYTES       ((size_t)1 << 30) /* all caches together, except that one sequence always fits */

/* A sequence, from model_generator_add to delivery. */
struct sequence {
    struct sequence *next; /* in order of addition */
    uint64_t number;
    size_t n_prompt, n_made;
    struct buf tokens; /* the prompt, then the generated tokens */
    struct kv_cache cache;
    bool done;
};

struct model_generator {
    struct model *m;
    struct grad_tape *t;
    struct sampler sampler;
    model_generated_fn *deliver;
    model_step_fn *progress;
    void *ctx;
    struct sequence *first, *last; /* all that are not yet delivered */
    struct sequence *waiting;      /* the first that has not started; those after it have not either */
    struct sequence *flight[MAX_FLIGHT];
    size_t n_flight, n_waiting;
    size_t position_bytes, cache_bytes; /* bytes of one position, and of all caches in flight */
    struct model_generated sum;
    struct buf tokens; /* input of the current step */
};

/* ---- sequences --------------------------------------------------------------------------------------------------- */

static uint32_t *tokens_of(const struct sequence *s) {
    return (uint32_t *)s->tokens.data;
}

static size_t length_of(const struct sequence *s) {
    return s->tokens.len / sizeof(uint32_t);
}

static void sequence_free(const struct model_generator *g, struct sequence *s) {
    kernel_free(g->m->device, s->cache.memory);
    buf_release(&s->tokens);
    mem_free(s);
}

/* Positions the cache may have to hold: the last generated token needs none. */
static size_t capacity_for(const struct model_generator *g, const struct sequence *s) {
    size_t want = s->n_prompt + g->sampler.how.max_new - 1, context = g->m->config.context;
    return want < context ? want : context;
}

/* Frees the cache as soon as the last token is there. */
static void finish_sequence(struct model_generator *g, struct sequence *s) {
    g->cache_bytes -= s->cache.capacity * g->position_bytes;
    kernel_free(g->m->device, s->cache.memory);
    s->cache = (struct kv_cache){0};
    s->done = true;
}

/* Delivers finished sequences up to the first unfinished one. */
static int deliver_done(struct model_generator *g, struct err *e) {
    int rc = 0;
    while (!rc && g->first && g->first->done) {
        struct sequence *s = g->first;
        uint32_t *tokens = tokens_of(s);
        rc = g->deliver(g->ctx, s->number, tokens, s->n_prompt, tokens + s->n_prompt, s->n_made, e);
        g->first = s->next;
        if (!g->first) g->last = NULL;
        sequence_free(g, s);
    }
    return rc;
}

/* ---- a step ------------------------------------------------------------------------------------------------------ */

/* Moves the first waiting sequence into flight. */
static int begin_sequence(struct model_generator *g, size_t capacity, uint64_t bytes, struct err *e) {
    struct sequence *s = g->waiting;
    uint64_t n = capacity * kv_width(&g->m->config, g->m->config.n_layers); /* bytes was checked */
    s->cache.memory = kernel_alloc(g->m->device, model_precision(g->m), n, e);
    if (!kernel_has_data(s->cache.memory)) return err_prefix(e, "key/value cache of %zu positions", capacity);
    s->cache.capacity = capacity;
    g->cache_bytes += bytes;
    g->flight[g->n_flight++] = s;
    g->waiting = s->next;
    g->n_waiting--;
    return 0;
}

static int fill_flight(struct model_generator *g, struct err *e) {
    size_t joining = 0;
    int rc = 0;
    while (!rc && g->waiting && g->n_flight < MAX_FLIGHT) {
        size_t capacity = capacity_for(g, g->waiting);
        uint64_t bytes, together;
        if (!u64_mul(capacity, g->position_bytes, &bytes) || !u64_add(bytes, g->cache_bytes, &together))
            return err_set(e, ERR_IO, "a key/value cache of %zu positions is too large", capacity);
        if (g->n_flight && together > CACHE_BYTES) break;
        if (joining && joining + g->waiting->n_prompt > PREFILL_POSITIONS) break;
        joining += g->waiting->n_prompt;
        rc = begin_sequence(g, capacity, bytes, e);
    }
    return rc;
}

/*
 * A sequence that reaches the length where its keys would rotate differently (LongRoPE) rebuilds its cache, as
 * transformers does for Phi-3: it rejoins the flight after the others. Returns the number of the others.
 */
static size_t begin_anew(struct model_generator *g) {
    const struct model_rope *r = &g->m->config.rope, *local = &g->m->config.local_rope;
    struct sequence *anew[MAX_FLIGHT];
    size_t n_anew = 0, n_on = 0;
    for (size_t i = 0; i < g->n_flight; i++) {
        struct sequence *s = g->flight[i];
        size_t held = s->cache.length;
        bool passes = held && ((model_rope_tables(r) > 1 && held == r->original_context) ||
                               (model_rope_tables(local) > 1 && held == local->original_context));
        if (passes)
            s->cache.length = 0, anew[n_anew++] = s;
        else
            g->flight[n_on++] = s;
    }
    for (size_t i = 0; i < n_anew; i++) g->flight[n_on + i] = anew[i];
    return n_on;
}

/* The input of the next pass: for each sequence, the tokens that its cache does not hold yet. */
static int lay_out_step(struct model_generator *g, struct model_input *in, uint32_t *lengths, struct err *e) {
    int rc = 0;
    g->tokens.len = 0;
    for (size_t i = 0; !rc && i < g->n_flight; i++) {
        const struct sequence *s = g->flight[i];
        lengths[i] = (uint32_t)(length_of(s) - s->cache.length);
        rc = buf_append(&g->tokens, tokens_of(s) + s->cache.length, lengths[i] * sizeof(uint32_t), e);
    }
    *in = (struct model_input){.n_positions = g->tokens.len / sizeof(uint32_t),
                               .n_seqs = g->n_flight,
                               .tokens = (const uint32_t *)g->tokens.data,
                               .lengths = lengths};
    return rc;
}

static int by_id(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static bool is_end(const struct model_sampling *how, uint32_t id) {
    return how->n_ends && bsearch(&id, how->ends, how->n_ends, sizeof id, by_id);
}

/* Samples a token for each sequence in flight and removes the finished ones. */
static int take_tokens(void *ctx, size_t first, size_t rows, size_t vocab, struct kernel_array logits,
                       struct kernel_array dlogits, struct err *e) {
    struct model_generator *g = ctx;
    const struct model_sampling *how = &g->sampler.how;
    uint32_t ids[MAX_FLIGHT];
    double u[MAX_FLIGHT] = {0};
    (void)first, (void)vocab, (void)dlogits; /* MAX_FLIGHT rows are one block of the head; no gradient */
    for (size_t i = 0; i < rows; i++) u[i] = sampler_uniform(&g->sampler, g->flight[i]->number, g->flight[i]->n_made);
    sampler_draw(&g->sampler, ids, logits, u, rows);
    size_t kept = 0;
    int rc = 0;
    for (size_t i = 0; !rc && i < rows; i++) {
        struct sequence *s = g->flight[i];
        rc = buf_append(&s->tokens, &ids[i], sizeof ids[i], e);
        s->n_made++;
        g->sum.made++;
        if (is_end(how, ids[i]) || s->n_made == how->max_new || s->cache.length == g->m->config.context)
            finish_sequence(g, s);
        else
            g->flight[kept++] = s;
    }
    g->n_flight = kept;
    return rc;
}

/* Runs the model and samples the next token of each sequence. */
static int run_step(struct model_generator *g, const struct model_input *in, struct err *e) {
    struct kv_cache *caches[MAX_FLIGHT];
    for (size_t i = 0; i < g->n_flight; i++) caches[i] = &g->flight[i]->cache;
    grad_reset(g->t);
    struct grad_var *h = model_graph_cached(g->m, g->t, in, caches, NULL, NULL, e);
    if (!h) return e->code;
    struct grad_var *last = grad_scratch(g->t, in->n_seqs, h->cols, DT_F32);
    for (size_t i = 0, end = 0; last && i < in->n_seqs; i++) {
        end += in->lengths[i];
        kernel_convert(kernel_part(last->value, i * h->cols), kernel_part(h->value, (end - 1) * h->cols), h->cols);
    }
    struct grad_head head = model_logits_head(g->m, g->t);
    return grad_head(g->t, last, &head, take_tokens, g) ? 0 : grad_error(g->t, e);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* `decoding` of the n_seqs sequences were in flight before this step of n positions. */
static void count_step(struct model_generator *g, size_t decoding, size_t n, size_t n_seqs, double seconds) {
    if (decoding == n_seqs) {
        g->sum.decoded += n;
        g->sum.decode_seconds += seconds;
    } else {
        g->sum.prompted += n - decoding;
        g->sum.prompt_seconds += seconds;
    }
}

static int step(struct model_generator *g, struct err *e) {
    struct model_input in;
    uint32_t lengths[MAX_FLIGHT];
    double began = now();
    size_t decoding = begin_anew(g);
    int rc = fill_flight(g, e);
    if (!rc) rc = lay_out_step(g, &in, lengths, e);
    if (!rc) rc = run_step(g, &in, e);
    if (!rc) count_step(g, decoding, in.n_positions, in.n_seqs, now() - began);
    if (!rc && g->progress) g->progress(g->ctx, &g->sum);
    return rc ? rc : deliver_done(g, e);
}

/* ---- the interface ----------------------------------------------------------------------------------------------- */

int model_generator_new(struct model_generator **out, struct model *m, const struct model_sampling *how,
                        model_generated_fn *deliver, model_step_fn *progress, void *ctx, struct err *e) {
    struct model_generator *g = mem_zalloc(sizeof *g, e);
    if (!g) return e->code;
    g->m = m;
    g->deliver = deliver;
    g->progress = progress;
    g->ctx = ctx;
    g->position_bytes = kernel_array_bytes(model_precision(m), kv_width(&m->config, m->config.n_layers));
    int rc = model_check_next_token(&m->config, e);
    if (!rc) rc = sampler_init(&g->sampler, how, model_n_tokens(m), e);
    if (!rc) rc = grad_tape_new(&g->t, m->device, false, model_precision(m), e);
    if (rc)
        model_generator_free(g);
    else
        *out = g;
    return rc;
}

static int check_prompt(const struct model *m, uint64_t seq, const uint32_t *prompt, size_t n, struct err *e) {
    const struct model_config *c = &m->config;
    if (n == 0) return err_set(e, ERR_DATA, "sequence %llu has an empty prompt", (unsigned long long)seq);
    if (n > c->context)
        return err_set(e, ERR_DATA,
                       "sequence %llu has %zu positions, the model's context is %u (tokenize --context %u)",
                       (unsigned long long)seq, n, c->context, c->context);
    for (size_t i = 0; i < n; i++)
        if (prompt[i] >= model_n_tokens(m))
            return err_set(e, ERR_DATA, "token %u at position %zu of sequence %llu is outside the vocabulary of %u",
                           prompt[i], i, (unsigned long long)seq, model_n_tokens(m));
    return 0;
}

int model_generator_add(struct model_generator *g, uint64_t seq, const uint32_t *prompt, size_t n, struct err *e) {
    int rc = check_prompt(g->m, seq, prompt, n, e);
    struct sequence *s = rc ? NULL : mem_zalloc(sizeof *s, e);
    if (!s) return e->code;
    s->number = seq;
    s->n_prompt = n;
    s->done = g->sampler.how.max_new == 0;
    rc = buf_append(&s->tokens, prompt, n * sizeof *prompt, e);
    if (rc) {
        sequence_free(g, s);
        return rc;
    }
    if (g->last)
        g->last->next = s;
    else
        g->first = s;
    g->last = s;
    if (s->done) return deliver_done(g, e);
    if (!g->waiting) g->waiting = s;
    g->n_waiting++;
    /* Wait for a full flight of prompts, so that a free place can be filled at once. */
    while (!rc && g->n_waiting >= MAX_FLIGHT) rc = step(g, e);
    return rc;
}

int model_generator_finish(struct model_generator *g, struct err *e) {
    int rc = 0;
    while (!rc && g->first) rc = step(g, e);
    return rc;
}

void model_generator_free(struct model_generator *g) {
    if (!g) return;
    while (g->first) {
        struct sequence *s = g->first;
        g->first = s->next;
        sequence_free(g, s);
    }
    grad_tape_free(g->t);
    sampler_release(&g->sampler);
    buf_release(&g->tokens);
    mem_free(g);
}

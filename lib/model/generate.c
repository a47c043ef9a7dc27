/* Generation: batched prefill, then one position a sequence and step from the key/value cache. */
#include "lib/model/model_internal.h"

#include <math.h>
#include <stdlib.h>

#define MAX_TOGETHER      64 /* sequences in flight */
#define PREFILL_POSITIONS 4096
#define CACHE_BYTES       ((size_t)1 << 30) /* what their caches may take together */

/* ---- sampling one token from a row of logits ------------------------------------------------------------------------- */

struct sampler {
    const struct model_sampling *how;
    uint32_t *ids; /* [vocab] candidates, descending */
    float *values;
    size_t vocab;
};

/* Draws from the softmax over the first n candidates by inversion, all of them taken when the mass runs out by rounding. */
static uint32_t draw_among(const struct sampler *s, size_t n, double u) {
    double total = 0, top = s->values[0], inv_t = 1 / s->how->temperature;
    for (size_t i = 0; i < n; i++) total += exp((s->values[i] - top) * inv_t);
    double left = u * total;
    for (size_t i = 0; i < n; i++) {
        left -= exp((s->values[i] - top) * inv_t);
        if (left < 0) return s->ids[i];
    }
    return s->ids[n - 1];
}

/* The smallest number of leading candidates, at most n, with probability mass of at least top_p; 0: n are not enough. lse is that of
 * the whole row over the temperature. */
static size_t nucleus(const struct sampler *s, size_t n, double lse, double top_p) {
    double mass = 0;
    for (size_t i = 0; i < n; i++) {
        mass += exp(s->values[i] / s->how->temperature - lse);
        if (mass >= top_p) return i + 1;
    }
    return 0;
}

static uint32_t sample_row(const struct sampler *s, const float *logits, double u) {
    const struct model_sampling *how = s->how;
    uint32_t id;
    if (how->temperature <= 0) {
        kernel_argmax(&id, logits, 1, s->vocab);
        return id;
    }
    float inv_t = (float)(1 / how->temperature);
    if (how->top_k == 0 && how->top_p >= 1) {
        kernel_sample(&id, &u, logits, 1, s->vocab, 1, inv_t);
        return id;
    }
    /* top-p is taken within top-k and of its mass, as Hugging Face's logits warpers chain them. */
    size_t k = how->top_k && how->top_k < s->vocab ? how->top_k : s->vocab;
    if (k < s->vocab || how->top_p >= 1) {
        kernel_topk(s->ids, s->values, logits, 1, s->vocab, k);
        if (how->top_p >= 1) return draw_among(s, k, u);
        double top = s->values[0], total = 0;
        for (size_t i = 0; i < k; i++) total += exp((s->values[i] - top) / how->temperature);
        size_t n = nucleus(s, k, top / how->temperature + log(total), how->top_p);
        return draw_among(s, n ? n : k, u);
    }
    float lse;
    kernel_logsumexp(&lse, logits, 1, s->vocab, inv_t);
    for (size_t n = 256;; n *= 8) {
        if (n > s->vocab) n = s->vocab;
        kernel_topk(s->ids, s->values, logits, 1, s->vocab, n);
        size_t take = nucleus(s, n, lse, how->top_p);
        if (take || n == s->vocab) return draw_among(s, take ? take : n, u);
    }
}

/* ---- a group of sequences -------------------------------------------------------------------------------------------------- */

struct group {
    struct model *m;
    struct grad_tape *t;
    struct kv_cache cache;
    struct sampler sampler;
    size_t n;
    uint64_t first_seq;
    const uint32_t **prompt;
    uint32_t *prompt_len;
    uint32_t **made;
    uint32_t *n_made;
    uint32_t *active, *next; /* sequences still running, and their newest token */
    size_t n_active;
    float *logits; /* [n][vocab] */
    struct arena memory;
};

static int cache_init(struct kv_cache *c, const struct model_config *config, size_t n_seqs, size_t capacity,
                      struct arena *a, struct err *e) {
    c->n_seqs = n_seqs;
    c->capacity = capacity;
    c->offset = arena_array(a, config->n_layers, sizeof *c->offset, e);
    c->length = arena_array(a, n_seqs, sizeof *c->length, e);
    c->keys = arena_array(a, n_seqs, sizeof *c->keys, e);
    c->values = arena_array(a, n_seqs, sizeof *c->values, e);
    if (!c->offset || !c->length || !c->keys || !c->values) return e->code;
    for (uint32_t l = 0; l < config->n_layers; l++) {
        c->offset[l] = c->stride;
        c->stride += 2 * capacity * config->layers[l].n_kv_heads * config->head_dim;
    }
    uint64_t total;
    if (!u64_mul(c->stride, n_seqs, &total)) return err_set(e, ERR_IO, "key/value cache too large");
    c->memory = mem_array(total, sizeof(float), e);
    return c->memory ? 0 : err_prefix(e, "key/value cache");
}

static int group_init(struct group *g, struct model *m, size_t n, size_t capacity, const struct model_sampling *how,
                      struct err *e) {
    *g = (struct group){.m = m, .n = n};
    struct arena *a = &g->memory;
    size_t vocab = m->config.vocab_size;
    g->sampler = (struct sampler){.how = how, .vocab = vocab};
    g->sampler.ids = arena_array(a, vocab, sizeof(uint32_t), e);
    g->sampler.values = arena_array(a, vocab, sizeof(float), e);
    g->prompt = arena_array(a, n, sizeof *g->prompt, e);
    g->prompt_len = arena_array(a, n, sizeof *g->prompt_len, e);
    g->made = arena_array(a, n, sizeof *g->made, e);
    g->n_made = arena_array(a, n, sizeof *g->n_made, e);
    g->active = arena_array(a, n, sizeof *g->active, e);
    g->next = arena_array(a, n, sizeof *g->next, e);
    g->logits = arena_array(a, n * vocab, sizeof(float), e);
    if (!g->sampler.ids || !g->sampler.values || !g->prompt || !g->prompt_len || !g->made || !g->n_made || !g->active ||
        !g->next || !g->logits)
        return e->code;
    for (size_t i = 0; i < n; i++) {
        g->made[i] = arena_array(a, how->max_new, sizeof(uint32_t), e);
        if (!g->made[i]) return e->code;
    }
    int rc = cache_init(&g->cache, &m->config, n, capacity, a, e);
    return rc ? rc : grad_tape_new(&g->t, false, e);
}

static void group_release(struct group *g) {
    grad_tape_free(g->t);
    mem_free(g->cache.memory);
    arena_release(&g->memory);
}

/* Runs the model over `in` (one input sequence per entry of seq) and leaves the logits of each sequence's last position in
 * `logits`, row i for seq[i]. */
static int step(struct group *g, const struct model_input *in, const uint32_t *seq, float *logits, struct err *e) {
    grad_reset(g->t);
    struct grad_var *h = model_graph_cached(g->m, g->t, in, &g->cache, seq, NULL, NULL, e);
    struct grad_var *last = h ? grad_scratch(g->t, in->n_seqs, h->cols) : NULL;
    struct grad_var *w = last ? model_head_leaf(g->m, g->t) : NULL;
    if (!w) {
        int rc = h ? grad_error(g->t, e) : 0;
        return rc ? rc : e->code;
    }
    size_t at = 0;
    for (size_t i = 0; i < in->n_seqs; i++) {
        at += in->lengths[i];
        kernel_copy(last->value + i * h->cols, h->value + (at - 1) * h->cols, h->cols);
    }
    kernel_matmul_nt(in->n_seqs, w->rows, w->cols, last->value, w->value, 0, logits);
    return 0;
}

/* Samples a token for each running sequence from its row of logits; those that are done leave the list. */
static void take_tokens(struct group *g) {
    const struct model_sampling *how = g->sampler.how;
    size_t kept = 0;
    for (size_t i = 0; i < g->n_active; i++) {
        uint32_t s = g->active[i], words[4];
        philox(how->seed, g->first_seq + s, g->n_made[s], words);
        double u = ((uint64_t)(words[0] >> 5) * 67108864.0 + (words[1] >> 6)) * 0x1p-53;
        uint32_t id = sample_row(&g->sampler, g->logits + i * g->sampler.vocab, u);
        g->made[s][g->n_made[s]++] = id;
        bool full = g->n_made[s] == how->max_new || g->cache.length[s] == g->cache.capacity;
        if (id == how->stop || full) continue;
        g->active[kept] = s;
        g->next[kept++] = id;
    }
    g->n_active = kept;
}

/* Prompts go in together, as many as make a batch of PREFILL_POSITIONS; then all draw their first token. */
static int prefill_group(struct group *g, const uint32_t *tokens, struct err *e) {
    uint32_t seq[MAX_TOGETHER];
    for (size_t first = 0, n; first < g->n; first += n) {
        size_t positions = 0;
        for (n = 0; first + n < g->n && (n == 0 || positions + g->prompt_len[first + n] <= PREFILL_POSITIONS); n++) {
            positions += g->prompt_len[first + n];
            seq[n] = (uint32_t)(first + n);
        }
        struct model_input in = {positions, n, tokens, g->prompt_len + first};
        int rc = step(g, &in, seq, g->logits + first * g->sampler.vocab, e);
        if (rc) return rc;
        tokens += positions;
    }
    for (size_t i = 0; i < g->n; i++) g->active[i] = (uint32_t)i;
    g->n_active = g->n;
    take_tokens(g);
    return 0;
}

static int decode_group(struct group *g, struct err *e) {
    uint32_t ones[MAX_TOGETHER];
    for (size_t i = 0; i < MAX_TOGETHER; i++) ones[i] = 1;
    while (g->n_active) {
        struct model_input in = {g->n_active, g->n_active, g->next, ones};
        int rc = step(g, &in, g->active, g->logits, e);
        if (rc) return rc;
        take_tokens(g);
    }
    return 0;
}

/* How many of the sequences left fit together, and the positions that the longest of them may reach. */
static size_t plan_group(const struct model *m, const struct model_input *in, size_t first, uint32_t max_new,
                         size_t *capacity) {
    size_t per_position = 0, n = 0;
    for (uint32_t l = 0; l < m->config.n_layers; l++)
        per_position += 2 * sizeof(float) * m->config.layers[l].n_kv_heads * m->config.head_dim;
    *capacity = 0;
    for (; first + n < in->n_seqs && n < MAX_TOGETHER; n++) {
        size_t want = (size_t)in->lengths[first + n] + max_new;
        if (want > m->config.context) want = m->config.context;
        if (want < *capacity) want = *capacity;
        if (n && want * (n + 1) > CACHE_BYTES / per_position) break;
        *capacity = want;
    }
    return n;
}

int model_generate(struct model *m, const struct model_input *prompts, uint64_t first_seq,
                   const struct model_sampling *how, model_generated_fn *fn, void *ctx, struct err *e) {
    const uint32_t *tokens = prompts->tokens;
    int rc = 0;
    for (size_t first = 0, n; !rc && first < prompts->n_seqs; first += n) {
        size_t capacity;
        n = plan_group(m, prompts, first, how->max_new, &capacity);
        struct group g;
        rc = group_init(&g, m, n, capacity, how, e);
        g.first_seq = first_seq + first;
        size_t positions = 0;
        for (size_t i = 0; !rc && i < n; i++) {
            g.prompt[i] = tokens + positions;
            g.prompt_len[i] = prompts->lengths[first + i];
            positions += g.prompt_len[i];
        }
        if (!rc && how->max_new) rc = prefill_group(&g, tokens, e);
        if (!rc) rc = decode_group(&g, e);
        for (size_t i = 0; !rc && i < n; i++)
            rc = fn(ctx, g.first_seq + i, g.prompt[i], g.prompt_len[i], g.made[i], g.n_made[i], e);
        tokens += positions;
        group_release(&g);
    }
    return rc;
}

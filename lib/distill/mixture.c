/* The order of training data: shuffled, and drawn from several files by weight. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "lib/distill/distill_internal.h"

#define MOST_FILES 1024

struct file {
    char *name;
    double weight[2]; /* in the two stages */
    struct knowledge_units units;
    uint32_t *order;                      /* [units.n] order of the current pass; NULL: as in the file */
    uint64_t at, times;                   /* units of the current pass; passes completed */
    uint64_t drawn, sequences, positions; /* positions in this stage; units and positions in total */
};
struct mixture {
    bool shuffle, has_decay;
    uint64_t seed;
    struct file *files[MOST_FILES];
    size_t n;

    const struct train_plan *plan;
    uint64_t batch_tokens;
    uint64_t step, step_positions; /* completed steps; positions of the next one so far */
    bool decay, ended;             /* in the decay stage; the epoch has ended */
    const struct knowledge_format *format;
};

int mixture_new(struct mixture **out, bool shuffle, uint64_t seed, struct err *e) {
    *out = mem_zalloc(sizeof **out, e);
    if (!*out) return e->code;
    (*out)->shuffle = shuffle;
    (*out)->seed = seed;
    return 0;
}

static void free_file(struct file *f) {
    if (!f) return;
    knowledge_units_release(&f->units);
    mem_free(f->order);
    mem_free(f->name);
    mem_free(f);
}

void mixture_free(struct mixture *m) {
    if (!m) return;
    for (size_t i = 0; i < m->n; i++) free_file(m->files[i]);
    mem_free(m);
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

static int read_file(const struct mixture *m, struct file *f, const struct mixture_file *from, struct err *e) {
    struct stream_reader *r;
    if (from->open(from->ctx, &r, e) || knowledge_units_find(&f->units, r, e)) return e->code;
    if (m->n && knowledge_check_same(&m->files[0]->units.format, &f->units.format, e))
        return err_prefix(e, "%s and %s disagree", m->files[0]->name, f->name);
    if (m->shuffle && !(f->order = mem_array(f->units.n, sizeof *f->order, e))) return e->code;
    if (from->open(from->ctx, &r, e)) return e->code;
    knowledge_units_open(&f->units, r);
    return 0;
}

int mixture_add(struct mixture *m, const struct mixture_file *from, struct err *e) {
    if (m->n == MOST_FILES) return err_set(e, ERR_USAGE, "more than %d files", MOST_FILES);
    struct file *f = mem_zalloc(sizeof *f, e);
    if (!f) return e->code;
    f->weight[0] = from->weight;
    f->weight[1] = from->decay_weight;
    if (!(f->name = mem_strdup(from->name, e)) || read_file(m, f, from, e)) {
        free_file(f);
        return e->code;
    }
    m->files[m->n++] = f;
    if (from->decay_weight > 0) m->has_decay = true;
    return 0;
}

bool mixture_has_packs(const struct mixture *m) {
    for (size_t i = 0; i < m->n; i++)
        if (m->files[i]->units.format.pack) return true;
    return false;
}

bool mixture_has_decay(const struct mixture *m) {
    return m->has_decay;
}

/* ---- drawing ----------------------------------------------------------------------------------------------------- */

static void shuffle(const struct mixture *m, size_t number) {
    struct file *f = m->files[number];
    struct rng r = rng_init(m->seed, (uint64_t)number << 40 | f->times);
    if (!f->order) return;
    for (size_t i = 0; i < f->units.n; i++) f->order[i] = (uint32_t)i;
    for (size_t i = f->units.n; i > 1; i--) {
        size_t k = (size_t)rng_below(&r, i);
        uint32_t other = f->order[k];
        f->order[k] = f->order[i - 1];
        f->order[i - 1] = other;
    }
}

static void see_stage(struct mixture *m) {
    uint64_t step = m->step + 1;
    bool decay = m->has_decay && m->plan && train_schedule_decays(train_schedule_at(m->plan, step), step);
    if (decay == m->decay) return;
    m->decay = decay;
    for (size_t i = 0; i < m->n; i++) m->files[i]->drawn = 0;
}

static size_t choose_file(const struct mixture *m) {
    size_t best = m->n;
    double least = 0;
    for (size_t i = 0; i < m->n; i++) {
        double weight = m->files[i]->weight[m->decay];
        double given = weight > 0 ? (double)m->files[i]->drawn / weight : 0;
        if (weight <= 0 || (best < m->n && given >= least)) continue;
        best = i;
        least = given;
    }
    return best;
}

static void end_step(struct mixture *m) {
    m->step += m->step_positions > 0;
    m->step_positions = 0;
}

/* Draws the next unit. False: the epoch is over. */
static bool draw(struct mixture *m, struct file **from, size_t *unit) {
    if (m->ended) return false;
    see_stage(m);
    size_t number = choose_file(m);
    struct file *f = *from = m->files[number];
    *unit = f->order ? f->order[f->at] : f->at;
    uint64_t n = f->units.units[*unit].positions;
    f->drawn += n;
    f->positions += n;
    f->sequences++;
    m->step_positions += n;
    if (m->step_positions >= m->batch_tokens) end_step(m);
    if (++f->at < f->units.n) return true;
    f->at = 0;
    f->times++;
    shuffle(m, number);
    m->ended = number == 0;
    return true;
}

void mixture_next_epoch(struct mixture *m) {
    end_step(m); /* the last step of an epoch takes what is left */
    m->ended = false;
}

void mixture_begin(struct mixture *m, const struct train_plan *plan, uint64_t batch_tokens, uint64_t epoch) {
    struct file *f;
    size_t unit;
    m->plan = plan;
    m->batch_tokens = batch_tokens;
    m->step = m->step_positions = 0;
    m->decay = m->ended = false;
    for (size_t i = 0; i < m->n; i++) {
        f = m->files[i];
        f->at = f->times = f->drawn = f->sequences = f->positions = 0;
        shuffle(m, i);
    }
    /* A checkpoint may claim any epoch, so replay at most the steps of the plan. */
    for (uint64_t i = 0; i < epoch && (!plan || m->step <= plan->now.steps); i++) {
        while ((!plan || m->step <= plan->now.steps) && draw(m, &f, &unit)) {
        }
        mixture_next_epoch(m);
    }
}

static int next(void *ctx, struct knowledge_rows *k, bool *more, struct err *e) {
    struct mixture *m = ctx;
    struct file *f;
    size_t unit;
    *more = draw(m, &f, &unit);
    return *more ? knowledge_units_read(&f->units, m->format, unit, k, e) : 0;
}

struct knowledge_source mixture_source(struct mixture *m, const struct knowledge_format *format) {
    m->format = format;
    return (struct knowledge_source){next, m, format};
}

/* Counts passes as if each pack were one sequence. */
static void count_epoch(struct mixture *m, const struct distill_options *o, struct distill_extent *x) {
    struct file *f;
    size_t unit;
    uint64_t pass = 0, step;
    while (step = m->step, draw(m, &f, &unit)) {
        uint64_t n = f->units.units[unit].positions;
        bool full = pass && pass + n > o->micro_tokens;
        x->positions += n;
        x->passes += !pass || full;
        pass = full ? n : pass + n;
        if (pass > x->largest_pass) x->largest_pass = pass;
        if (m->step > step) pass = 0;
    }
    mixture_next_epoch(m);
}

uint64_t mixture_count(struct mixture *m, const struct distill_options *o, uint64_t epochs, struct distill_extent *x) {
    struct distill_extent later = {0};
    *x = later;
    mixture_begin(m, NULL, o->batch_tokens, 0);
    for (uint64_t i = 0; i < epochs; i++) {
        count_epoch(m, o, i ? &later : x);
        if (!i) x->steps = m->step;
    }
    return m->step;
}

/* ---- checkpoint and report --------------------------------------------------------------------------------------- */

bool mixture_put(cJSON *to, const struct mixture *m) {
    char key[48], digest[DIGEST_TEXT_SIZE];
    bool ok = !m->shuffle || json_put_u64(to, "shuffle", m->seed);
    for (size_t i = 0; ok && i < m->n; i++) {
        const struct file *f = m->files[i];
        digest_text(f->units.content, digest);
        snprintf(key, sizeof key, "data %zu", i + 1);
        ok = json_put_str(to, key, digest);
        snprintf(key, sizeof key, "weight %zu", i + 1);
        ok = ok && json_put_f64(to, key, f->weight[0]);
        snprintf(key, sizeof key, "decay weight %zu", i + 1);
        ok = ok && (!m->has_decay || json_put_f64(to, key, f->weight[1]));
    }
    return ok;
}

const char *mixture_member_file(const struct mixture *m, const char *member) {
    static const char *const keys[] = {"data ", "weight ", "decay weight "};
    for (size_t i = 0; i < COUNT_OF(keys); i++) {
        uint64_t number;
        size_t n = strlen(keys[i]);
        if (!strncmp(member, keys[i], n) && parse_u64(member + n, &number) && number && number <= m->n)
            return m->files[number - 1]->name;
    }
    return NULL;
}

static bool put_file(cJSON *list, const struct file *f) {
    cJSON *o = cJSON_CreateObject();
    if (!o || !cJSON_AddItemToArray(list, o)) {
        cJSON_Delete(o);
        return false;
    }
    double times = (double)f->times + (double)f->at / (double)f->units.n;
    return json_put_str(o, "name", f->name) && json_put_u64(o, "units", f->sequences) &&
           json_put_u64(o, "positions", f->positions) && json_put_f64(o, "epochs", times);
}

bool mixture_put_report(cJSON *to, const struct mixture *m) {
    cJSON *list = cJSON_AddArrayToObject(to, "data");
    bool ok = list != NULL;
    for (size_t i = 0; ok && i < m->n; i++) ok = put_file(list, m->files[i]);
    return ok;
}

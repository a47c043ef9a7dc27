/* Scores a model's logits against labels in the data: masked tokens, classes of sequences, tags of tokens. */
#include "lib/metrics/metrics_internal.h"

#include <math.h>

struct labelling {
    struct model *m;
    struct knowledge_format f, as; /* as in META, and as rows are decoded: without response and fields */
    struct knowledge_rows rows;
    struct grad_tape *tape;
    size_t row; /* index of the first row of the current pass */
    struct buf losses, tops;
    struct moments nll;
    uint64_t right;
    uint64_t *truth, *guessed, *both; /* [classes]: labels, predictions, correct predictions; NULL for tokens */
};

int labelling_new(struct labelling **out, struct model *m, const struct knowledge_format *f, struct err *e) {
    enum stream_target target = model_predicts(&m->config);
    if (model_check_head(&m->config, e)) return e->code;
    if (f->target != target || target == TARGET_NEXT)
        return err_set(e, ERR_DATA, "the data has no labels for this model, whose target is \"%s\" (tokenize %s)",
                       stream_target_name(target), knowledge_labels_option(target));
    struct labelling *l = mem_zalloc(sizeof *l, e);
    if (!l) return e->code;
    l->m = m;
    l->f = l->as = *f;
    l->as.encoding = KNOW_NONE;
    l->as.n_fields = l->as.tap_positions = 0;
    size_t n = m->config.classes;
    bool classes = stream_target_classes(target);
    int rc = knowledge_fit_target(&l->as, target, model_columns(m), e);
    if (!rc && classes) l->truth = mem_array(3 * n, sizeof *l->truth, e);
    if (!rc && classes && !l->truth) rc = e->code;
    if (!rc) rc = grad_tape_new(&l->tape, m->device, false, model_precision(m), e);
    if (rc) {
        labelling_free(l);
        return rc;
    }
    if (classes) l->guessed = l->truth + n, l->both = l->guessed + n;
    *out = l;
    return 0;
}

void labelling_free(struct labelling *l) {
    if (!l) return;
    knowledge_rows_release(&l->rows);
    grad_tape_free(l->tape);
    buf_release(&l->losses);
    buf_release(&l->tops);
    mem_free(l->truth);
    mem_free(l);
}

static void add(struct labelling *l, uint32_t label, uint32_t top, double nll) {
    moments_add(&l->nll, nll);
    l->right += top == label;
    if (!l->truth) return;
    l->truth[label]++;
    l->guessed[top]++;
    l->both[label] += top == label;
}

static int score_block(void *ctx, size_t first, size_t rows, size_t columns, float *host_logits, struct err *e) {
    struct labelling *l = ctx;
    struct kernel_loss how = {.temperature = 1, .ce_weight = 1};
    struct kernel_target target = {.label = l->rows.labels + l->row + first};
    l->losses.len = l->tops.len = 0;
    if (buf_reserve(&l->losses, rows * sizeof(double), e) || buf_reserve(&l->tops, rows * sizeof(uint32_t), e))
        return e->code;
    double *nll = buf_f64(&l->losses);
    uint32_t *top = buf_u32(&l->tops);
    kernel_argmax(top, kernel_f32(host_logits), rows, columns);
    kernel_distill_loss(&how, &target, NULL, kernel_f32(host_logits), rows, columns, NULL, nll, kernel_none(DT_F32));
    for (size_t r = 0; r < rows; r++) {
        if (target.label[r] == UINT32_MAX) continue;
        if (!isfinite(nll[r])) return err_set(e, ERR_DATA, "the model gives no finite probabilities");
        add(l, target.label[r], top[r], nll[r]);
    }
    return 0;
}

/* Scores all complete passes of the queue. */
static int score_queue(struct labelling *l, bool last, struct err *e) {
    struct knowledge_rows *k = &l->rows;
    size_t seq = 0, at = 0, n, positions;
    while ((n = knowledge_next_pass(k, seq, METRICS_BATCH, UINT64_MAX, last, &positions)) > 0) {
        struct model_input in = {
            .n_positions = positions, .n_seqs = n, .tokens = k->tokens + at, .lengths = k->lengths + seq};
        if (k->types) in.types = k->types + at;
        l->row = knowledge_first_row(&l->as, seq, at);
        if (model_infer(l->m, l->tape, &in, NULL, NULL, score_block, l, e))
            return err_prefix(e, "sequences %llu to %llu", (unsigned long long)k->seqs[seq],
                              (unsigned long long)k->seqs[seq + n - 1]);
        seq += n;
        at += positions;
    }
    knowledge_drop(k, &l->as, seq);
    return 0;
}

int labelling_read(struct labelling *l, struct stream_reader *r, metrics_watch *watch, void *ctx, struct err *e) {
    struct batch b = {0};
    bool more = true;
    int rc = 0;
    while (!rc && !(rc = knowledge_read(r, &l->f, &b, &more, e)) && more) {
        if (knowledge_decode(&l->rows, &l->as, &b, e) || score_queue(l, false, e))
            rc = err_prefix(e, "%s", stream_reader_name(r));
        watch(ctx);
    }
    batch_release(&b);
    if (!rc && (knowledge_decode_end(&l->rows, e) || score_queue(l, true, e)))
        rc = err_prefix(e, "%s", stream_reader_name(r));
    if (!rc && !l->nll.n) rc = err_set(e, ERR_DATA, "%s: no labels", stream_reader_name(r));
    return rc;
}

uint64_t labelling_scored(const struct labelling *l) {
    return l->nll.n;
}

double labelling_perplexity(const struct labelling *l) {
    return exp(l->nll.mean);
}

static double share(uint64_t k, uint64_t n) {
    return n ? (double)k / (double)n : 0;
}

static double f1_of(const struct labelling *l, uint32_t class) {
    return share(2 * l->both[class], l->truth[class] + l->guessed[class]);
}

static bool put_classes(cJSON *o, const struct labelling *l) {
    double precision = 0, recall = 0, f1 = 0, met = 0;
    uint32_t n = l->m->config.classes;
    for (uint32_t i = 0; i < n; i++) {
        if (!l->truth[i] && !l->guessed[i]) continue;
        met++;
        precision += share(l->both[i], l->guessed[i]);
        recall += share(l->both[i], l->truth[i]);
        f1 += f1_of(l, i);
    }
    bool ok = json_put_f64(o, "macro_precision", precision / met) && json_put_f64(o, "macro_recall", recall / met) &&
              json_put_f64(o, "macro_f1", f1 / met);
    return ok && (n != 2 || json_put_f64(o, "f1", f1_of(l, 1)));
}

static const char *metric_name(enum stream_target target) {
    return target == TARGET_SEQUENCE ? "classification" : target == TARGET_TOKEN ? "token_classification" : "masked";
}

cJSON *labelling_json(const struct labelling *l, struct err *e) {
    cJSON *o = cJSON_CreateObject();
    bool ok = o && json_put_str(o, "metric", metric_name(l->as.target)) &&
              json_put_u64(o, "parameters", model_parameters(&l->m->config)) && json_put_u64(o, "labels", l->nll.n) &&
              put_share(o, "accuracy", l->right, l->nll.n);
    if (ok && l->truth) ok = put_classes(o, l);
    if (ok && !l->truth) ok = put_perplexity(o, "perplexity", &l->nll);
    if (ok && put_mean(o, "nll", &l->nll)) return o;
    cJSON_Delete(o);
    err_nomem(e, "results");
    return NULL;
}

/* Narrows the residual stream: chooses the channels that stay, and adapts the tensors along it. */
#include <math.h>

#include "lib/prune/prune_internal.h"

static const char *why_not(const struct model_config *c) {
    if (c->layer_kind != LAYER_TRANSFORMER) return "its layers are LSTMs";
    if (c->norm != NORM_RMS || c->norm_bias) return "its norms subtract the mean of all channels or have a bias";
    if (c->norm_place != NORM_PRE) return "its layers have norms after what they add";
    if (c->embed_norm) return "it has a norm after the embedding";
    if (model_has_role(c, ROLE_EMBED_PROJECTION)) return "its embedding is projected";
    if (c->output != OUTPUT_LM || c->no_final_norm) return "its output is not logits by way of a norm";
    return NULL;
}

/* The point where the output of a norm is observed; false: the norm is not on the residual stream. */
static bool point_of(enum model_role norm, enum model_point *out) {
    *out = norm == ROLE_ATTN_NORM ? POINT_ATTN_IN : norm == ROLE_FFN_NORM ? POINT_FFN_IN : POINT_HEAD_IN;
    return norm == ROLE_ATTN_NORM || norm == ROLE_FFN_NORM || norm == ROLE_NORM;
}

static void add_scores(const struct prune_plan *p, enum model_role norm, uint32_t layer, double *score) {
    enum model_point point;
    if (!model_has_role(p->from, norm) || !point_of(norm, &point)) return;
    const double *seen = stats_seq_sq(p->o->stats, point, layer);
    for (uint32_t i = 0; i < p->from->hidden; i++) score[i] += sqrt(seen[i]);
}

int prune_plan_hidden(struct prune_plan *p, uint32_t keep, struct err *e) {
    const struct model_config *c = p->from;
    const char *why = why_not(c);
    if (keep == c->hidden) return 0;
    if (keep > c->hidden)
        return err_set(e, ERR_USAGE, "cannot keep %u channels of the residual stream: it has %u", keep, c->hidden);
    if (why) return err_set(e, ERR_USAGE, "the residual stream of this model cannot be narrowed: %s", why);
    if (!p->o->stats)
        return err_set(e, ERR_USAGE, "choosing channels of the residual stream needs --stats (rill calibrate)");
    double *score = arena_array(&p->memory, c->hidden, sizeof *score, e);
    p->kept_hidden = score ? arena_array(&p->memory, keep, sizeof *p->kept_hidden, e) : NULL;
    if (!p->kept_hidden) return e->code;
    for (uint32_t l = 0; l < c->n_layers; l++) {
        add_scores(p, ROLE_ATTN_NORM, l, score);
        add_scores(p, ROLE_FFN_NORM, l, score);
    }
    add_scores(p, ROLE_NORM, 0, score);
    p->to.hidden = keep;
    /* epsilon is added to a mean of the same sum over fewer channels */
    p->to.norm_eps = (float)((double)c->norm_eps * c->hidden / keep);
    return prune_choose(score, c->hidden, keep, p->kept_hidden, &p->memory, e);
}

/*
 * The norm now divides by the root mean square of n channels instead of N. If the n channels carry a share r of the sum
 * of squares, multiplying the gain by sqrt(r N / n) keeps their outputs. r follows from the mean square of the norm's
 * outputs divided by its squared gain.
 */
double prune_kept_energy(const struct prune_plan *p, enum model_role norm, uint32_t layer, const float *gain) {
    enum model_point point;
    double all = 0, kept = 0;
    if (!point_of(norm, &point)) return 1;
    const double *sq = stats_sum_sq(p->o->stats, point, layer);
    for (uint32_t i = 0, k = 0; i < p->from->hidden; i++) {
        double x = gain[i] != 0 ? sq[i] / ((double)gain[i] * gain[i]) : 0;
        bool stays = k < p->to.hidden && p->kept_hidden[k] == i;
        all += x;
        if (stays) kept += x, k++;
    }
    return all > 0 ? kept / all : 1;
}

int prune_narrow(struct prune_layer *l, const struct prune_plan *p, struct model_slot old, double gain, struct err *e) {
    struct prune_tensor *t = &l->tensor[old.role];
    enum model_point point;
    if (!p->kept_hidden) return 0;
    int rc = prune_keep_along_role(l, old.role, AXIS_HIDDEN, p->kept_hidden, p->to.hidden, e);
    if (!rc) rc = prune_keep_along_role(l, old.role, AXIS_EMBED, p->kept_hidden, p->to.hidden, e);
    if (rc || model_role_info(old.role)->kind != KIND_GAIN || !point_of(old.role, &point)) return rc;
    float *x = (float *)(void *)t->data.data;
    double by = gain * sqrt((double)p->from->hidden / p->to.hidden);
    for (uint64_t i = 0; i < p->to.hidden; i++) x[i] = (float)(x[i] * by);
    return 0;
}

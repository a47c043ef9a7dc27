/* SmoothQuant: scales that shift the range of activations to weights. */
#include <math.h>
#include <string.h>

#include "lib/fold/fold_internal.h"

#define LEAST 1e-5 /* lower limit for max|w| and s */

/* Computes max|w| for each factor, over all matrices that read the pair. */
static int weight_range(const struct fold_scaling *s, const struct fold_pair *p, float *out, struct err *e) {
    const struct model *m = s->m;
    size_t end = model_slot_of_layer(&m->config, p->from.layer + 1);
    struct buf copy = {0};
    float *x;
    int rc = 0;
    for (size_t i = 0; i < p->n; i++) out[i] = (float)LEAST;
    for (size_t i = model_slot_of_layer(&m->config, p->from.layer); !rc && i < end; i++) {
        const struct model_param *w = &m->params[i];
        if (!fold_pair_feeds(&m->config, p, w->slot) || !model_role_is_matrix(w->slot.role)) continue;
        size_t cols = tensor_row_elems(&w->desc);
        rc = fold_take(w, &copy, &x, e);
        for (size_t k = 0; !rc && k < w->n; k++) {
            float *at = &out[fold_pair_factor(p, k % cols)];
            if (fabsf(x[k]) > *at) *at = fabsf(x[k]);
        }
    }
    buf_release(&copy);
    return rc;
}

int fold_smooth(const struct fold_scaling *s, const struct fold_pair *p, struct fold_report *r, struct err *e) {
    struct fold_inputs in;
    if (model_role_info(p->from.role)->kind != KIND_GAIN) {
        r->obstacle = "smooth is of what norms feed";
        return 0;
    }
    float *scale = mem_array(p->n, sizeof *scale, e);
    int rc = scale ? weight_range(s, p, scale, e) : e->code;
    if (!rc && fold_watch_inputs(s->watch, p->point, p->from.expert, &in)) {
        for (size_t i = 0; i < p->n; i++) {
            double v = pow(in.max[i], s->o->alpha) / pow(scale[i], 1 - s->o->alpha);
            scale[i] = (float)(v > LEAST ? v : LEAST);
        }
        rc = fold_pair_scale(s->m, p, scale, s->changed, e);
    }
    mem_free(scale);
    return rc;
}

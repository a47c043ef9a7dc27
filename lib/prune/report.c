/* The report of a run, and its JSON form. */
#include "lib/prune/prune_internal.h"

int prune_fill_report(struct prune_report *r, const struct prune_plan *p, struct err *e) {
    int rc = model_config_copy(&r->before, p->from, &r->memory, e);
    if (!rc) rc = model_config_copy(&r->after, &p->to, &r->memory, e);
    if (rc) return rc;
    r->kept_layers = arena_array(&r->memory, p->to.n_layers, sizeof *r->kept_layers, e);
    if (!r->kept_layers) return e->code;
    memcpy(r->kept_layers, p->old_layer, p->to.n_layers * sizeof *r->kept_layers);
    if (p->kept_experts) {
        r->kept_experts = arena_array(&r->memory, p->to.n_layers, sizeof *r->kept_experts, e);
        if (!r->kept_experts) return e->code;
    }
    for (uint32_t i = 0; p->kept_experts && i < p->to.n_layers; i++) {
        uint32_t n = p->to.layers[i].experts;
        if (n == 0) continue;
        r->kept_experts[i] = arena_array(&r->memory, n, sizeof **r->kept_experts, e);
        if (!r->kept_experts[i]) return e->code;
        memcpy(r->kept_experts[i], p->kept_experts[i], n * sizeof **r->kept_experts);
    }
    r->parameters_before = model_parameters(p->from);
    r->parameters_after = model_parameters(&p->to);
    return 0;
}

void prune_count(struct prune_report *r, struct prune_tensor_report *t, const float *x) {
    r->n_factored += t->rank != 0;
    if (t->rank) return;
    t->zeros = kernel_count_zeros(x, t->elems);
    r->zeros += t->zeros;
    r->matrix_weights += t->elems;
}

/* Appends ", 3-5" or ", 3". */
static size_t put_range(char *out, size_t size, uint32_t from, uint32_t to) {
    int n = from == to ? snprintf(out, size, "%u", from) : snprintf(out, size, "%u-%u", from, to);
    return n > 0 && (size_t)n < size ? (size_t)n : size - 1;
}

char *prune_layers_text(const struct prune_report *r, char out[PRUNE_LAYERS_TEXT]) {
    size_t n = 0;
    uint32_t next = 0; /* index into the kept layers */
    out[0] = 0;
    for (uint32_t i = 0, first; i < r->before.n_layers; i++) {
        if (next < r->after.n_layers && r->kept_layers[next] == i) {
            next++;
            continue;
        }
        for (first = i; i + 1 < r->before.n_layers && (next == r->after.n_layers || r->kept_layers[next] != i + 1);)
            i++;
        if (n + 32 > PRUNE_LAYERS_TEXT) {
            snprintf(out + n, PRUNE_LAYERS_TEXT - n, ", ...");
            break;
        }
        if (n) n += (size_t)snprintf(out + n, PRUNE_LAYERS_TEXT - n, ", ");
        n += put_range(out + n, PRUNE_LAYERS_TEXT - n, first, i);
    }
    return out;
}

void prune_report_release(struct prune_report *r) {
    arena_release(&r->memory);
}

/* ---- as members of a JSON object ---- */

/* The old numbers of each layer's experts; an empty list for a layer without experts. */
static bool put_experts(cJSON *o, const struct prune_report *r) {
    cJSON *layers = r->kept_experts ? cJSON_AddArrayToObject(o, "kept_experts") : NULL;
    for (uint32_t i = 0; layers && i < r->after.n_layers; i++) {
        cJSON *list = cJSON_CreateArray();
        if (!list || !cJSON_AddItemToArray(layers, list)) {
            cJSON_Delete(list);
            return false;
        }
        for (uint32_t k = 0; k < r->after.layers[i].experts; k++)
            if (!cJSON_AddItemToArray(list, cJSON_CreateNumber(r->kept_experts[i][k]))) return false;
    }
    return layers || !r->kept_experts;
}

int prune_report_put(const struct prune_report *r, cJSON *o, struct err *e) {
    cJSON *before = model_config_to_json(&r->before, e), *after = before ? model_config_to_json(&r->after, e) : NULL;
    cJSON *kept = cJSON_AddArrayToObject(o, "kept_layers");
    bool ok = after && kept && json_put_u64(o, "parameters_before", r->parameters_before) &&
              json_put_u64(o, "parameters_after", r->parameters_after) && json_put_u64(o, "zeros", r->zeros);
    for (uint32_t i = 0; ok && i < r->after.n_layers; i++)
        ok = cJSON_AddItemToArray(kept, cJSON_CreateNumber(r->kept_layers[i]));
    ok = ok && put_experts(o, r);
    if (ok && cJSON_AddItemToObject(o, "before", before))
        before = NULL;
    else
        ok = false;
    if (ok && cJSON_AddItemToObject(o, "after", after))
        after = NULL;
    else
        ok = false;
    cJSON_Delete(before);
    cJSON_Delete(after);
    return ok ? 0 : err_nomem(e, "report");
}

int prune_tensor_report_put(const struct prune_tensor_report *t, cJSON *list, struct err *e) {
    cJSON *o = cJSON_CreateObject();
    bool ok = o && json_put_str(o, "name", t->name) && json_put_u64(o, "weights", t->elems) &&
              (!t->rank || json_put_u64(o, "rank", t->rank)) && json_put_u64(o, "zeros", t->zeros) &&
              json_put_f64(o, "sparsity", t->elems ? (double)t->zeros / (double)t->elems : 0) &&
              (!t->has_error || json_put_f64(o, "output_error", t->output_error));
    if (ok && cJSON_AddItemToArray(list, o)) return 0;
    cJSON_Delete(o);
    return err_nomem(e, "report");
}

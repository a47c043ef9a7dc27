/* Converts the options of quantize: types, rules, plan and statistics. */
#include <string.h>

#include "lib/compress/compress_internal.h"

bool compress_has_target(const struct compress_quantize_options *o) {
    return o->target_bpw > 0 || o->target_size;
}

static int parse_dtype(const char *option, const char *name, unsigned *out, struct err *e) {
    int rc = name ? quant_dtype_parse(name, out, e) : 0;
    return rc ? err_prefix(e, "--%s", option) : 0;
}

static int parse_rules(struct compress *k, struct err *e) {
    const struct cli_list *list = &k->o->rules;
    k->rules = mem_array(list->n ? list->n : 1, sizeof *k->rules, e);
    if (!k->rules) return e->code;
    k->how.rules = k->rules;
    k->how.n_rules = list->n;
    for (size_t i = 0; i < list->n; i++)
        if (quant_rule_parse(list->items[i], &k->rules[i], e)) return err_prefix(e, "--tensor-type");
    return 0;
}

static int parse_types(struct compress *k, struct err *e) {
    const struct compress_quantize_options *o = k->o;
    if (!o->type && !o->plan && !compress_has_target(o))
        return err_set(e, ERR_USAGE, "--type, --plan, --target-bpw or --target-size is required");
    if (o->search && !o->data) return err_set(e, ERR_USAGE, "--search needs --data");
    int rc = o->type ? quant_type_parse(o->type, &k->how.type, e) : 0;
    if (!rc && o->pure && !k->how.type->mixture)
        rc = err_set(e, ERR_USAGE, "--pure: %s is the same everywhere, it has no mixture", k->how.type->name);
    if (!rc) rc = parse_dtype("head-type", o->head_type, &k->how.head_type, e);
    if (!rc) rc = parse_dtype("embed-type", o->embed_type, &k->how.embed_type, e);
    return rc ? rc : parse_rules(k, e);
}

/* The number of matrices with known inputs, one per group of experts. */
static uint64_t count_entries(const struct stats *s) {
    const struct model_config *c = stats_config(s);
    uint64_t n = 0, cols;
    double positions;
    for (size_t i = 0; i < model_slot_count(c); i++) {
        struct model_slot slot = model_slot_at(c, i);
        n += model_role_is_matrix(slot.role) && slot.expert == 0 && stats_input_sq(s, slot, &cols, &positions);
    }
    return n;
}

/* Describes the statistics for META, with the fields that llama-quantize records of its importance matrix. */
static int describe_stats(struct compress *k, struct err *e) {
    const char *path = k->o->stats;
    cJSON *o = k->origin = cJSON_CreateObject();
    bool ok = o && (!utf8_valid(path, strlen(path)) || json_put_str(o, "file", path));
    if (ok && k->of.imatrix) ok = imatrix_describe(k->of.imatrix, o);
    if (ok && k->of.stats)
        ok = json_put_u64(o, "entries_count", count_entries(k->of.stats)) &&
             json_put_u64(o, "chunks_count", stats_sequences(k->of.stats));
    k->how.origin = o;
    return ok ? 0 : err_nomem(e, "description of the statistics");
}

/* Whether the method works layer by layer with --data, or from the second moments of --stats. */
static int choose_calibration(struct compress *k, struct err *e) {
    const struct compress_quantize_options *o = k->o;
    bool gptq = strcmp(o->method, "gptq") == 0, learned = strcmp(o->method, "learned") == 0;
    bool known = k->of.stats && stats_moments_in(k->of.stats) == STATS_MOMENTS_ALL;
    k->how.fed_by_stats = gptq && !o->data && known;
    k->how.calibrated = (gptq || learned) && !k->how.fed_by_stats;
    if (!k->how.calibrated || o->data || o->dry_run) return 0;
    if (!gptq) return err_set(e, ERR_USAGE, "--method %s needs --data", o->method);
    if (!o->stats) return err_set(e, ERR_USAGE, "--method gptq needs --data, or --stats from calibrate --moments");
    return err_set(
        e, ERR_DATA,
        "%s: no second moments of the inputs of all matrices, which --method gptq needs without --data (rill "
        "calibrate --moments)",
        o->stats);
}

int compress_read_settings(struct compress *k, struct err *e) {
    const struct compress_quantize_options *o = k->o;
    k->how = (struct quant_options){.pure = o->pure,
                                    .strict = o->strict,
                                    .grow = cli_given(k->c, "force"),
                                    .feedback = {.damp = o->damp, .act_order = true, .sweeps = (unsigned)o->sweeps},
                                    .clip = o->clip,
                                    .cache = o->cache,
                                    .hqq = !strcmp(o->method, "hqq"),
                                    .fuses_qkv = target_fuses_qkv,
                                    .foreign_name = target_tensor_name};
    int rc = parse_types(k, e);
    if (!rc && o->cache) rc = quant_cache_open(o->cache, e);
    if (!rc && o->plan) rc = compress_read_plan(k->c, o->plan, &k->plan, e);
    if (!rc && o->plan) k->how.plan = (const char *)k->plan.data, k->how.plan_name = o->plan;
    if (!rc && o->stats) rc = compress_read_calibration(&k->of, k->c, o->stats, e);
    if (!rc && o->stats) rc = describe_stats(k, e);
    if (!rc) rc = choose_calibration(k, e);
    k->how.stats = k->of.stats;
    if (k->of.imatrix) k->how.importance = imatrix_importance, k->how.importance_ctx = k->of.imatrix;
    return rc;
}

void compress_release(struct compress *k) {
    compress_calibration_release(&k->of);
    cJSON_Delete(k->origin);
    buf_release(&k->plan);
    buf_release(&k->layers);
    mem_free(k->rules);
}

/* The configuration of a new model: an architecture's traits plus the requested shape. */
#include <inttypes.h>

#include "lib/formats/arch_internal.h"

#define DEFAULT_THETA   10000
#define DEFAULT_EPS     1e-5
#define DEFAULT_EXPERTS 8
#define DEFAULT_TAKEN   2

static const char *what_lacks(const struct model_config *c, const struct arch_shape *s, const char **option) {
    const struct {
        bool asked, lacks;
        const char *option, *why;
    } checks[] = {
        {s->rope_theta != 0, c->positions == POSITIONS_LEARNED, "rope-theta", "learns its positions"},
        {s->rotary_dims != 0, c->positions == POSITIONS_LEARNED, "rotary-dims", "learns its positions"},
        {s->rope_theta != 0, c->positions == POSITIONS_NONE, "rope-theta", "has no positions"},
        {s->rotary_dims != 0, c->positions == POSITIONS_NONE, "rotary-dims", "has no positions"},
        {s->experts != 0, !c->experts_per_token, "experts", "has no experts"},
        {s->experts_per_token != 0, !c->experts_per_token, "experts-per-token", "has no experts"},
        {s->heads != 0, c->layer_kind == LAYER_LSTM, "heads", "has no attention"},
        {s->kv_heads != 0, c->layer_kind == LAYER_LSTM, "kv-heads", "has no attention"},
        {s->head_dim != 0, c->layer_kind == LAYER_LSTM, "head-dim", "has no attention"},
        {s->window != 0, c->layer_kind == LAYER_LSTM, "window", "has no attention"},
        {s->ffn != 0, c->layer_kind == LAYER_LSTM, "ffn", "has no feed-forward parts"},
        {s->norm_eps >= 0, c->layer_kind == LAYER_LSTM, "norm-eps", "has no norms"},
        {s->untied, c->output == OUTPUT_CLASSES, "untied", "has no output matrix but its classifier"},
        {s->embed != 0, c->layer_kind != LAYER_LSTM, "embed", "has embeddings of the hidden size"},
        {s->classes != 0, c->output != OUTPUT_CLASSES, "classes", "is made with another head"},
    };
    for (size_t i = 0; i < COUNT_OF(checks); i++)
        if (checks[i].asked && checks[i].lacks) {
            *option = checks[i].option;
            return checks[i].why;
        }
    return NULL;
}

/* Refuses what the architecture does not have, and requires what it needs. */
static int check_asked(const struct model_config *c, const struct arch_shape *s, const struct model_config *like,
                       struct err *e) {
    const char *option, *why = what_lacks(c, s, &option);
    if (why) return err_set(e, ERR_USAGE, "--%s has no effect with --arch %s, which %s", option, c->arch, why);
    if (c->layer_kind == LAYER_TRANSFORMER && !s->heads) return err_set(e, ERR_USAGE, "--heads N is required");
    if (c->layer_kind == LAYER_TRANSFORMER && !s->ffn) return err_set(e, ERR_USAGE, "--ffn N is required");
    if (c->layer_kind == LAYER_TRANSFORMER && !s->head_dim && s->hidden % s->heads)
        return err_set(e, ERR_USAGE, "hidden size %" PRIu64 " is not a multiple of %" PRIu64 " heads: give --head-dim",
                       s->hidden, s->heads);
    if (c->output == OUTPUT_CLASSES && !s->classes && !like->classes)
        return err_set(e, ERR_USAGE, "--classes N is required: the model that is read is not a classifier");
    return 0;
}

static struct model_layer layer_of(const struct model_config *c, const struct arch_shape *s) {
    bool experts = c->experts_per_token != 0;
    if (c->layer_kind == LAYER_LSTM) return (struct model_layer){.n_heads = 0};
    return (struct model_layer){.n_heads = s->heads,
                                .n_kv_heads = s->kv_heads ? s->kv_heads : s->heads,
                                .ffn = experts ? 0 : s->ffn,
                                .experts = !experts     ? 0
                                           : s->experts ? s->experts
                                                        : DEFAULT_EXPERTS,
                                .expert_ffn = experts ? s->ffn : 0};
}

static void set_windows(struct model_config *c, const struct arch_shape *s) {
    uint64_t n = s->window_pattern ? s->window_pattern : arch_window_pattern(c->arch);
    for (uint32_t i = 0; i < c->n_layers; i++)
        c->layers[i].window = n > 1 && (i + 1) % n == 0 ? 0 : (uint32_t)s->window;
}

/* Sets the values that all layers share. */
static void set_sizes(struct model_config *c, const struct arch_shape *s, const struct model_config *like) {
    if (c->experts_per_token)
        c->experts_per_token = s->experts_per_token ? (uint32_t)s->experts_per_token : DEFAULT_TAKEN;
    c->n_layers = (uint32_t)s->layers;
    c->hidden = (uint32_t)s->hidden;
    c->context = (uint32_t)s->context;
    c->vocab_size = like->vocab_size;
    c->tied = !s->untied && (c->output == OUTPUT_LM || c->output == OUTPUT_MASKED_LM);
    if (c->layer_kind == LAYER_TRANSFORMER) {
        c->head_dim = (uint32_t)(s->head_dim ? s->head_dim : s->hidden / s->heads);
        if (c->norm_eps == 0 || s->norm_eps >= 0) c->norm_eps = (float)(s->norm_eps >= 0 ? s->norm_eps : DEFAULT_EPS);
    }
    uint64_t embed = s->embed;
    if (!embed && s->copy_embed && c->layer_kind == LAYER_LSTM) embed = model_embed_dim(like);
    if (embed != s->hidden) c->embed_dim = (uint32_t)embed;
    if (c->output == OUTPUT_CLASSES) c->classes = s->classes ? (uint32_t)s->classes : like->classes;
    if (c->positions != POSITIONS_ROTARY) return;
    c->rope.theta = s->rope_theta != 0 ? s->rope_theta : DEFAULT_THETA;
    c->rope.dims = (uint32_t)s->rotary_dims;
}

int arch_new_config(const struct arch_shape *s, const struct model_config *like, struct model_config *out,
                    struct arena *a, struct err *e) {
    if (arch_traits(s->arch, out, e)) return e->code = ERR_USAGE; /* a mistake of the user's, not in a file */
    if (check_asked(out, s, like, e)) return e->code;
    set_sizes(out, s, like);
    out->layers = arena_array(a, out->n_layers, sizeof *out->layers, e);
    if (!out->layers) return e->code;
    for (uint32_t i = 0; i < out->n_layers; i++) out->layers[i] = layer_of(out, s);
    set_windows(out, s);
    arch_complete(out);
    if (model_config_check(out, e)) return e->code = ERR_USAGE;
    if (!s->copy_embed || model_embed_dim(out) == model_embed_dim(like)) return 0;
    return err_set(e, ERR_USAGE, "--copy-embed: embeddings of %u, and the new model has some of %u",
                   model_embed_dim(like), model_embed_dim(out));
}

int arch_copy_labels(cJSON *meta, const struct model_config *c, const struct model_head *like, struct err *e) {
    const cJSON *labels = cJSON_GetObjectItemCaseSensitive(like->meta, LABELS_KEY);
    if (!labels || !c->classes || c->classes != like->config.classes) return 0;
    cJSON *copy = cJSON_Duplicate(labels, true);
    if (copy && cJSON_AddItemToObject(meta, LABELS_KEY, copy)) return 0;
    cJSON_Delete(copy);
    return err_nomem(e, "names of classes");
}

/*
 * BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019), XLM-RoBERTa and CamemBERT, which differ from RoBERTa only in
 * their tokenizers, and DistilBERT (Sanh et al. 2019): encoders with post-norm. The class determines the output: hidden
 * states, or logits of masked tokens, of classes of sequences or tokens, or of the start and end of an answer.
 */
#include "lib/formats/arch_internal.h"

static const struct hf_numbers numbers = {.layers = "num_hidden_layers",
                                          .hidden = "hidden_size",
                                          .heads = "num_attention_heads",
                                          .ffn = "intermediate_size",
                                          .context = "max_position_embeddings",
                                          .eps = "layer_norm_eps",
                                          .act = "hidden_act"};

static const struct hf_key keys[] = {
    HF_KEY("layer_norm_eps", HF_READ), HF_KEY("hidden_act", HF_READ), HF_KEY("type_vocab_size", HF_READ),
    HF_KEY("is_decoder", HF_OFF), /* a causal mask */
    HF_KEY_TEXT("position_embedding_type", HF_TEXT, "absolute"), HF_KEY_TEXT("directionality", HF_TEXT, "bidi"),
    /* for the pooler of the original implementation; transformers reads none of them */
    HF_KEY("pooler_fc_size", HF_READ), HF_KEY("pooler_num_attention_heads", HF_READ),
    HF_KEY("pooler_num_fc_layers", HF_READ), HF_KEY("pooler_size_per_head", HF_READ), HF_KEY("pooler_type", HF_READ),
    HF_KEY("output_past", HF_READ), /* for a cache */
};

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

/* Checkpoints converted from the original implementation name a norm's weight and bias gamma and beta. */
#define LINEAR(role, name)                                                                                             \
    {role, name ".weight", 0}, {                                                                                       \
        role##_BIAS, name ".bias", 0                                                                                   \
    }
#define LAYER_NORM(role, name)                                                                                         \
    LINEAR(role, name), {role, name ".gamma", 0}, {                                                                    \
        role##_BIAS, name ".beta", 0                                                                                   \
    }

#define ENCODER(base)                                                                                                  \
    {ROLE_EMBED, base "embeddings.word_embeddings.weight", 0},                                                         \
        {ROLE_POSITION_EMBED, base "embeddings.position_embeddings.weight", 0},                                        \
        {ROLE_TYPE_EMBED, base "embeddings.token_type_embeddings.weight", 0},                                          \
        LAYER_NORM(ROLE_EMBED_NORM, base "embeddings.LayerNorm"),                                                      \
        LINEAR(ROLE_Q, base "encoder.layer.#.attention.self.query"),                                                   \
        LINEAR(ROLE_K, base "encoder.layer.#.attention.self.key"),                                                     \
        LINEAR(ROLE_V, base "encoder.layer.#.attention.self.value"),                                                   \
        LINEAR(ROLE_O, base "encoder.layer.#.attention.output.dense"),                                                 \
        LAYER_NORM(ROLE_ATTN_POST_NORM, base "encoder.layer.#.attention.output.LayerNorm"),                            \
        LINEAR(ROLE_UP, base "encoder.layer.#.intermediate.dense"),                                                    \
        LINEAR(ROLE_DOWN, base "encoder.layer.#.output.dense"),                                                        \
        LAYER_NORM(ROLE_FFN_POST_NORM, base "encoder.layer.#.output.LayerNorm")

#define ANSWERS                                                                                                        \
    {ROLE_CLASSIFIER, "qa_outputs.weight", OF_SPAN}, {                                                                 \
        ROLE_CLASSIFIER_BIAS, "qa_outputs.bias", OF_SPAN                                                               \
    }

/* While the decoder's weight is tied to the embedding, its bias is an alias of predictions.bias. */
static const struct arch_tensor bert_tensors[] = {
    ENCODER("bert."),
    LINEAR(ROLE_POOLER, "bert.pooler.dense"),
    LINEAR(ROLE_TRANSFORM, "cls.predictions.transform.dense"),
    LAYER_NORM(ROLE_TRANSFORM_NORM, "cls.predictions.transform.LayerNorm"),
    {ROLE_HEAD, "cls.predictions.decoder.weight", 0},
    {ROLE_HEAD_BIAS, "cls.predictions.decoder.bias", OF_UNTIED},
    {ROLE_HEAD_BIAS, "cls.predictions.bias", 0},
    ANSWERS,
    LINEAR(ROLE_CLASSIFIER, "classifier"),
};
static const char *const bert_unread[] = {"cls.", "pooler.", NULL};

/* Sequence classifiers have a dense layer of their own in place of BERT's pooler. */
static const struct arch_tensor roberta_tensors[] = {
    ENCODER("roberta."),
    {ROLE_POOLER, "classifier.dense.weight", OF_CLASSES},
    {ROLE_POOLER_BIAS, "classifier.dense.bias", OF_CLASSES},
    LINEAR(ROLE_POOLER, "roberta.pooler.dense"),
    LINEAR(ROLE_TRANSFORM, "lm_head.dense"),
    LINEAR(ROLE_TRANSFORM_NORM, "lm_head.layer_norm"),
    {ROLE_HEAD, "lm_head.decoder.weight", 0},
    {ROLE_HEAD_BIAS, "lm_head.decoder.bias", OF_UNTIED},
    {ROLE_HEAD_BIAS, "lm_head.bias", 0},
    {ROLE_CLASSIFIER, "classifier.out_proj.weight", OF_CLASSES},
    {ROLE_CLASSIFIER_BIAS, "classifier.out_proj.bias", OF_CLASSES},
    ANSWERS,
    LINEAR(ROLE_CLASSIFIER, "classifier"),
};
static const char *const roberta_unread[] = {"lm_head.", "pooler.", NULL};

static const struct arch_tensor distilbert_tensors[] = {
    {ROLE_EMBED, "distilbert.embeddings.word_embeddings.weight", 0},
    {ROLE_POSITION_EMBED, "distilbert.embeddings.position_embeddings.weight", 0},
    LAYER_NORM(ROLE_EMBED_NORM, "distilbert.embeddings.LayerNorm"),
    LINEAR(ROLE_Q, "distilbert.transformer.layer.#.attention.q_lin"),
    LINEAR(ROLE_K, "distilbert.transformer.layer.#.attention.k_lin"),
    LINEAR(ROLE_V, "distilbert.transformer.layer.#.attention.v_lin"),
    LINEAR(ROLE_O, "distilbert.transformer.layer.#.attention.out_lin"),
    LINEAR(ROLE_ATTN_POST_NORM, "distilbert.transformer.layer.#.sa_layer_norm"),
    LINEAR(ROLE_UP, "distilbert.transformer.layer.#.ffn.lin1"),
    LINEAR(ROLE_DOWN, "distilbert.transformer.layer.#.ffn.lin2"),
    LINEAR(ROLE_FFN_POST_NORM, "distilbert.transformer.layer.#.output_layer_norm"),
    LINEAR(ROLE_TRANSFORM, "vocab_transform"),
    LINEAR(ROLE_TRANSFORM_NORM, "vocab_layer_norm"),
    LINEAR(ROLE_HEAD, "vocab_projector"),
    LINEAR(ROLE_POOLER, "pre_classifier"),
    ANSWERS,
    LINEAR(ROLE_CLASSIFIER, "classifier"),
};
static const char *const distilbert_unread[] = {"vocab_transform.", "vocab_layer_norm.", "vocab_projector.", NULL};

/* llama.cpp loads all three as "bert". Its classifier consists of the pooler and the output layer. */
#define GGUF_ENCODER                                                                                                   \
    LINEAR(ROLE_ATTN_POST_NORM, "blk.#.attn_output_norm"), LINEAR(ROLE_FFN_POST_NORM, "blk.#.layer_output_norm"),      \
        {ROLE_POOLER, "cls.weight", OF_CLASSES}, {ROLE_POOLER_BIAS, "cls.bias", OF_CLASSES},                           \
        LINEAR(ROLE_CLASSIFIER, "cls.output")
static const struct arch_tensor gguf_tensors[] = {GGUF_ENCODER};
static const struct arch_tensor gguf_roberta_tensors[] = {
    GGUF_ENCODER,
    {ROLE_POSITION_EMBED, "position_embd.weight", FROM_FIRST},
};

/* ---- config.json ------------------------------------------------------------------------------------------------- */

static int need_width(const cJSON *json, const char *key, struct err *e) {
    uint64_t width;
    return json_get_u64(json, key, 1, MODEL_MAX_DIM, &width, e);
}

static int read_types(struct model_config *c, const cJSON *json, struct err *e) {
    uint64_t types = 2;
    int rc = json_opt_u64(json, "type_vocab_size", 1, MODEL_MAX_DIM, &types, e);
    c->token_types = (uint32_t)types;
    return rc;
}

/* Sets what follows from the output of the class. */
static void set_output(struct model_config *c, bool pooler) {
    c->head_bias = c->output == OUTPUT_MASKED_LM;
    c->pooler = pooler;
}

static int read(struct model_config *c, const cJSON *json, struct err *e) {
    set_output(c, c->output == OUTPUT_NONE || c->output == OUTPUT_CLASSES);
    int rc = need_width(json, numbers.ffn, e);
    return rc ? rc : read_types(c, json, e);
}

static bool write(cJSON *json, const struct model_config *c) {
    return json_put_u64(json, "type_vocab_size", c->token_types);
}

/* Head size is the hidden size divided by the number of heads, and K and V have as many heads as Q. */
static int check_heads(const struct model_config *c, struct err *e) {
    const struct model_layer *l = &c->layers[0];
    if ((uint64_t)l->n_heads * c->head_dim != c->hidden)
        return err_set(e, ERR_DATA, "%u heads of %u in a hidden size of %u: transformers' %s has heads of %u / %u",
                       l->n_heads, c->head_dim, c->hidden, c->arch, c->hidden, l->n_heads);
    if (l->n_kv_heads == l->n_heads) return 0;
    return err_set(e, ERR_DATA, "%u heads share %u key/value heads, which transformers' %s cannot", l->n_heads,
                   l->n_kv_heads, c->arch);
}

static int check(const struct model_config *c, struct err *e) {
    if (!c->token_types) return err_set(e, ERR_DATA, "no token types: transformers' %s has one at least", c->arch);
    return check_heads(c, e);
}

/* ---- RoBERTa: positions start at the padding token's id + 1 ------------------------------------------------------ */

static int check_gelu(const struct model_config *c, struct err *e) {
    if (c->output != OUTPUT_MASKED_LM || c->act == ACT_GELU) return 0;
    return err_set(e, ERR_DATA, "\"hidden_act\": the masked-LM head of a %s has gelu, and the layers have %s", c->arch,
                   hf_act_name(c->act));
}

static int roberta_read(struct model_config *c, const cJSON *json, struct err *e) {
    uint64_t pad = 1;
    int rc = read(c, json, e);
    if (!rc) rc = json_opt_u64(json, "pad_token_id", 0, MODEL_MAX_DIM - 2, &pad, e);
    if (!rc) rc = check_gelu(c, e);
    if (rc) return rc;
    c->position_offset = (uint32_t)pad + 1;
    if (c->context <= c->position_offset)
        return err_set(e, ERR_DATA, "\"max_position_embeddings\": %u positions, of which the first is number %u",
                       c->context, c->position_offset);
    c->context -= c->position_offset;
    return 0;
}

static bool roberta_write(cJSON *json, const struct model_config *c) {
    cJSON *context = cJSON_CreateNumber((double)c->context + c->position_offset);
    if (!context) return false;
    if (!cJSON_ReplaceItemInObjectCaseSensitive(json, numbers.context, context)) {
        cJSON_Delete(context);
        return false;
    }
    return write(json, c) && json_put_u64(json, "pad_token_id", c->position_offset - 1);
}

static int roberta_check(const struct model_config *c, struct err *e) {
    int rc = check(c, e);
    if (!rc) rc = check_gelu(c, e);
    if (!rc && !c->position_offset) rc = err_set(e, ERR_DATA, "a roberta whose positions begin at 0");
    return rc;
}

/* ---- DistilBERT -------------------------------------------------------------------------------------------------- */

static const struct hf_numbers distilbert_numbers = {.layers = "n_layers",
                                                     .hidden = "dim",
                                                     .heads = "n_heads",
                                                     .ffn = "hidden_dim",
                                                     .context = "max_position_embeddings",
                                                     .act = "activation"};

static const struct hf_key distilbert_keys[] = {
    HF_KEY("n_layers", HF_READ),
    HF_KEY("dim", HF_READ),
    HF_KEY("n_heads", HF_READ),
    HF_KEY("hidden_dim", HF_READ),
    HF_KEY("activation", HF_READ),
    HF_KEY("is_decoder", HF_OFF),
    /* how a new position table is filled; dropout; a tie that transformers expresses by tie_word_embeddings */
    HF_KEY("sinusoidal_pos_embds", HF_READ),
    HF_KEY("qa_dropout", HF_READ),
    HF_KEY("seq_classif_dropout", HF_READ),
    HF_KEY("tie_weights_", HF_READ),
    HF_KEY("output_past", HF_READ),
};

static int distilbert_read(struct model_config *c, const cJSON *json, struct err *e) {
    set_output(c, c->output == OUTPUT_CLASSES);
    return need_width(json, distilbert_numbers.ffn, e);
}

static int distilbert_check(const struct model_config *c, struct err *e) {
    if (c->norm_eps != 1e-12f)
        return err_set(e, ERR_DATA, "a norm epsilon of %g: transformers' distilbert has 1e-12", (double)c->norm_eps);
    return check_heads(c, e);
}

/* ---- GGUF -------------------------------------------------------------------------------------------------------- */

#define POOLING_RANK 4 /* llama.cpp's LLAMA_POOLING_TYPE_RANK: through the classifier */
#define TYPES_KEY    "tokenizer.ggml.token_type_count"
#define OFFSET_KEY   "rill.position_offset"

static const struct gguf_key gguf_keys[] = {
    {"attention.layer_norm_epsilon", GGUF_READ, 0, NULL},
    {"attention.causal", GGUF_OFF, 0, NULL},
    {"pooling_type", GGUF_READ, 0, NULL},
    {"classifier.output_labels", GGUF_READ, 0, NULL},
};

/* Pooling is left to the program that runs the encoder: hidden states do not depend on it. */
static int read_pooling(const struct gguf_file *g, const char *prefix, struct err *e) {
    static const char *const names[] = {NULL, "mean", "cls", "last"};
    char key[64];
    uint64_t type = 0;
    snprintf(key, sizeof key, "%s.pooling_type", prefix);
    int rc = gguf_opt_u64(g, key, 0, UINT32_MAX, &type, e);
    if (!rc && type > 0 && type < COUNT_OF(names))
        log_line(LOG_WARN, "key '%s' is not kept: the model makes hidden states (llama.cpp: --pooling %s)", key,
                 names[type]);
    return rc;
}

static int need_not_causal(const struct gguf_file *g, const char *prefix, struct err *e) {
    char key[64];
    snprintf(key, sizeof key, "%s.attention.causal", prefix);
    return gguf_find(g, key) ? 0 : err_set(e, ERR_DATA, "key '%s' is missing: llama.cpp assumes that it is true", key);
}

static int read_token_types(struct model_config *c, const struct gguf_file *g, struct err *e) {
    const struct raw_tensor *table = raw_table_find(&g->tensors, "token_types.weight");
    uint64_t rows = table && table->rank == 2 ? table->dims[0] : 0, said = rows;
    if (rows > MODEL_MAX_DIM) return err_set(e, ERR_DATA, "tensor '%s' has too many rows", table->name);
    int rc = gguf_opt_u64(g, TYPES_KEY, 1, MODEL_MAX_DIM, &said, e);
    if (!rc && table && said != rows)
        rc = err_set(e, ERR_DATA, "key '%s' is %llu, but 'token_types.weight' has %llu rows", TYPES_KEY,
                     (unsigned long long)said, (unsigned long long)rows);
    c->token_types = (uint32_t)rows;
    return rc;
}

static int gguf_read(struct model_config *c, const struct gguf_file *g, const char *prefix, struct arena *a,
                     struct err *e) {
    const struct raw_tensor *classifier = raw_table_find(&g->tensors, "cls.output.weight");
    (void)a;
    c->tied = false;
    c->output = classifier ? OUTPUT_CLASSES : OUTPUT_NONE;
    set_output(c, classifier && raw_table_find(&g->tensors, "cls.weight"));
    if (classifier && (classifier->rank != 2 || classifier->dims[0] < 1 || classifier->dims[0] > MODEL_MAX_DIM))
        return err_set(e, ERR_DATA, "tensor '%s' is not a matrix with a row for each class", classifier->name);
    c->classes = classifier ? (uint32_t)classifier->dims[0] : 0;
    int rc = need_not_causal(g, prefix, e);
    if (!rc) rc = read_token_types(c, g, e);
    return rc ? rc : read_pooling(g, prefix, e);
}

static int gguf_read_roberta(struct model_config *c, const struct gguf_file *g, const char *prefix, struct arena *a,
                             struct err *e) {
    uint64_t offset = c->position_offset;
    int rc = gguf_opt_u64(g, OFFSET_KEY, 1, MODEL_MAX_DIM, &offset, e);
    c->position_offset = (uint32_t)offset;
    return rc ? rc : gguf_read(c, g, prefix, a, e);
}

static void gguf_write(struct gguf_header *h, const struct model_config *c) {
    gguf_key_bool(h, ".attention.causal", false);
    gguf_key_u32(h, TYPES_KEY, c->token_types ? c->token_types : 1); /* llama.cpp requires one even without a table */
    if (c->position_offset) gguf_key_u32(h, OFFSET_KEY, c->position_offset);
    if (c->output == OUTPUT_CLASSES) gguf_key_u32(h, ".pooling_type", POOLING_RANK);
}

static int gguf_check(const struct model_config *c, struct err *e) {
    if (c->output == OUTPUT_MASKED_LM)
        return err_set(e, ERR_DATA,
                       "a masked-LM head, which llama.cpp's bert does not have (its encoder alone: import it with "
                       "\"architectures\": [\"BertModel\"] or its like in config.json)");
    if (c->output == OUTPUT_TOKEN_CLASSES || c->output == OUTPUT_SPAN)
        return err_set(e, ERR_DATA, "logits of %s for each token, which llama.cpp's bert does not have",
                       c->output == OUTPUT_SPAN ? "an answer's ends" : "classes");
    if (c->output == OUTPUT_CLASSES && c->pooler && c->pooler_act != ACT_TANH)
        return err_set(e, ERR_DATA, "a classifier with %s, where llama.cpp's bert has tanh",
                       hf_act_name(c->pooler_act));
    if (c->act != ACT_GELU)
        return err_set(e, ERR_DATA, "feed-forward parts with %s, where llama.cpp's bert has gelu", hf_act_name(c->act));
    return check_heads(c, e) ? err_set(e, ERR_DATA, "heads that are not as wide as llama.cpp's bert has them") : 0;
}

/* ---- registry entries -------------------------------------------------------------------------------------------- */

#define TRAITS                                                                                                         \
    .positions = POSITIONS_LEARNED, .embed_norm = true, .norm = NORM_LAYER, .norm_place = NORM_POST,                   \
    .norm_bias = true, .bidirectional = true, .qkv_bias = true, .o_bias = true, .ffn_kind = FFN_PLAIN,                 \
    .act = ACT_GELU, .ffn_bias = true, .no_final_norm = true, .output = OUTPUT_MASKED_LM, .head_bias = true

const struct arch arch_bert = {
    .name = "bert",
    .models = "BERT, MiniLM, BGE, E5 and other encoders",
    .traits = {TRAITS, .token_types = 2, .pooler_act = ACT_TANH},
    .hf = {.classes = {{"BertModel", "bert", OUTPUT_NONE},
                       {"BertForMaskedLM", "bert", OUTPUT_MASKED_LM},
                       {"BertForPreTraining", "bert", OUTPUT_MASKED_LM},
                       {"BertForSequenceClassification", "bert", OUTPUT_CLASSES},
                       {"BertForTokenClassification", "bert", OUTPUT_TOKEN_CLASSES},
                       {"BertForQuestionAnswering", "bert", OUTPUT_SPAN}},
           .keys = keys,
           .n_keys = COUNT_OF(keys),
           .numbers = &numbers,
           .eps = 1e-12,
           .tied = true,
           .tensors = {bert_tensors, COUNT_OF(bert_tensors), "bert."},
           .unread = bert_unread,
           .read = read,
           .write = write,
           .check = check},
    .gguf = {.names = {{"bert", false}},
             .keys = gguf_keys,
             .n_keys = COUNT_OF(gguf_keys),
             .tensors = {gguf_tensors, COUNT_OF(gguf_tensors), NULL},
             .read = gguf_read,
             .write = gguf_write,
             .check = gguf_check},
};

/* The same model under three names of classes and model types. */
#define ROBERTA(label, who, class, type)                                                                               \
    {                                                                                                                  \
        .name = label, .models = who,                                                                                  \
        .traits = {TRAITS, .token_types = 1, .position_offset = 2, .pooler_act = ACT_TANH},                            \
        .hf = {.classes = {{class "Model", type, OUTPUT_NONE},                                                         \
                           {class "ForMaskedLM", type, OUTPUT_MASKED_LM},                                              \
                           {class "ForSequenceClassification", type, OUTPUT_CLASSES},                                  \
                           {class "ForTokenClassification", type, OUTPUT_TOKEN_CLASSES},                               \
                           {class "ForQuestionAnswering", type, OUTPUT_SPAN}},                                         \
               .keys = keys,                                                                                           \
               .n_keys = COUNT_OF(keys),                                                                               \
               .numbers = &numbers,                                                                                    \
               .eps = 1e-12,                                                                                           \
               .tied = true,                                                                                           \
               .tensors = {roberta_tensors, COUNT_OF(roberta_tensors), "roberta."},                                    \
               .unread = roberta_unread,                                                                               \
               .read = roberta_read,                                                                                   \
               .write = roberta_write,                                                                                 \
               .check = roberta_check},                                                                                \
        .gguf = {                                                                                                      \
            .names = {{"bert", false}},                                                                                \
            .keys = gguf_keys,                                                                                         \
            .n_keys = COUNT_OF(gguf_keys),                                                                             \
            .tensors = {gguf_roberta_tensors, COUNT_OF(gguf_roberta_tensors), NULL},                                   \
            .read = gguf_read_roberta,                                                                                 \
            .write = gguf_write,                                                                                       \
            .check = gguf_check                                                                                        \
        }                                                                                                              \
    }

const struct arch arch_roberta = ROBERTA("roberta", "RoBERTa", "Roberta", "roberta");
const struct arch arch_xlm_roberta =
    ROBERTA("xlm_roberta", "XLM-RoBERTa, BGE-M3, multilingual E5", "XLMRoberta", "xlm-roberta");
const struct arch arch_camembert = ROBERTA("camembert", "CamemBERT", "Camembert", "camembert");

const struct arch arch_distilbert = {
    .name = "distilbert",
    .models = "DistilBERT",
    .traits = {TRAITS, .pooler_act = ACT_RELU},
    .hf = {.classes = {{"DistilBertModel", "distilbert", OUTPUT_NONE},
                       {"DistilBertForMaskedLM", "distilbert", OUTPUT_MASKED_LM},
                       {"DistilBertForSequenceClassification", "distilbert", OUTPUT_CLASSES},
                       {"DistilBertForTokenClassification", "distilbert", OUTPUT_TOKEN_CLASSES},
                       {"DistilBertForQuestionAnswering", "distilbert", OUTPUT_SPAN}},
           .keys = distilbert_keys,
           .n_keys = COUNT_OF(distilbert_keys),
           .numbers = &distilbert_numbers,
           .eps = 1e-12,
           .tied = true,
           .tensors = {distilbert_tensors, COUNT_OF(distilbert_tensors), "distilbert."},
           .unread = distilbert_unread,
           .read = distilbert_read,
           .check = distilbert_check},
    .gguf = {.names = {{"bert", false}},
             .keys = gguf_keys,
             .n_keys = COUNT_OF(gguf_keys),
             .tensors = {gguf_tensors, COUNT_OF(gguf_tensors), NULL},
             .read = gguf_read,
             .write = gguf_write,
             .check = gguf_check},
};

/*
 * A bidirectional LSTM that classifies sequences: embedding, torch.nn.LSTM, the final state of each direction, a dense
 * layer with activation, classifier. It is the student of Tang et al. 2019, "Distilling Task-Specific Knowledge from
 * BERT into Simple Neural Networks". transformers has no such class; config.json follows its conventions with PyTorch's
 * terms, and tensors are named as in a module with the members embedding, lstm, dense and classifier.
 */
#include "lib/formats/arch_internal.h"

static const struct hf_numbers numbers = {
    .layers = "num_layers", .hidden = "hidden_size", .context = "max_position_embeddings"};

static const struct hf_key keys[] = {
    HF_KEY("num_layers", HF_READ),
    HF_KEY("embedding_dim", HF_READ),
    HF_KEY("dense_act", HF_READ),
    HF_KEY_TEXT("num_hidden_layers", HF_SAME, "num_layers"),
    HF_KEY_TEXT("input_size", HF_SAME, "embedding_dim"),
    /* arguments of torch.nn.LSTM */
    HF_KEY("bidirectional", HF_TRUE),
    HF_KEY("bias", HF_TRUE),
    HF_KEY("proj_size", HF_OFF),
    HF_KEY("batch_first", HF_READ), /* batch layout and dropout do not affect inference */
    HF_KEY("dropout", HF_READ),
    /* keys of transformers' attention layers */
    HF_KEY("num_attention_heads", HF_OFF),
    HF_KEY("num_key_value_heads", HF_OFF),
    HF_KEY("head_dim", HF_OFF),
    HF_KEY("intermediate_size", HF_OFF),
    HF_KEY("hidden_act", HF_OFF),
    HF_KEY("rms_norm_eps", HF_OFF),
    HF_KEY("type_vocab_size", HF_OFF),
    HF_KEY("causal", HF_OFF),
    HF_KEY("is_causal", HF_OFF),
    HF_NO_ROTARY,
    HF_NO_WINDOW,
};

#define DIRECTION(suffix, input, state)                                                                                \
    {input, "lstm.weight_ih_l#" suffix, 0}, {state, "lstm.weight_hh_l#" suffix, 0},                                    \
        {input##_BIAS, "lstm.bias_ih_l#" suffix, 0}, {                                                                 \
        state##_BIAS, "lstm.bias_hh_l#" suffix, 0                                                                      \
    }
static const struct arch_tensor tensors[] = {
    {ROLE_EMBED, "embedding.weight", 0},
    DIRECTION("", ROLE_LSTM_INPUT, ROLE_LSTM_STATE),
    DIRECTION("_reverse", ROLE_LSTM_REVERSE_INPUT, ROLE_LSTM_REVERSE_STATE),
    {ROLE_POOLER, "dense.weight", 0},
    {ROLE_POOLER_BIAS, "dense.bias", 0},
    {ROLE_CLASSIFIER, "classifier.weight", 0},
    {ROLE_CLASSIFIER_BIAS, "classifier.bias", 0},
};

/* "hidden_size" is torch.nn.LSTM's: the width of one direction. */
static int read(struct model_config *c, const cJSON *json, struct err *e) {
    uint64_t embed = 0;
    const char *act = NULL;
    int rc = json_get_u64(json, "embedding_dim", 1, MODEL_MAX_DIM, &embed, e);
    if (!rc) rc = json_opt_str(json, "dense_act", &act, e);
    if (rc) return rc;
    if (c->hidden > MODEL_MAX_DIM / 2)
        return err_set(e, ERR_DATA, "\"%s\" is %u, expected at most %u", numbers.hidden, c->hidden, MODEL_MAX_DIM / 2);
    c->hidden *= 2;
    c->embed_dim = embed == c->hidden ? 0 : (uint32_t)embed;
    c->pooler = act != NULL;
    if (!act || !hf_act_of_name(act, &c->pooler_act)) return 0;
    return err_set(e, ERR_DATA, "\"dense_act\": '%.64s' is not supported", act);
}

static bool write(cJSON *json, const struct model_config *c) {
    cJSON *units = cJSON_CreateNumber(c->hidden / 2);
    if (!units || !cJSON_ReplaceItemInObjectCaseSensitive(json, numbers.hidden, units)) {
        cJSON_Delete(units);
        return false;
    }
    bool ok = json_put_u64(json, "embedding_dim", model_embed_dim(c)) && json_put_bool(json, "bidirectional", true);
    return ok && (c->pooler ? json_put_str(json, "dense_act", hf_act_name(c->pooler_act))
                            : cJSON_AddNullToObject(json, "dense_act") != NULL);
}

const struct arch arch_bilstm = {
    .name = "bilstm",
    .models = "a bidirectional LSTM, to be taught by a classifier",
    .traits = {.layer_kind = LAYER_LSTM,
               .positions = POSITIONS_NONE,
               .bidirectional = true,
               .no_final_norm = true,
               .output = OUTPUT_CLASSES,
               .pooler = true,
               .pooler_act = ACT_RELU},
    .hf = {.classes = {{"BiLstmForSequenceClassification", "bilstm", OUTPUT_CLASSES}},
           .keys = keys,
           .n_keys = COUNT_OF(keys),
           .numbers = &numbers,
           .context = 2048,
           .tensors = {tensors, COUNT_OF(tensors), NULL},
           .read = read,
           .write = write},
};

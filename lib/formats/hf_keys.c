/*
 * Checks the keys of config.json. Each class has a table for keys that are its own or have another meaning in it, which
 * is searched first; the tables here apply to all classes. A key in none of them may change what the model computes, so
 * it is refused unless it is null, false or empty.
 */
#include "lib/formats/formats_internal.h"

const cJSON *hf_member(const cJSON *object, const char *key) {
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsNull(x) ? NULL : x;
}

/* Keys that affect what is computed, or how the file is read, unless they have the given value. */
static const struct hf_key common_keys[] = {
    HF_KEY("architectures", HF_READ),
    HF_KEY("model_type", HF_READ),
    HF_KEY("hidden_size", HF_READ),
    HF_KEY("intermediate_size", HF_READ),
    HF_KEY("num_hidden_layers", HF_READ),
    HF_KEY("num_attention_heads", HF_READ),
    HF_KEY("num_key_value_heads", HF_READ),
    HF_KEY("head_dim", HF_READ),
    HF_KEY("vocab_size", HF_READ),
    HF_KEY("max_position_embeddings", HF_READ),
    HF_KEY("rms_norm_eps", HF_READ),
    HF_KEY("tie_word_embeddings", HF_READ),
    HF_KEY("rope_theta", HF_READ),
    HF_KEY("rope_scaling", HF_READ),
    HF_KEY("rope_parameters", HF_READ),
    HF_KEY("partial_rotary_factor", HF_READ),
    HF_KEY("sliding_window", HF_READ),
    HF_KEY("use_sliding_window", HF_READ),
    HF_KEY("max_window_layers", HF_READ),
    HF_KEY("layer_types", HF_READ),
    HF_KEY_TEXT("hidden_act", HF_TEXT, "silu|swish"),
    HF_KEY("bos_token_id", HF_READ),
    HF_KEY("eos_token_id", HF_READ),
    HF_KEY("pad_token_id", HF_READ),
    HF_KEY("_name_or_path", HF_READ),
    HF_KEY("auto_map", HF_READ), /* hf_config.c warns that this code is not run */
    {.name = "torch_dtype", .rule = HF_SAME, .text = "dtype", .alone = true},
    /* shapes under the names of other classes */
    HF_KEY_TEXT("d_model", HF_SAME, "hidden_size"),
    HF_KEY_TEXT("n_embd", HF_SAME, "hidden_size"),
    HF_KEY_TEXT("n_layer", HF_SAME, "num_hidden_layers"),
    HF_KEY_TEXT("n_layers", HF_SAME, "num_hidden_layers"),
    HF_KEY_TEXT("num_layers", HF_SAME, "num_hidden_layers"),
    HF_KEY_TEXT("n_head", HF_SAME, "num_attention_heads"),
    HF_KEY_TEXT("n_heads", HF_SAME, "num_attention_heads"),
    HF_KEY_TEXT("num_heads", HF_SAME, "num_attention_heads"),
    HF_KEY_TEXT("n_kv_heads", HF_SAME, "num_key_value_heads"),
    HF_KEY_TEXT("num_kv_heads", HF_SAME, "num_key_value_heads"),
    HF_KEY_TEXT("multi_query_group_num", HF_SAME, "num_key_value_heads"),
    HF_KEY_TEXT("kv_channels", HF_SAME, "head_dim"),
    HF_KEY_TEXT("head_size", HF_SAME, "head_dim"),
    HF_KEY_TEXT("attention_head_size", HF_SAME, "head_dim"),
    HF_KEY_TEXT("attention_head_dim", HF_SAME, "head_dim"),
    HF_KEY_TEXT("rotary_dim", HF_SAME, "head_dim"),
    HF_KEY_TEXT("n_inner", HF_SAME, "intermediate_size"),
    HF_KEY_TEXT("ffn_hidden_size", HF_SAME, "intermediate_size"),
    HF_KEY_TEXT("n_positions", HF_SAME, "max_position_embeddings"),
    HF_KEY_TEXT("hidden_activation", HF_SAME, "hidden_act"),
    HF_KEY_TEXT("activation_function", HF_SAME, "hidden_act"),
    HF_KEY_TEXT("norm_eps", HF_SAME, "rms_norm_eps"),
    HF_KEY_TEXT("layer_norm_eps", HF_SAME, "rms_norm_eps"),
    HF_KEY_TEXT("layer_norm_epsilon", HF_SAME, "rms_norm_eps"),
    HF_KEY_TEXT("layernorm_epsilon", HF_SAME, "rms_norm_eps"),
    HF_KEY_TEXT("tie_embeddings", HF_SAME, "tie_word_embeddings"),
    HF_KEY_TEXT("use_tied_embeddings", HF_SAME, "tie_word_embeddings"),
    /* what a decoder of this kind does anyway */
    HF_KEY("causal", HF_TRUE),
    HF_KEY("is_causal", HF_TRUE),
    HF_KEY("no_bias", HF_TRUE),
    HF_KEY("use_rope", HF_TRUE),
    HF_KEY("use_rotary", HF_TRUE),
    HF_KEY("use_rotary_embeddings", HF_TRUE),
    HF_KEY("rms_norm", HF_TRUE),
    HF_KEY("use_rms_norm", HF_TRUE),
    HF_KEY("use_rmsnorm", HF_TRUE),
    HF_KEY("scale_attn_weights", HF_TRUE),
    /* scale factors and bounds */
    HF_KEY_NUMBER("logit_scale", 1),
    HF_KEY_NUMBER("logits_scaling", 1),
    HF_KEY_NUMBER("scale_emb", 1),
    HF_KEY_NUMBER("embedding_multiplier", 1),
    HF_KEY_NUMBER("residual_multiplier", 1),
    HF_KEY_NUMBER("rotary_pct", 1),
    HF_KEY_NUMBER("rotary_percent", 1),
    HF_KEY_NUMBER("rope_pct", 1),
    HF_KEY("attention_multiplier", HF_OFF),
    HF_KEY("query_pre_attn_scalar", HF_OFF),
    HF_KEY("final_logit_softcapping", HF_OFF),
    HF_KEY("attn_logit_softcapping", HF_OFF),
    HF_KEY("clip_qkv", HF_OFF),
    HF_KEY("qk_norm", HF_OFF),
    HF_KEY("use_qk_norm", HF_OFF),
    HF_KEY("qk_layernorm", HF_OFF),
    HF_KEY_TEXT("norm_type", HF_TEXT, "rmsnorm"),
    HF_KEY_TEXT("position_embedding_type", HF_TEXT, "rope"),
    HF_KEY("rope_interleaved", HF_OFF),
    HF_KEY("use_mrope", HF_OFF),
    HF_KEY("mlp_bias", HF_OFF),
    HF_KEY("use_bias", HF_OFF),
    HF_KEY("bias", HF_OFF),
    HF_KEY("lm_head_bias", HF_OFF),
    HF_KEY("add_bias_linear", HF_OFF),
    HF_KEY("attention_out_bias", HF_OFF),
    HF_KEY("pruned_heads", HF_OFF),
    HF_KEY("is_encoder_decoder", HF_OFF),
    HF_KEY("tie_encoder_decoder", HF_OFF),
    HF_KEY("add_cross_attention", HF_OFF),
    HF_KEY("cross_attention_hidden_size", HF_OFF),
    HF_KEY("num_experts", HF_OFF),
    HF_KEY("num_local_experts", HF_OFF),
    HF_KEY("n_routed_experts", HF_OFF),
    HF_KEY("block_configs", HF_OFF),
    HF_KEY("per_layer_config", HF_OFF),
    HF_KEY("text_config", HF_OFF),
    HF_KEY("vision_config", HF_OFF),
    /* how and where the weights are stored */
    HF_KEY("quantization", HF_OFF),
    HF_KEY("quantization_config", HF_OFF),
    HF_KEY("compression_config", HF_OFF),
    HF_KEY("transformers_weights", HF_OFF),
};

/* Keys for training, generation and bookkeeping, which do not affect a forward pass. */
static const char *const inert_keys[] = {
    /* transformers */
    "dtype", "transformers_version", "transformers.js_config", "name_or_path", "_commit_hash", "attn_implementation",
    "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal", "_flash_attn_2_enabled",
    "_experts_implementation", "_experts_implementation_internal", "_output_attentions", "output_attentions",
    "output_hidden_states", "return_dict", "return_dict_in_generate", "output_scores", "torchscript", "use_bfloat16",
    "tf_legacy_loss", "chunk_size_feed_forward", "gradient_checkpointing", "use_cache", "cache_implementation",
    "is_decoder", "num_labels", "id2label", "label2id", "problem_type", "finetuning_task", "task_specific_params",
    "tokenizer_class", "prefix", "pretraining_tp", "remove_invalid_values",
    /* training */
    "initializer_range", "initializer_factor", "attention_dropout", "attention_probs_dropout_prob", "attn_pdrop",
    "classifier_dropout", "dropout", "embd_pdrop", "embedding_dropout", "hidden_dropout", "hidden_dropout_prob",
    "mlp_dropout", "resid_dropout", "resid_pdrop", "residual_dropout", "layerdrop", "loss_type", "label_smoothing",
    "ignore_index", "router_aux_loss_coef", "router_jitter_noise", "output_router_logits", "neftune_noise_alpha",
    "use_flash_attn", "use_flash_attention", "use_flash_attention_2", "use_fused_kernels", "unsloth_fixed",
    "unsloth_version", "is_llama_config", "gradient_checkpointing_kwargs", "multiple_of", "ffn_dim_multiplier",
    /* limits on the text length; only max_position_embeddings is read */
    "max_sequence_length", "max_seq_len", "max_seq_length", "seq_len", "seq_length", "model_max_length", "n_ctx",
    "tokenizer_model_max_length", "training_length", "original_max_position_embeddings",
    /* token ids and generation */
    "sep_token_id", "cls_token_id", "mask_token_id", "unk_token_id", "decoder_start_token_id", "end_token_id",
    "start_token_id", "assistant_confidence_threshold", "assistant_lookbehind", "bad_words_ids",
    "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff", "exponential_decay_length_penalty",
    "forced_bos_token_id", "forced_eos_token_id", "length_penalty", "max_length", "max_new_tokens", "min_length",
    "no_repeat_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule", "num_beam_groups", "num_beams",
    "num_return_sequences", "repetition_penalty", "suppress_tokens", "target_lookbehind", "temperature", "top_k",
    "top_p", "typical_p", "min_p", "penalty_alpha", "guidance_scale", "renormalize_logits", "bos_token", "eos_token",
    "pad_token", "unk_token", "add_bos_token", "add_eos_token", "chat_template", "padding_side",
    /* bookkeeping */
    "name", "model_name", "description", "license", "language", "tags", "datasets", "version", "author", "date"};

static const struct hf_key *find_key(const struct hf_key *keys, size_t n, const char *name) {
    for (size_t i = 0; i < n; i++)
        if (strcmp(keys[i].name, name) == 0) return &keys[i];
    return NULL;
}

static bool is_inert(const char *name) {
    for (size_t i = 0; i < COUNT_OF(inert_keys); i++)
        if (strcmp(inert_keys[i], name) == 0) return true;
    return false;
}

/* False, "", [] or {}. 0 is not among them: for an unknown key it may be a meaningful number. */
static bool says_nothing(const cJSON *x) {
    const char *text = cJSON_GetStringValue(x);
    return cJSON_IsFalse(x) || (text && !*text) || ((cJSON_IsArray(x) || cJSON_IsObject(x)) && !x->child);
}

static int check_same(const cJSON *json, const cJSON *x, const struct hf_key *key, struct err *e) {
    const cJSON *main = hf_member(json, key->text);
    if (!main && key->alone) return 0;
    if (!main)
        return err_set(e, ERR_DATA, "\"%s\" is not a key of this architecture, and \"%s\", which is, is missing",
                       key->name, key->text);
    if (cJSON_Compare(main, x, true)) return 0;
    return err_set(e, ERR_DATA, "\"%s\" and \"%s\" are two names for one thing, and they disagree", key->text,
                   key->name);
}

/* Is `text` one of the words of "a|b"? */
static bool is_word_of(const char *text, const char *words) {
    size_t n = strlen(text);
    for (const char *at = words; *at; at += *at == '|') {
        size_t word = strcspn(at, "|");
        if (word == n && memcmp(at, text, n) == 0) return true;
        at += word;
    }
    return false;
}

static bool is_allowed(const cJSON *x, const struct hf_key *key) {
    const char *text = cJSON_GetStringValue(x);
    switch (key->rule) {
    case HF_READ:
    case HF_SAME: return true;
    case HF_OFF: return says_nothing(x) || (cJSON_IsNumber(x) && x->valuedouble == 0);
    case HF_TRUE: return cJSON_IsTrue(x);
    case HF_NUMBER: return cJSON_IsNumber(x) && x->valuedouble == key->number;
    case HF_TEXT: return text && is_word_of(text, key->text);
    }
    return false;
}

static int check_key(const cJSON *json, const cJSON *x, const struct hf_key *key, struct err *e) {
    if (key->rule == HF_SAME) return check_same(json, x, key, e);
    if (is_allowed(x, key)) return 0;
    const char *text = cJSON_GetStringValue(x);
    if (text) return err_set(e, ERR_DATA, "\"%s\": '%.64s' is not supported", key->name, text);
    if (cJSON_IsNumber(x)) return err_set(e, ERR_DATA, "\"%s\": %g is not supported", key->name, x->valuedouble);
    if (cJSON_IsBool(x))
        return err_set(e, ERR_DATA, "\"%s\": %s is not supported", key->name, cJSON_IsTrue(x) ? "true" : "false");
    return err_set(e, ERR_DATA, "\"%s\": this setting is not supported", key->name);
}

int hf_check_keys(const cJSON *json, const struct hf_key *own, size_t n_own, struct err *e) {
    int rc = 0;
    for (const cJSON *x = json->child; x && !rc; x = x->next) {
        if (cJSON_IsNull(x)) continue;
        const struct hf_key *key = find_key(own, n_own, x->string);
        if (!key) key = find_key(common_keys, COUNT_OF(common_keys), x->string);
        if (key)
            rc = check_key(json, x, key, e);
        else if (!is_inert(x->string) && !says_nothing(x))
            rc = err_set(e, ERR_DATA,
                         "\"%.100s\" is not known, and may change what the model computes (take the key out if it does "
                         "not)",
                         x->string);
    }
    return rc;
}

/*
 * prune: takes weights out of a model. Unstructured magnitude, and structured: layers, feed-forward channels, attention
 * head groups, vocabulary. Each is one pass over a model stream; what to keep is decided beforehand (from statistics or the
 * command line) or within the layer at hand (weight norms), so memory is a few tensors whatever the model's size.
 */
#ifndef RILL_PRUNE_H
#define RILL_PRUNE_H

#include "lib/base/base.h"
#include "lib/model/model.h"
#include "lib/stats/stats.h"

enum prune_score {
    PRUNE_BY_WEIGHTS, /* L2 norm of the coupled weights of a channel or head group */
    PRUNE_BY_STATS,   /* activations (Minitron) for channels and heads, block influence (ShortGPT) for layers */
};

/* How often each token occurs in a token stream. */
struct prune_tokens {
    uint64_t *count; /* [n] */
    uint32_t n;      /* size of the vocabulary */
    char vocab[DIGEST_TEXT_SIZE];
    struct arena memory;
};
/* Reads a tokens or knowledge stream to its end; all of its segments must be of one vocabulary. Begin with {0};
 * prune_tokens_release. */
int prune_tokens_count(struct prune_tokens *t, struct stream_reader *r, struct err *e) MUST_CHECK;
void prune_tokens_release(struct prune_tokens *t);

/* How much stays: a number, or a share of the total. Both 0: all. */
struct prune_amount {
    uint32_t n;
    double share; /* in (0, 1] */
};

struct prune_options {
    double sparsity;             /* unstructured: this share of the smallest |w| of each matrix becomes 0; 0: none */
    bool prune_head;             /* unstructured also in embedding and head */
    struct prune_amount layers;  /* that stay: those of most block influence (needs stats) ... */
    const uint32_t *drop_layers; /* ... or exactly which go; NULL: none */
    size_t n_drop_layers;
    struct prune_amount ffn; /* feed-forward channels that stay in each layer; shares become multiples of 256 or 32 */
    struct prune_amount kv_heads;      /* key/value heads that stay in each layer, with their query heads */
    const struct prune_tokens *tokens; /* the vocabulary is cut to these; NULL: left alone, but for ... */
    bool padding;                      /* ... rows of embedding and head after the vocabulary's last token, which go */
    uint64_t vocab_min_count;          /* how often a token must occur among them to stay */
    enum prune_score score;
    const struct stats *stats;
    model_warn_fn *warn; /* told what the new shape implies, before anything is written; may be NULL */
    /* ... and given the shape, for checks outside this module (which programs will load it); may be NULL */
    void (*shape)(void *ctx, const struct model_config *before, const struct model_config *after);
    void *warn_ctx;
};
struct prune_report {
    struct model_config before, after; /* layers point into `memory` */
    uint64_t parameters_before, parameters_after, zeros;
    uint32_t *kept_layers; /* [after.n_layers] numbers in the old model */
    struct arena memory;
};

/* Reads a model stream, writes the pruned one. Each tensor keeps its type; a quantized one becomes f32 only where columns go or single
 * weights become zero, since other numbers share its blocks then. ERR_USAGE / ERR_DATA when what is asked for cannot be (more than there is, statistics
 * missing or of another model), before anything is written. `report` begins with {0}; prune_report_release. */
int prune_stream(struct stream_reader *in, struct stream_writer *out, const struct prune_options *o,
                 struct prune_report *report, struct err *e) MUST_CHECK;
void prune_report_release(struct prune_report *r);

#endif

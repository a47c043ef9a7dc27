/*
 * Private to lib/stats: the sums in memory.
 *
 * Order of files, each calling only earlier ones: stats, moments, gradients, collect, store.
 */
#ifndef RILL_STATS_INTERNAL_H
#define RILL_STATS_INTERNAL_H

#include "lib/stats/stats.h"

enum sum_kind { SUM_ABS, SUM_SQ, SEQ_SQ, SUM, SUM_KINDS };
/* Axes of a layer along which gradients are summed. AXIS_EXPERT_FFN is separate, because each expert has one. */
enum { TAYLOR_AXES = 3 };
static const enum model_axis taylor_axes[TAYLOR_AXES] = {AXIS_QUERY, AXIS_KEY, AXIS_FFN};

/* The sums at one point of one layer. */
struct point_sums {
    size_t cols;
    double *sum[SUM_KINDS]; /* [cols] each */
    /* Second moments, if they are wanted here and in memory. While they are collected, only the upper triangle of gram
     * is valid. */
    float *gram;              /* [cols][cols] */
    float *half;              /* [half_rows][cols] */
    size_t half_rows, stride; /* row i of half is of input i * stride; 0: no moments are wanted here */
    /* Or rows that the moments are computed from when they are asked for. */
    bool sampled;
    struct buf rows; /* f32 [][cols]; not yet scaled while they are collected */
    uint64_t seen;   /* positions that they were drawn from */
};

enum { EXPERT_POINTS = 2 }; /* POINT_EXPERT_IN, POINT_EXPERT_DOWN_IN */
struct expert_sums {
    struct point_sums point[EXPERT_POINTS];
    double count, output;
    double *taylor; /* [expert_ffn] */
};

struct layer_sums {
    struct point_sums point[POINT_EXPERT_IN]; /* points outside layers are kept in layer 0 */
    struct expert_sums *experts;              /* [experts] */
    double influence;
    double *angular;             /* [layers up to this one] */
    double *taylor[TAYLOR_AXES]; /* [size of the axis] */
};

struct stats {
    struct model_config config;
    char vocab[DIGEST_TEXT_SIZE]; /* "" when unknown */
    uint64_t positions, sequences;
    /* Older streams have neither signed sums nor angles; gradients are optional. */
    bool is_signed, gradients;
    struct stats_moments_wanted moments;
    bool halves;               /* older streams have moments without the half */
    struct stream_map *file;   /* where moments are read from when they are asked for; NULL: they are in memory */
    struct layer_sums *layers; /* [n_layers] */
    struct arena memory;
    /* While a batch is collected: */
    uint64_t batches;
    const struct model_input *in;
    struct buf bounded;  /* rows of limited length */
    struct buf previous; /* the residual stream before the current layer */
    struct buf lengths;  /* positions of each sequence that an expert gets */
    struct buf ends;     /* [n_layers + 1][n_seqs][widest] the residual stream at the end of each sequence */
};

static inline bool point_in_layer(enum model_point p) {
    return p != POINT_EMBED && p != POINT_HEAD_IN;
}
static inline bool is_of_expert(enum model_point p) {
    return p == POINT_EXPERT_IN || p == POINT_EXPERT_DOWN_IN;
}
static inline struct point_sums *point_of(const struct stats *s, enum model_point p, uint32_t layer, uint32_t expert) {
    struct layer_sums *l = &s->layers[layer];
    return is_of_expert(p) ? &l->experts[expert].point[p - POINT_EXPERT_IN] : &l->point[p];
}
/* The sums of |w dL/dw| along an axis; NULL: it is none of those with sums. */
double *taylor_of(const struct stats *s, enum model_axis axis, struct model_slot slot);
/* The name of a tensor of second moments: "layers.N.attn_in.gram", with what "gram", "gram_half" or "rows". */
#define STATS_NAME 128
void moments_name(enum model_point p, uint32_t layer, const char *what, char out[STATS_NAME]);
/* Adds to half the sums over x [rows][cols] that it has of x x^T, with its rows as in p; inputs [rows][half_rows] is
 * scratch. */
void add_half(float *half, const struct point_sums *p, const float *x, size_t rows, float *inputs);
/* Sets which moments are wanted and the shapes of their arrays, without allocating these. */
void mark_moments(struct stats *s, const struct stats_moments_wanted *wanted);
/* ERR_DATA: one of the n sums at x is not finite. */
int check_moments(const char *name, const float *x, uint64_t n, struct err *e) MUST_CHECK;

#endif

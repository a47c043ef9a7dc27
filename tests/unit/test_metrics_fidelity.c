/*
 * Tests of fidelity against gradients computed in f64 from all logits. That draws are unbiased shows in the angle over
 * many positions.
 */
#include "tests/unit/metrics_samples.h"

#define V BYTE_VOCAB

/* A student, a text, and the logits of a teacher and of the student for it. */
struct scene {
    struct model *student;
    struct sample s;
    float *mine;
};

static struct scene scene_new(size_t n_seqs, uint32_t longest) {
    struct err e;
    struct scene x = {byte_model(64, 1, true, false), sample_new(n_seqs, longest, V, 3), NULL};
    x.mine = mem_array(x.s.n_positions * V, sizeof *x.mine, &e);
    const uint32_t *at = x.s.tokens;
    for (size_t i = 0; i < n_seqs; at += x.s.lengths[i++]) {
        struct model_input in = {x.s.lengths[i], 1, at, &x.s.lengths[i]};
        float *logits = logits_of(x.student, &in);
        memcpy(x.mine + (size_t)(at - x.s.tokens) * V, logits, x.s.lengths[i] * V * sizeof *logits);
        mem_free(logits);
    }
    /* a teacher that differs from the student by a fixed offset and some noise */
    float offset[V];
    memcpy(offset, x.s.logits, sizeof offset);
    for (size_t i = 0; i < x.s.n_positions * V; i++)
        x.s.logits[i] = x.mine[i] + 0.5f * offset[i % V] + 0.1f * x.s.logits[i];
    return x;
}

static void scene_free(struct scene *x) {
    model_free(x->student);
    sample_free(&x->s);
    mem_free(x->mine);
}

static void no_watch(void *ctx) {
    (void)ctx;
}

/* The array of results for the streams; NULL: refused. */
static cJSON *measured(struct model *m, const int *fd, size_t n, int *rc, struct err *why) {
    struct err e;
    struct stream_reader *r[8];
    struct knowledge_format f[8];
    struct fidelity_input in[8];
    struct fidelity *x = NULL;
    cJSON *results = cJSON_CreateArray();
    size_t bad;
    for (size_t i = 0; i < n; i++) {
        OK(stream_reader_open(&r[i], fd[i], i ? "other" : "dense", STREAM_ANY, &e));
        OK(knowledge_meta_get(stream_reader_meta(r[i]), &f[i], &e));
        in[i] = (struct fidelity_input){r[i], &f[i]};
    }
    *rc = fidelity_new(&x, m, in, n, &bad, why);
    if (!*rc) *rc = fidelity_read(x, no_watch, NULL, why);
    for (size_t i = 0; !*rc && i < n; i++) cJSON_AddItemToArray(results, fidelity_json(x, i, &e));
    fidelity_free(x);
    for (size_t i = 0; i < n; i++) {
        stream_reader_free(r[i]);
        close(fd[i]);
    }
    return results;
}

static int encoded(const struct sample *s, const char *encoding, double temperature) {
    struct err e;
    struct knowledge_format f = format_of(encoding, V);
    int fd;
    f.temperature = temperature;
    OK(encode_sample(s, &f, 1, 37, 11, &fd, &e));
    return fd;
}

/* ---- the same in f64 --------------------------------------------------------------------------------------------- */

static bool has_label(const struct sample *s, size_t position) {
    size_t end = 0;
    for (size_t i = 0; i < s->n_seqs; i++)
        if ((end += s->lengths[i]) > position) break;
    return position + 1 < end;
}

/* d kl / d logits of a row: p - t for dense logits and draws, S p - t for top entries (S their sum); the rest of a
 * ghost is spread in proportion to p. */
static void gradient64(double *g, const float *x, const struct knowledge_rows *k, const struct knowledge_format *f,
                       const float *teacher, size_t r, double temperature) {
    double t[V] = {0}, p[V], mass = 0, seen = 0;
    bool in[V] = {false};
    softmax64(p, x, V, temperature);
    if (f->encoding == KNOW_DENSE) softmax64(t, teacher, V, temperature);
    for (uint64_t i = k->offset[r]; f->encoding != KNOW_DENSE && i < k->offset[r + 1]; i++) {
        t[k->ids[i]] = k->probs[i];
        in[k->ids[i]] = true;
        mass += k->probs[i];
        seen += p[k->ids[i]];
    }
    for (size_t i = 0; i < V; i++) {
        double scale = f->encoding == KNOW_TOPK ? mass : 1;
        if (f->encoding == KNOW_GHOST && !in[i]) t[i] = (1 - mass) * p[i] / (1 - seen);
        g[i] = scale * p[i] - t[i];
    }
}

static double angle64(double dot, double a, double b) {
    return a > 0 && b > 0 ? acos(fmin(1, dot / sqrt(a * b))) * (180 / M_PI) : 0;
}

static void check_encoding(struct scene *x, const char *encoding, double temperature) {
    struct knowledge_rows k;
    struct knowledge_format f;
    struct err e;
    int rc;
    OK(decode_all(encoded(&x->s, encoding, temperature), &k, &f, &e));
    cJSON *results =
        measured(x->student, (int[]){encoded(&x->s, "dense", 1), encoded(&x->s, encoding, temperature)}, 2, &rc, &e);
    if (rc) fail_msg("%s", e.msg);
    const struct knowledge_format dense = {.encoding = KNOW_DENSE};
    double sum[2][V] = {{0}}, all[3] = {0}, angles = 0, whole[3] = {0};
    size_t n = 0;
    for (size_t r = 0; r < x->s.n_positions; r++) {
        double g[2][V], one[3] = {0};
        if (!has_label(&x->s, r)) continue;
        gradient64(g[0], x->mine + r * V, &k, &dense, x->s.logits + r * V, r, temperature);
        gradient64(g[1], x->mine + r * V, &k, &f, x->s.logits + r * V, r, temperature);
        for (size_t i = 0; i < V; i++) {
            one[0] += g[0][i] * g[1][i], one[1] += g[0][i] * g[0][i], one[2] += g[1][i] * g[1][i];
            sum[0][i] += g[0][i], sum[1][i] += g[1][i];
        }
        for (size_t i = 0; i < 3; i++) all[i] += one[i];
        angles += angle64(one[0], one[1], one[2]);
        n++;
    }
    for (size_t i = 0; i < V; i++)
        whole[0] += sum[0][i] * sum[1][i], whole[1] += sum[0][i] * sum[0][i], whole[2] += sum[1][i] * sum[1][i];
    const cJSON *o = cJSON_GetArrayItem(results, 1);
    assert_near(result_number(o, "positions"), (double)n, 0, "positions");
    assert_near(result_number(o, "angle"), angle64(whole[0], whole[1], whole[2]), 0.02, encoding);
    assert_near(result_number(o, "norm_ratio"), sqrt(whole[2] / whole[1]), 1e-3, encoding);
    assert_near(result_number(o, "position_angle"), angles / (double)n, 0.02, encoding);
    assert_near(result_number(o, "position_norm_ratio"), sqrt(all[2] / all[1]), 1e-3, encoding);
    const cJSON *self = cJSON_GetArrayItem(results, 0);
    assert_true(result_number(self, "angle") == 0 && result_number(self, "norm_ratio") == 1);
    assert_true(result_number(self, "position_angle") == 0);
    knowledge_rows_release(&k);
    cJSON_Delete(results);
}

static void gradients_are_those_of_the_formulas(void **state) {
    static const char *const encodings[] = {"topk:5", "topk:60", "ghost:10", "sample:12", "sample:50"};
    struct scene x = scene_new(12, 60);
    (void)state;
    for (size_t i = 0; i < COUNT_OF(encodings); i++) {
        check_encoding(&x, encodings[i], 1);
        check_encoding(&x, encodings[i], 2);
    }
    scene_free(&x);
}

/* A bias stays however many positions there are; noise averages out. */
static void noise_averages_out_and_bias_stays(void **state) {
    (void)state;
    struct scene x = scene_new(120, 64);
    struct err e;
    int rc;
    cJSON *r = measured(x.student,
                        (int[]){encoded(&x.s, "dense", 1), encoded(&x.s, "topk:20", 1), encoded(&x.s, "ghost:20", 1),
                                encoded(&x.s, "sample:20", 1)},
                        4, &rc, &e);
    if (rc) fail_msg("%s", e.msg);
    double angle[4], at_position[4];
    for (int i = 0; i < 4; i++) {
        angle[i] = result_number(cJSON_GetArrayItem(r, i), "angle");
        at_position[i] = result_number(cJSON_GetArrayItem(r, i), "position_angle");
    }
    assert_true(angle[3] < angle[1] && angle[3] < at_position[3] / 5); /* 3800 positions: a sixtieth of the noise */
    assert_true(angle[1] > 3 * angle[3] && angle[2] > 3 * angle[3]);
    cJSON_Delete(r);
    scene_free(&x);
}

/* Entries of ghost and topk that cover all tokens are calibrated like dense logits; truncated ones are
 * overconfident. */
static void truncation_is_overconfident(void **state) {
    (void)state;
    struct scene x = scene_new(30, 60);
    struct err e;
    int rc;
    cJSON *r = measured(x.student,
                        (int[]){encoded(&x.s, "dense", 1), encoded(&x.s, "ghost:258", 1), encoded(&x.s, "topk:258", 1),
                                encoded(&x.s, "topk:2", 1)},
                        4, &rc, &e);
    if (rc) fail_msg("%s", e.msg);
    double error[4];
    for (int i = 0; i < 4; i++) error[i] = result_number(cJSON_GetArrayItem(r, i), "calibration_error");
    assert_near(error[1], error[0], 1e-3, "ghost of all tokens");
    assert_near(error[2], error[0], 1e-3, "top of all tokens");
    assert_true(error[3] > error[0] + 0.01); /* labels are random here: any confidence is too much */
    cJSON_Delete(r);
    scene_free(&x);
}

static void what_does_not_fit_is_refused(void **state) {
    (void)state;
    struct scene x = scene_new(5, 30);
    struct err e;
    int rc;
    cJSON_Delete(measured(x.student, (int[]){encoded(&x.s, "topk:5", 1), encoded(&x.s, "dense", 1)}, 2, &rc, &e));
    assert_int_equal(rc, ERR_DATA);
    assert_non_null(strstr(e.msg, "must be dense"));
    cJSON_Delete(measured(x.student,
                          (int[]){encoded(&x.s, "dense", 1), encoded(&x.s, "topk:5", 1), encoded(&x.s, "topk:5", 2)}, 3,
                          &rc, &e));
    assert_int_equal(rc, ERR_DATA);
    assert_non_null(strstr(e.msg, "temperature 2"));
    int dense = encoded(&x.s, "dense", 1);
    x.s.tokens[x.s.n_positions - 1] ^= 1;
    cJSON_Delete(measured(x.student, (int[]){dense, encoded(&x.s, "topk:5", 1)}, 2, &rc, &e));
    assert_int_equal(rc, ERR_DATA);
    assert_non_null(strstr(e.msg, "the same tokens"));
    dense = encoded(&x.s, "dense", 1);
    x.s.n_positions -= x.s.lengths[--x.s.n_seqs];
    cJSON_Delete(measured(x.student, (int[]){dense, encoded(&x.s, "topk:5", 1)}, 2, &rc, &e));
    assert_int_equal(rc, ERR_DATA);
    assert_non_null(strstr(e.msg, "differ in length"));
    scene_free(&x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_are_those_of_the_formulas),
        cmocka_unit_test(noise_averages_out_and_bias_stays),
        cmocka_unit_test(truncation_is_overconfident),
        cmocka_unit_test(what_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* rill diff: measures how far two streams are apart, tensor by tensor. */
#include <inttypes.h>
#include <math.h>

#include "lib/cli/cli.h"

static double max_abs, mean_abs, min_cosine;
static bool as_json, all;

static const struct cli_option options[] = {
    {.name = "max-abs", .type = CLI_F64, .to = &max_abs, .arg = "X", .help = "allow values to differ by up to X"},
    {.name = "mean-abs",
     .type = CLI_F64,
     .to = &mean_abs,
     .arg = "X",
     .help = "allow the mean difference in a tensor to be up to X"},
    {.name = "min-cosine",
     .type = CLI_F64,
     .to = &min_cosine,
     .arg = "X",
     .min = -1,
     .max = 1,
     .help = "allow the cosine between two tensors to be as low as X"},
    {.name = "all", .type = CLI_FLAG, .to = &all, .help = "list equal tensors too"},
    {.name = "json",
     .type = CLI_FLAG,
     .to = &as_json,
     .help = "print JSON, one object per tensor and one for the total"},
    {0},
};

struct comparison {
    struct cli *cli;
    FILE *out;
    bool tolerant; /* a limit was given; then only limits decide */
    uint64_t pairs, different, outside;
    uint64_t listed, compared;      /* pairs with their own line; pairs whose values were compared */
    struct tensor_difference total; /* over all compared tensors */
    double total_bits;              /* size of their elements in B */
};

static bool is_outside(const struct comparison *k, const struct stream_pair *p, bool different) {
    if (!p->compared || !k->tolerant) return different;
    return (cli_given(k->cli, "max-abs") && !(p->d.max_abs <= max_abs)) ||
           (cli_given(k->cli, "mean-abs") && !(tensor_difference_mean_abs(&p->d) <= mean_abs)) ||
           (cli_given(k->cli, "min-cosine") && !(tensor_difference_cosine(&p->d) >= min_cosine));
}

static const char *describe(const struct tensor_desc *d, char *out, size_t size) {
    char shape[256];
    if (!d) return "absent";
    snprintf(out, size, "%s %s", dtype_info(d->dtype)->name, tensor_shape_text(d, shape, sizeof shape));
    return out;
}

/* Returns the bits per element in B, including block scales. */
static double bits_of(const struct tensor_desc *b) {
    uint64_t n = tensor_elems(b);
    return n ? 8.0 * (double)tensor_bytes(b) / (double)n : 0;
}

static bool put_measures(cJSON *j, const struct tensor_difference *d, double bits) { /* infinite values become null */
    return json_put_u64(j, "different", d->n_different) && json_put_f64_or_null(j, "max_abs", d->max_abs) &&
           json_put_f64_or_null(j, "mean_abs", tensor_difference_mean_abs(d)) &&
           json_put_f64_or_null(j, "rmse", tensor_difference_rmse(d)) &&
           json_put_f64_or_null(j, "relative", tensor_difference_relative(d)) &&
           json_put_f64_or_null(j, "cosine", tensor_difference_cosine(d)) && json_put_f64(j, "bits", bits);
}

static void print_measures(FILE *out, const struct tensor_difference *d, double bits) {
    fprintf(out, "mean %.6g, rmse %.6g, relative %.6g, cosine %.9f, bits %.4g", tensor_difference_mean_abs(d),
            tensor_difference_rmse(d), tensor_difference_relative(d), tensor_difference_cosine(d), bits);
}

static int put_json(const struct comparison *k, const struct stream_pair *p, bool outside, struct err *e) {
    char b[300];
    cJSON *j = tensor_desc_json(p->a ? p->a : p->b);
    bool ok = json_put_str(j, "a", p->a ? "present" : "absent") && json_put_str(j, "b", describe(p->b, b, sizeof b));
    if (p->compared) ok = ok && put_measures(j, &p->d, bits_of(p->b));
    return cli_put_json(k->out, j, ok && json_put_bool(j, "outside", outside), e);
}

static int put_pair(void *ctx, const struct stream_pair *p, struct err *e) {
    struct comparison *k = ctx;
    const struct tensor_difference *d = &p->d;
    char a[300], b[300];
    bool retyped = p->a && p->b && p->a->dtype != p->b->dtype;
    bool different = !p->compared || d->n_different || retyped, outside = is_outside(k, p, different);
    k->pairs++;
    k->different += different;
    k->outside += outside;
    if (p->compared) {
        k->compared++;
        tensor_difference_add(&k->total, d);
        k->total_bits += bits_of(p->b) * (double)d->n;
    }
    if (!different && !all) return 0;
    k->listed++;
    if (as_json) return put_json(k, p, outside, e);
    cli_put(k->out, (p->a ? p->a : p->b)->name);
    fputs(": ", k->out);
    if (retyped || !p->compared)
        fprintf(k->out, "%s | %s%s", describe(p->a, a, sizeof a), describe(p->b, b, sizeof b), p->compared ? ", " : "");
    if (p->compared) {
        fprintf(k->out, "max %.6g at %" PRIu64 ", ", d->max_abs, d->at);
        print_measures(k->out, d, bits_of(p->b));
    }
    fputs(k->tolerant && outside ? " (outside)\n" : "\n", k->out);
    return 0;
}

/* Prints the last line: all compared tensors, including equal ones, as if they were one. */
static int put_total(const struct comparison *k, struct err *e) {
    const struct tensor_difference *d = &k->total;
    if (!k->listed || !d->n) return 0;
    double bits = k->total_bits / (double)d->n;
    if (as_json) {
        cJSON *j = cJSON_CreateObject();
        return cli_put_json(k->out, j, json_put_u64(j, "total", k->compared) && put_measures(j, d, bits), e);
    }
    fprintf(k->out, "total of %" PRIu64 ": max %.6g, ", k->compared, d->max_abs);
    print_measures(k->out, d, bits);
    fputc('\n', k->out);
    return 0;
}

/* Prints the differences between two META members, leaf by leaf; NULL means absent. */
static int put_meta(struct comparison *k, const char *path, const cJSON *a, const cJSON *b, struct err *e) {
    const cJSON *x;
    char deeper[512];
    if (cJSON_IsObject(a) && cJSON_IsObject(b)) {
        cJSON_ArrayForEach(x, a) {
            snprintf(deeper, sizeof deeper, "%s.%s", path, x->string);
            if (put_meta(k, deeper, x, cJSON_GetObjectItemCaseSensitive(b, x->string), e)) return e->code;
        }
        cJSON_ArrayForEach(x, b) {
            snprintf(deeper, sizeof deeper, "%s.%s", path, x->string);
            if (!cJSON_GetObjectItemCaseSensitive(a, x->string) && put_meta(k, deeper, NULL, x, e)) return e->code;
        }
        return 0;
    }
    if (a && b && cJSON_Compare(a, b, true)) return 0;
    k->different++;
    k->outside += !k->tolerant;
    cJSON *j = cJSON_CreateObject();
    bool ok = json_put_str(j, "description", path) && (!a || cJSON_AddItemToObject(j, "a", cJSON_Duplicate(a, true))) &&
              (!b || cJSON_AddItemToObject(j, "b", cJSON_Duplicate(b, true)));
    return cli_put_json(k->out, j, ok, e);
}

static int compare(struct comparison *k, struct err *e) {
    struct stream_reader *a, *b;
    struct stream_map *map;
    const char *second = cli_operand(k->cli, 1);
    if (cli_open_stream(k->cli, cli_operand(k->cli, 0), "a", STREAM_ANY, &a, e)) return e->code;
    enum stream_kind kind = stream_reader_kind(a);
    if (kind == STREAM_TOKENS || kind == STREAM_KNOWLEDGE) {
        if (cli_open_stream(k->cli, second, "b", kind, &b, e) ||
            put_meta(k, "meta", stream_reader_meta(a), stream_reader_meta(b), e))
            return e->code;
        return stream_compare_batches(a, b, put_pair, k, e);
    }
    if (cli_open_map(k->cli, second, "b", kind, &map, e) ||
        put_meta(k, "meta", stream_reader_meta(a), stream_map_meta(map), e))
        return e->code;
    return stream_compare_map(a, map, put_pair, k, e);
}

static int run(struct cli *c, struct err *e) {
    struct comparison k = {.cli = c};
    k.tolerant = cli_given(c, "max-abs") || cli_given(c, "mean-abs") || cli_given(c, "min-cosine");
    if (cli_text(c, &k.out, e) || compare(&k, e) || put_total(&k, e)) return e->code;
    if (k.outside == 0) return 0;
    return err_set(e, ERR_CHECK, "%" PRIu64 " differences in %" PRIu64 " tensors%s", k.outside, k.pairs,
                   k.tolerant ? " are outside the limits" : "");
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "diff",
        .summary = "compare the tensors of two streams",
        .operands = "A B",
        .min_operands = 2,
        .max_operands = 2,
        .writes_text = true,
        .threaded = true,
        .description =
            "Compares tensors of the same name, in f32 whatever their types: the largest, mean and root mean square "
            "difference, the relative error ||A - B|| / ||A||, the cosine, and the bits per element in B. Metadata is "
            "compared too. Prints what differs, then the same figures over all tensors, and fails with exit code 4 if "
            "anything differs.\n\nWith limits (--max-abs, --mean-abs, --min-cosine) it fails only if a tensor exceeds "
            "one of them, is missing, or has another shape; other differences are just printed.\n\nData streams are "
            "compared batch by batch, and printed together by tensor name. For other streams B must be a regular file; "
            "A may be standard input (-). Provenance, and how the data is stored, are not compared.",
        .examples = "rill diff model.rill other.rill\n"
                    "    what differs\n"
                    "rill diff --min-cosine 0.99 model.rill model.q4.rill\n"
                    "    how much quantization changed each tensor, and is each within the limit?\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}

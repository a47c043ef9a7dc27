/* The differences between two streams, tensor by tensor. */
#include <inttypes.h>

#include "lib/cli/cli.h"
#include "lib/view/view_internal.h"

struct comparison {
    const struct view_diff_options *o;
    struct view_diff_found *found;
    FILE *out;
    bool tolerant;                  /* there is a limit; then only limits decide */
    uint64_t listed, compared;      /* pairs with their own line; pairs whose values were compared */
    struct tensor_difference total; /* over all compared tensors */
    double total_bits;              /* size of their elements in B */
};

static bool is_outside(const struct comparison *k, const struct stream_pair *p, bool different) {
    if (!p->compared || !k->tolerant) return different;
    const struct view_diff_options *o = k->o;
    return (o->max_abs && !(p->d.max_abs <= *o->max_abs)) ||
           (o->mean_abs && !(tensor_difference_mean_abs(&p->d) <= *o->mean_abs)) ||
           (o->min_cosine && !(tensor_difference_cosine(&p->d) >= *o->min_cosine));
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
    k->found->pairs++;
    k->found->outside += outside;
    if (p->compared) {
        k->compared++;
        tensor_difference_add(&k->total, d);
        k->total_bits += bits_of(p->b) * (double)d->n;
    }
    if (!different && !k->o->all) return 0;
    k->listed++;
    if (k->o->json) return put_json(k, p, outside, e);
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
    if (k->o->json) {
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
    k->found->outside += !k->tolerant;
    cJSON *j = cJSON_CreateObject();
    bool ok = json_put_str(j, "description", path) && (!a || cJSON_AddItemToObject(j, "a", cJSON_Duplicate(a, true))) &&
              (!b || cJSON_AddItemToObject(j, "b", cJSON_Duplicate(b, true)));
    return cli_put_json(k->out, j, ok, e);
}

int view_diff(struct stream_reader *a, struct stream_reader *b, struct stream_map *map, FILE *to,
              const struct view_diff_options *o, struct view_diff_found *found, struct err *e) {
    struct comparison k = {.o = o, .found = found, .out = to};
    const cJSON *meta = b ? stream_reader_meta(b) : stream_map_meta(map);
    *found = (struct view_diff_found){0};
    k.tolerant = o->max_abs || o->mean_abs || o->min_cosine;
    int rc = put_meta(&k, "meta", stream_reader_meta(a), meta, e);
    if (!rc) rc = b ? stream_compare_batches(a, b, put_pair, &k, e) : stream_compare_map(a, map, put_pair, &k, e);
    return rc ? rc : put_total(&k, e);
}

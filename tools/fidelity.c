/* rill fidelity: measures what encodings of a teacher's predictions cost, and how well they keep a student's
 * gradient. */
#include "lib/metrics/metrics.h"
#include "lib/session/session.h"

#define MAX_ENCODINGS 64

static struct session_options how;
static bool table, tsv, speed;

static const struct cli_option options[] = {
    SESSION_MODEL(how, "STUDENT", true, "the student whose gradients are compared"),
    SESSION_PRECISION(how),
    {.name = "table",
     .type = CLI_FLAG,
     .to = &table,
     .needs = {"!tsv"},
     .help = "print a table for reading instead of JSON"},
    {.name = "tsv", .type = CLI_FLAG, .to = &tsv, .help = "print tab-separated values instead of JSON"},
    {.name = "speed",
     .type = CLI_FLAG,
     .to = &speed,
     .help = "also print how many tokens per second are decoded and turned into a gradient, not counting the student; "
             "it differs from run to run (--report always has it)"},
    {0},
};

struct work {
    struct cli *c;
    struct model *m;
    struct session_data data[MAX_ENCODINGS];
    struct fidelity_input in[MAX_ENCODINGS];
    size_t n;
    struct fidelity *f;
};

static int open_inputs(struct work *w, struct err *e) {
    size_t bad;
    w->n = cli_operands(w->c);
    if (w->n > MAX_ENCODINGS) {
        w->n = 0;
        return err_set(e, ERR_USAGE, "%zu encodings: at most %d", cli_operands(w->c), MAX_ENCODINGS);
    }
    for (size_t i = 0; i < w->n; i++) {
        struct session_data *d = &w->data[i];
        if (session_open_data(w->c, cli_operand(w->c, i), "knowledge", STREAM_KNOWLEDGE, w->m, d, e)) return e->code;
        w->in[i] = (struct fidelity_input){d->stream, &d->format};
    }
    if (fidelity_new(&w->f, w->m, w->in, w->n, &bad, e)) return err_prefix(e, "%s", stream_reader_name(w->in[bad].r));
    return 0;
}

static void show(void *ctx) {
    const struct work *w = ctx;
    cli_progress(w->c, fidelity_positions(w->f), NULL);
}

/* ---- results ----------------------------------------------------------------------------------------------------- */

static int put_tsv(struct cli *c, const cJSON *results, struct err *e) {
    const cJSON *row, *cell;
    FILE *out;
    if (cli_text(c, &out, e)) return e->code;
    cJSON_ArrayForEach(cell, results->child) fprintf(out, "%s%s", cell->string, cell->next ? "\t" : "\n");
    cJSON_ArrayForEach(row, results) cJSON_ArrayForEach(cell, row) {
        if (cJSON_IsNumber(cell))
            fprintf(out, "%.6g", cell->valuedouble);
        else
            fprintf(out, "%s", cell->valuestring);
        fputc(cell->next ? '\t' : '\n', out);
    }
    return 0;
}

/* Adds results to the printed output, and with their speed to the report. */
static int put_results(struct work *w, cJSON *printed, cJSON *reported, struct err *e) {
    for (size_t i = 0; i < w->n; i++) {
        cJSON *one = fidelity_json(w->f, i, e);
        if (!one) return e->code;
        cJSON *full = cJSON_Duplicate(one, true);
        bool ok = full && json_put_f64(full, "tokens_per_second", fidelity_speed(w->f, i)) &&
                  (!speed || json_put_f64(one, "tokens_per_second", fidelity_speed(w->f, i)));
        ok = cJSON_AddItemToArray(printed, one) && ok;
        ok = cJSON_AddItemToArray(reported, full) && ok;
        if (!ok) return err_nomem(e, "results");
    }
    if (tsv) return put_tsv(w->c, printed, e);
    if (table) return cli_table(w->c, printed, e);
    for (const cJSON *one = printed->child; one; one = one->next)
        if (cli_result(w->c, one, e)) return e->code;
    return 0;
}

static int run(struct cli *c, struct err *e) {
    struct work *w = mem_zalloc(sizeof *w, e);
    if (!w) return e->code;
    w->c = c;
    cJSON *printed = cJSON_CreateArray(), *reported = cJSON_AddArrayToObject(cli_report(c), "results");
    int rc = printed && reported ? 0 : err_nomem(e, "results");
    if (!rc) rc = session_load_model(c, &how, session_weight_format(&how), &w->m, NULL, e);
    if (!rc) rc = open_inputs(w, e);
    cli_progress_begin(c, "positions", 0);
    if (!rc) rc = fidelity_read(w->f, show, w, e);
    cli_progress_end(c);
    if (!rc) rc = put_results(w, printed, reported, e);
    cJSON_Delete(printed);
    fidelity_free(w->f);
    for (size_t i = 0; i < w->n; i++) session_data_release(&w->data[i]);
    model_free(w->m);
    mem_free(w);
    return rc;
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "fidelity",
        .summary = "measure what each encoding of a teacher's predictions costs and keeps",
        .operands = "DENSE KNOWLEDGE...",
        .min_operands = 2,
        .max_operands = -1,
        .writes_text = true,
        .threaded = true,
        .description =
            "Compares encodings of the same predictions (logit-dump) with the dense ones (teacher-infer), by the "
            "gradient they give a student: that of the loss kl with respect to the logits, as in training. Prints one "
            "JSON object per encoding, the dense one first. Any one of the inputs may be standard input (-).\n\n  "
            "angle                 in degrees, between the gradients summed over all positions: what a "
            "training\n                        step sees, where noise of random draws averages out but a bias stays\n  "
            "norm_ratio            norm of that gradient, divided by the dense one's\n  position_angle        mean "
            "over positions of the angle at each\n  position_norm_ratio   likewise, of root mean squares\n  "
            "calibration_error     expected calibration error (15 bins) of the probability that the "
            "target\n                        gives to the student's most probable token\n  bytes, bytes_zstd     per "
            "position, as encoded and as --codec zstd stores it\n\nAll values are at the temperature of the encodings, "
            "over positions that have a label.",
        .examples = "rill fidelity -m student.rill --table dense.kd.rill corpus.kd.rill\n"
                    "    50 draws against the whole distribution\n"
                    "rill logit-dump --encode ghost:20 dense.kd.rill | rill fidelity -m student.rill dense.kd.rill -\n"
                    "    20 entries and the rest as one\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}

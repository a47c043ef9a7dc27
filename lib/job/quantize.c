/* Quantization-aware training: the types of a plan for lib/train, and messages about them. */
#include <stdio.h>

#include "lib/job/job_internal.h"

/* Types whose scales are not separate from their codes are searched again after each step. */
static bool is_searched(enum dtype t) {
    return dtype_info(t)->is_quantized && !quant_form(t);
}

static void say_plan(const struct job *j, const struct quant_plan *p) {
    const struct model *m = j->student;
    const struct quant_choice *fell = NULL, *searched = NULL;
    const char *first = NULL;
    size_t n = 0;
    for (size_t i = 0; i < p->n; i++) {
        const struct quant_choice *choice = &p->choices[i];
        if (is_searched(choice->to)) searched = choice;
        if (choice->to == choice->wanted) continue;
        if (!n++) first = m->params[i].desc.name, fell = choice;
    }
    if (fell)
        cli_say(j->c,
                "%zu tensors fall back to a larger type because their rows are not a whole number of blocks: first "
                "'%s', %s instead of %s",
                n, first, dtype_info(fell->to)->name, dtype_info(fell->wanted)->name);
    if (searched)
        cli_say(j->c,
                "%s has no scales apart from its codes: its matrices are searched after every step, which is slow",
                dtype_info(searched->to)->name);
}

int job_open_quantization(struct job *j, struct err *e) {
    const struct job_options *o = j->o;
    struct compress_quantize_options how = {
        .type = o->quantize, .plan = o->quantize_plan, .rules = o->tensor_types, .method = "rtn"};
    struct quant_plan plan = {0};
    if (!how.type && !how.plan) return 0;
    if (compress_make_plan(&plan, j->c, &how, &j->student->config, e)) return e->code;
    j->types = mem_array(plan.n, sizeof *j->types, e);
    for (size_t i = 0; j->types && i < plan.n; i++) j->types[i] = plan.choices[i].to;
    if (j->types) {
        say_plan(j, &plan);
        j->settings.train.quantize.types = j->types;
    }
    quant_plan_release(&plan);
    return j->types ? 0 : e->code;
}

int job_report_quantization(const struct job *j, struct err *e) {
    double bytes = 0, elems = 0;
    const struct model *m = j->student;
    if (!j->types) return 0;
    for (size_t i = 0; i < m->n_params; i++) {
        const struct model_param *p = &m->params[i];
        bytes += (double)dtype_row_bytes(p->grid ? p->grid->dtype : p->desc.dtype, p->n);
        elems += (double)p->n;
    }
    cli_say(j->c, "%.3f bits per weight", 8 * bytes / elems);
    return json_put_f64(cli_report(j->c), "bits_per_weight", 8 * bytes / elems) ? 0 : err_nomem(e, "report");
}

/* The table of losses, and its help. */
#include <stdio.h>
#include <string.h>

#include "lib/losses/losses_internal.h"

const struct loss_type *const loss_types[] = {
    &loss_kl,  &loss_rkl,      &loss_skl,  &loss_srkl, &loss_jsd,    &loss_akl,      &loss_tvd, &loss_ab,
    &loss_ce,  &loss_smooth,   &loss_tfkd, &loss_mse,  &loss_hinge,  &loss_logistic, &loss_uld, &loss_hidden,
    &loss_pkd, &loss_tinybert, &loss_at,   &loss_ft,   &loss_crd,    &loss_fsp,      &loss_nst, &loss_sp,
    &loss_cc,  &loss_pkt,      &loss_rkd,  &loss_irg,  &loss_minilm, &loss_minilm2,  NULL,
};

const struct loss_key loss_common_keys[] = {
    {"weight", LOSS_WORDS, "W", "1",
     .help = "of the loss in the sum; A..B goes from A at the first step to B at the last"},
    {"label", LOSS_WORDS, "NAME", NULL, .help = "its name in log and report, where a loss is given more than once"},
    {0}};

const struct loss_key loss_logits_keys[] = {
    {"at", LOSS_WORDS, "final|exits|N", "final",
     .help = "which head of the student: the last, the mean over all of --exit, or the one after N layers"},
    {"teacher", LOSS_CHOICE, "data|live|final|ema", NULL,
     .help = "who teaches: the data, --teacher, the student's own last head, or the mean of its weights (--ema); "
             "without it, the data, or --teacher where the data is tokens"},
    {0}};

const struct loss_type *loss_type_by_name(const char *name) {
    for (size_t i = 0; loss_types[i]; i++)
        if (!strcmp(loss_types[i]->name, name)) return loss_types[i];
    return NULL;
}

const char *loss_names(void) {
    static char text[512];
    size_t n = 0;
    for (size_t i = 0; loss_types[i] && n < sizeof text; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%s", i ? "|" : "", loss_types[i]->name);
    return text;
}

const char *loss_help(void) {
    return "NAME:key=value,...: the training loss; several are added up. All take weight=W, or weight=A..B from the "
           "first "
           "step to the last, and label=NAME; --list-losses shows their other keys. Default: kl at the data's "
           "temperature, "
           "or ce for plain tokens without --teacher";
}

char *loss_needs_text(const struct loss_type *t, char *out, size_t size) {
    static const struct {
        enum knowledge_encoding encoding;
        const char *name;
    } encodings[] = {{KNOW_DENSE, "dense"},
                     {KNOW_TOPK, "topk"},
                     {KNOW_TOPP, "topp"},
                     {KNOW_GHOST, "ghost"},
                     {KNOW_SAMPLE, "sample"}};
    size_t n = 0;
    out[0] = 0;
    for (size_t i = 0; i < COUNT_OF(encodings) && n < size; i++)
        if (t->encodings & LOSS_ON(encodings[i].encoding))
            n += (size_t)snprintf(out + n, size - n, "%s%s", n ? ", " : "", encodings[i].name);
    if (!n && t->taps)
        snprintf(out, size, "%s of a teacher (teacher-infer --tap, or --teacher)", t->taps);
    else if (!n)
        snprintf(out, size, "tokens");
    return out;
}

static void print_keys(FILE *out, const struct loss_key *keys) {
    for (const struct loss_key *k = keys; k->name; k++) {
        fprintf(out, "    %s=%s  %s", k->name, k->arg, k->help);
        if (k->fallback) fprintf(out, " (default: %s)", k->fallback);
        fputc('\n', out);
    }
}

void loss_print_table(FILE *out) {
    char needs[128];
    for (size_t i = 0; loss_types[i]; i++) {
        const struct loss_type *t = loss_types[i];
        fprintf(out, "%s: %s\n  formula: %s\n  source:  %s\n  needs:   %s\n", t->name, t->summary, t->formula,
                t->source, loss_needs_text(t, needs, sizeof needs));
        if (t->on_sparse) fprintf(out, "  sparse:  %s\n", t->on_sparse);
        if (t->keys[0].name) fprintf(out, "  keys:\n");
        print_keys(out, t->keys);
        fputc('\n', out);
    }
    fputs("every loss also has\n", out);
    print_keys(out, loss_common_keys);
    fputs("every loss on logits also has\n", out);
    print_keys(out, loss_logits_keys);
}

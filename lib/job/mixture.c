/* Options --shuffle, --mix and --decay-data: opens the files of a mixture, with their weights. */
#include <string.h>

#include "lib/job/job_internal.h"

/* Parses "FILE" or "FILE=WEIGHT"; the caller frees *path. A name that contains = must be followed by a weight. */
static int parse_file(const char *option, const char *text, char **path, double *weight, struct err *e) {
    const char *sign = strrchr(text, '=');
    size_t n = sign ? (size_t)(sign - text) : strlen(text);
    *weight = 1;
    if (!n) return err_set(e, ERR_USAGE, "--%s %.200s: no file is named", option, text);
    if (sign && (!parse_f64(sign + 1, weight) || !(*weight > 0 && *weight <= 1e9)))
        return err_set(e, ERR_USAGE, "--%s %.200s: expected a weight above 0 and up to 1e9 after the =", option, text);
    *path = mem_alloc(n + 1, e);
    if (!*path) return e->code;
    memcpy(*path, text, n);
    (*path)[n] = 0;
    return 0;
}

static struct job_file *find_file(struct job *j, const char *path) {
    for (size_t i = 0; i < j->n_files; i++)
        if (!strcmp(j->files[i].path, path)) return &j->files[i];
    return NULL;
}

static int add_file(struct job *j, const char *option, const char *text, bool decay, struct err *e) {
    double weight;
    char *path = NULL;
    if (parse_file(option, text, &path, &weight, e)) return e->code;
    struct job_file *f = find_file(j, path);
    bool known = f != NULL;
    if (!known) f = &j->files[j->n_files];
    double *to = decay ? &f->decay_weight : &f->weight;
    int rc = *to > 0 ? err_set(e, ERR_USAGE, "--%s %.200s: it is in the mixture already", option, path) : 0;
    if (!rc) *to = weight;
    if (known || rc) {
        mem_free(path);
        return rc;
    }
    j->n_files++;
    f->path = path;
    f->data = &f->own;
    return session_open_data(j->c, path, option, STREAM_ANY, j->student, f->data, e);
}

static int open_again(void *ctx, struct stream_reader **r, struct err *e) {
    struct job_file *f = ctx;
    return session_file_again(&f->data->file, STREAM_ANY, r, e);
}

static int add_to_mixture(struct job *j, struct job_file *f, struct err *e) {
    const char *name = stream_reader_name(f->data->stream);
    const struct mixture_file file = {
        .name = name, .weight = f->weight, .decay_weight = f->decay_weight, .open = open_again, .ctx = f};
    if (!f->data->file.is_file)
        return err_set(e, ERR_USAGE, "%s is a pipe: data to be shuffled or mixed must be in a file", name);
    return mixture_add(j->mixture, &file, e);
}

static int add_operand(struct job *j, struct err *e) {
    const char *path = cli_input_path(j->c, 0);
    struct job_file *f = &j->files[j->n_files++];
    *f = (struct job_file){.path = mem_strdup(path, e), .weight = 1, .data = &j->data};
    return f->path ? 0 : e->code;
}

static int add_files(struct job *j, struct err *e) {
    const struct job_options *o = j->o;
    if (add_operand(j, e)) return e->code;
    for (size_t i = 0; i < o->mix.n; i++)
        if (add_file(j, "mix", o->mix.items[i], false, e)) return e->code;
    for (size_t i = 0; i < o->decay_data.n; i++)
        if (add_file(j, "decay-data", o->decay_data.items[i], true, e)) return e->code;
    for (size_t i = 0; i < j->n_files; i++)
        if (add_to_mixture(j, &j->files[i], e)) return e->code;
    return 0;
}

static int check_schedule(const struct job *j, struct err *e) {
    const struct schedule_type *type = train_schedule_type(&j->settings.plan.now);
    if (!j->o->decay_data.n || type->has_decay) return 0;
    return err_set(e, ERR_USAGE, "--decay-data: the schedule %s has no decay (--schedule wsd)", type->name);
}

int job_open_mixture(struct job *j, struct err *e) {
    const struct job_options *o = j->o;
    if (!o->shuffle && !o->mix.n && !o->decay_data.n) return 0;
    j->files = mem_array(1 + o->mix.n + o->decay_data.n, sizeof *j->files, e);
    if (!j->files || check_schedule(j, e) || mixture_new(&j->mixture, o->shuffle, cli_seed(j->c), e)) return e->code;
    j->settings.mixture = j->mixture;
    return add_files(j, e);
}

void job_free_mixture(struct job *j) {
    mixture_free(j->mixture);
    for (size_t i = 0; i < j->n_files; i++) {
        session_data_release(&j->files[i].own);
        mem_free((char *)j->files[i].path);
    }
    mem_free(j->files);
}

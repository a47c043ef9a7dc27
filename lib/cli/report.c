/* report: implements --report FILE: one JSON object on the run, written when the program ends, even if it fails. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "lib/cli/cli_internal.h"
#include "lib/kernel/kernel.h"

/* Created early, so that a missing folder is noticed before hours of work. */
int report_begin(struct cli *c, struct err *e) {
    if (!c->report_path) return 0;
    return file_out_create(c, c->report_path, true, &c->report_file, e);
}

static double seconds_since(const struct timespec *start) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - start->tv_sec) + 1e-9 * (double)(now.tv_nsec - start->tv_nsec);
}

static bool put_item(cJSON *object, const char *key, cJSON *item) {
    if (item && cJSON_AddItemToObject(object, key, item)) return true;
    cJSON_Delete(item);
    return false;
}

static double seconds_of(struct timeval t) {
    return (double)t.tv_sec + 1e-6 * (double)t.tv_usec;
}

/* Records which code ran: other CPU paths differ in the last bits. */
static bool put_backend(cJSON *o) {
    struct kernel_backend b = kernel_backend();
    cJSON *to = cJSON_AddObjectToObject(o, "backend");
    return to && json_put_str(to, "cpu_path", b.path) && json_put_str(to, "f32", b.f32) &&
           json_put_str(to, "bf16", b.bf16) && json_put_str(to, "int8", b.int8) && json_put_str(to, "blas", "none");
}

/* Shares of the main thread's time, and the idle share of all threads' time. */
static bool put_profile(cJSON *o) {
    struct profile_shares shares;
    if (!profile_read(&shares, parallel_threads())) return true;
    cJSON *to = cJSON_AddObjectToObject(o, "profile");
    bool ok = to != NULL;
    for (int i = 0; ok && i < PROFILE_PARTS; i++)
        ok = json_put_f64(to, profile_part_name((enum profile_part)i), shares.part[i]);
    return ok && json_put_f64(to, "other", shares.other) && json_put_f64(to, "idle", shares.idle);
}

void profile_print(struct cli *c) {
    struct profile_shares shares;
    char line[512];
    size_t n = 0;
    if (c->quiet || !profile_read(&shares, parallel_threads())) return;
    for (int i = 0; i < PROFILE_PARTS; i++)
        if (shares.part[i] >= 0.0005)
            n += (size_t)snprintf(line + n, sizeof line - n, "%s %.1f%%, ", profile_part_name((enum profile_part)i),
                                  100 * shares.part[i]);
    snprintf(line + n, sizeof line - n, "other %.1f%% of %.2f s; of %d thread%s %.1f%% idle", 100 * shares.other,
             shares.seconds, parallel_threads(), parallel_threads() == 1 ? "" : "s", 100 * shares.idle);
    cli_message(c, "profile: ", line);
}

static bool put_costs(cJSON *o, struct cli *c) {
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    return json_put_f64(o, "seconds", seconds_since(&c->start)) &&
           json_put_f64(o, "cpu_seconds", seconds_of(use.ru_utime) + seconds_of(use.ru_stime)) &&
           json_put_u64(o, "peak_memory_bytes", (uint64_t)use.ru_maxrss * 1024) &&
           json_put_u64(o, "threads", (uint64_t)parallel_threads()) && put_backend(o) && put_profile(o);
}

static int put_command(cJSON *o, struct cli *c, struct err *e) {
    cJSON *argv = cJSON_AddArrayToObject(o, "argv");
    for (int i = 0; argv && i < c->argc; i++) {
        const char *word;
        if (names_utf8(&c->arena, c->argv[i], &word, e)) return e->code;
        if (!cJSON_AddItemToArray(argv, cJSON_CreateString(word))) return err_nomem(e, "report");
    }
    return argv && put_item(o, "settings", settings_json(c)) &&
                   put_item(o, "resolved", cJSON_Duplicate(c->settings, true))
               ? 0
               : err_nomem(e, "report");
}

static bool put_inputs(cJSON *o, struct cli *c) {
    char digest[DIGEST_TEXT_SIZE];
    cJSON *inputs = cJSON_AddArrayToObject(o, "inputs");
    bool ok = inputs != NULL;
    for (struct cli_input *in = c->inputs; ok && in; in = in->next) {
        cJSON *one = cJSON_CreateObject();
        ok = one && cJSON_AddItemToArray(inputs, one);
        if (!ok) {
            cJSON_Delete(one);
            break;
        }
        ok = json_put_str(one, "role", in->role) && (!in->path || json_put_str(one, "path", in->path));
        if (in->digest.lo || in->digest.hi) {
            digest_text(in->digest, digest);
            ok = ok && json_put_str(one, "digest", digest);
        }
    }
    return ok;
}

static bool put_output(cJSON *o, struct cli *c) {
    char digest[DIGEST_TEXT_SIZE];
    cJSON *out = cJSON_AddObjectToObject(o, "output");
    if (!out) return false;
    if (c->recorded_output && !json_put_str(out, "path", c->recorded_output)) return false;
    if (!c->writer_closed) return true;
    const struct stream_totals *t = &c->totals;
    digest_text(t->digest, digest);
    return json_put_str(out, "digest", digest) && json_put_u64(out, "bytes", t->bytes) &&
           json_put_u64(out, "raw_bytes", t->raw_bytes) && json_put_u64(out, "tensors", t->tensors) &&
           json_put_u64(out, "batches", t->batches) && json_put_u64(out, "positions", t->positions);
}

static int fill_report(struct cli *c, cJSON *o, int code, const char *message, struct err *e) {
    bool ok = json_put_str(o, "program", c->program->name) && json_put_str(o, "version", RILL_VERSION) &&
              json_put_u64(o, "exit_code", (uint64_t)cli_exit_code(code));
    if (ok && message && *message) {
        const char *text;
        if (names_utf8(&c->arena, message, &text, e)) return e->code;
        ok = json_put_str(o, "message", text);
    }
    if (!ok) return err_nomem(e, "report");
    if (put_command(o, c, e)) return e->code;
    ok = (!c->program->seeded || json_put_u64(o, "seed", c->seed)) && put_inputs(o, c) && put_output(o, c) &&
         put_item(o, "counts", cJSON_Duplicate(c->report, true)) && put_costs(o, c);
    return ok ? 0 : err_nomem(e, "report");
}

static int write_report(struct cli *c, const char *text, struct err *e) {
    struct buf line = {0};
    int rc = buf_printf(&line, e, "%s\n", text);
    if (!rc && !fd_write(c->report_file->file.fd, line.data, line.len)) rc = err_sys(e, errno, "%s", c->report_path);
    buf_release(&line);
    return rc ? rc : out_file_sync(&c->report_file->file, e);
}

/* Writes and syncs it; report_commit renames it once the output is complete. */
int report_finish(struct cli *c, int code, const char *message, struct err *e) {
    if (!c->report_file || c->report_file->file.fd < 0 || !c->report) return 0;
    cJSON *o = cJSON_CreateObject();
    if (!o) return err_nomem(e, "report");
    int rc = fill_report(c, o, code, message, e);
    char *text = rc ? NULL : json_text_shown(o, e);
    cJSON_Delete(o);
    if (!text) return e->code;
    rc = write_report(c, text, e);
    mem_free(text);
    return rc;
}

void cli_put_version(FILE *out, const char *name, bool verbose) {
    fprintf(out, "%s %s\n", name, RILL_VERSION);
    if (!verbose) return;
    struct kernel_backend b = kernel_backend();
    fprintf(out, "CPU path: %s (RILL_CPU names another)\n", b.path);
    fprintf(out, "products: f32 %s, bf16 %s, int8 %s; BLAS: none\n", b.f32, b.bf16, b.int8);
    fprintf(out, "threads: %d\n", parallel_threads());
}

int report_commit(struct cli *c, struct err *e) {
    return c->report_file ? out_file_commit(&c->report_file->file, e) : 0;
}

/* Removes a report of success if a later step failed. */
void report_retract(struct cli *c) {
    if (!c->report_file || c->report_file->file.fd >= 0) return;
    const struct out_file *f = &c->report_file->file;
    if (f->done && f->place.target) unlink(f->place.target);
    c->report_file = NULL;
}

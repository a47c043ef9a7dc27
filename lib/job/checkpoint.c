/* Checkpoint files: writing them during a run, and reading them before it. */
#include <string.h>

#include "lib/job/job_internal.h"

int job_save_checkpoint(void *ctx, struct trainer *t, struct err *e) {
    struct job *j = ctx;
    const char *path = j->o->checkpoint;
    struct stream_write_options raw = {0};
    struct stream_writer *writer = NULL;
    struct cli_out_file *file;
    int fd, rc = cli_create(j->c, path, true, &fd, &file, e);
    if (!rc) rc = stream_writer_open(&writer, fd, path, &raw, e);
    if (!rc) rc = trainer_save(t, writer, e);
    if (!rc) rc = stream_writer_finish(writer, NULL, e);
    stream_writer_free(writer);
    return rc ? rc : cli_commit(j->c, file, e);
}

/* Another run's checkpoint is recorded as an input in the provenance. */
static int start(struct job *j, struct err *e) {
    struct stream_reader *r;
    if (!j->o->start_state) return 0;
    if (cli_open_stream(j->c, j->o->start_state, "start-state", STREAM_CHECKPOINT, &r, e)) return e->code;
    return trainer_start(j->trainer, r, e);
}

static int read_checkpoint(struct job *j, struct err *e) {
    const char *path = j->o->resume;
    struct stream_reader *r;
    if (!strcmp(path, "-") && (!strcmp(j->o->student.model, "-") || !strcmp(cli_input_path(j->c, 0), "-")))
        return err_set(e, ERR_USAGE, "standard input is used twice (resume)");
    session_file_init(&j->checkpoint, path);
    int rc = session_file_again(&j->checkpoint, STREAM_CHECKPOINT, &r, e);
    if (!rc) rc = trainer_restore(j->trainer, r, e);
    session_file_release(&j->checkpoint);
    return rc;
}

/* The resumed checkpoint is not recorded as an input: the recorded command makes the same model without it. */
static int resume(struct job *j, struct err *e) {
    struct train_plan asked = *trainer_plan(j->trainer);
    struct distill_progress p;
    char text[DISTILL_TEXT];
    if (!j->o->resume) return job_remember_plan(j, &asked, false, e);
    if (read_checkpoint(j, e)) return e->code;
    trainer_progress(j->trainer, &p);
    const struct train_plan *plan = trainer_plan(j->trainer);
    if (distill_resumed_text(j->trainer, text) || cli_verbose(j->c)) cli_say(j->c, "%s: %s", j->o->resume, text);
    if (!json_put_u64(cli_report(j->c), "resumed_after_step", p.step)) return err_nomem(e, "report");
    return job_remember_plan(j, plan, !train_plan_equal(plan, &asked), e);
}

int job_restore(struct job *j, struct err *e) {
    if (start(j, e)) return e->code;
    return resume(j, e);
}

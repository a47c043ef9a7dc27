/* output: the program's result, a stream or text, to standard output or -o FILE. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "lib/cli/cli_internal.h"

/* ---- the program's output ---------------------------------------------------------------------------------------- */

/* Determines the output's name for the recipe: the same for -o FILE and > FILE, since the recipe uses only one of them
 * and the bytes must not differ. A file that is appended to has other contents as well, so it gets no name. */
static int record_output(struct cli *c, struct err *e) {
    const char *name;
    if (!output_is_stdout(c)) {
        if (!c->output->file.place.target) return 0;
        if (names_relative(&c->arena, c->output->file.place.target, &name, e)) return e->code;
        c->recorded_output = names_in_json(name);
        return 0;
    }
    struct stat st;
    if (fstat(STDOUT_FILENO, &st) == 0 && S_ISREG(st.st_mode) && st.st_size != 0) return 0;
    return names_fd_path(&c->arena, STDOUT_FILENO, &c->recorded_output, e);
}

static int open_place(struct cli *c, bool binary, int *fd, struct err *e) {
    if (output_is_stdout(c)) {
        *fd = STDOUT_FILENO;
        if (check_inputs_not_output(c, e)) return e->code;
    } else {
        if (file_out_create(c, c->output_path, c->force, &c->output, e)) return e->code;
        *fd = c->output->file.fd;
    }
    if (binary && !c->force && isatty(*fd))
        return err_set(e, ERR_USAGE,
                       "the output is binary and would go to a terminal (use -o FILE, redirect it, or --force)");
    return record_output(c, e);
}

int cli_open_output(struct cli *c, struct stream_writer **out, struct err *e) {
    struct stream_write_options options = {.level = (int)c->level};
    int fd;
    if (stream_codec_parse(c->codec, &options.codec, e)) return e->code;
    if (open_place(c, true, &fd, e)) return e->code;
    if (stream_writer_open(&c->writer, fd, output_name(c), &options, e)) return e->code;
    c->writer_open = true;
    *out = c->writer;
    return 0;
}

int cli_close_output(struct cli *c, struct err *e) {
    if (!c->writer_open) return 0;
    if (inputs_finish(c, e)) return e->code;
    if (!c->no_provenance && prov_write(c, c->writer, e)) return e->code;
    if (stream_writer_finish(c->writer, &c->totals, e)) return e->code;
    c->writer_open = false;
    c->writer_closed = true;
    return c->output ? out_file_sync(&c->output->file, e) : 0;
}

int cli_text(struct cli *c, FILE **out, struct err *e) {
    int fd;
    if (!c->text) {
        /* do not mix results with a progress bar on the same terminal */
        if (output_is_stdout(c) && isatty(STDOUT_FILENO))
            c->progress.enabled &= strcmp(c->progress_mode, "always") == 0;
        if (open_place(c, false, &fd, e)) return e->code;
        c->text = text_open(fd);
        if (!c->text) return err_nomem(e, "text output");
    }
    *out = c->text;
    return 0;
}

/* Keeps line ends and tabs. A character split between two calls is shown as bytes. */
static void put_document(FILE *out, const char *text, size_t n) {
    char shown[ESCAPE_MAX];
    for (size_t took; n; text += took, n -= took) {
        escape_char(text, n, &took, shown);
        fputs(*text == '\n' ? "\n" : *text == '\t' ? "\t" : shown, out);
    }
}

int cli_put_document(struct cli *c, const void *text, size_t n, struct err *e) {
    FILE *out;
    if (cli_text(c, &out, e)) return e->code;
    if (isatty(output_fd(c)))
        put_document(out, text, n);
    else if (n)
        fwrite(text, 1, n, out);
    return ferror(out) ? err_sys(e, errno, "%s", output_name(c)) : 0;
}

int cli_binary(struct cli *c, int *fd, struct err *e) {
    return open_place(c, true, fd, e);
}

int output_finish(struct cli *c, struct err *e) {
    if (cli_close_output(c, e)) return e->code;
    FILE *text = c->text;
    c->text = NULL;
    if (text && text_close(text, output_name(c), e)) return e->code;
    if (c->output && out_file_sync(&c->output->file, e)) return e->code;
    return text_close(stdout, "standard output", e);
}

int output_commit(struct cli *c, struct err *e) {
    return c->output ? out_file_commit(&c->output->file, e) : 0;
}

void output_abort(struct cli *c, const char *why) {
    /* not needed in a temporary file that is removed anyway */
    bool seen = !c->output || !c->output->file.place.tmp;
    if (c->writer_open && seen && !c->hands_off) stream_writer_abort(c->writer, why);
    c->writer_open = false;
    if (c->text) fclose(c->text);
    c->text = NULL;
}

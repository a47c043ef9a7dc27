/* Opens the data stream that goes through a model, and checks that both have the same vocabulary. */
#include <string.h>

#include "lib/session/session.h"

int session_open_data(struct cli *c, const char *path, const char *role, enum stream_kind expect, const struct model *m,
                      struct session_data *d, struct err *e) {
    session_file_init(&d->file, path);
    if (cli_open_stream(c, path, role, expect, &d->stream, e)) return e->code;
    const char *name = stream_reader_name(d->stream);
    const cJSON *meta = stream_reader_meta(d->stream);
    if (knowledge_meta_get(meta, &d->format, e)) return err_prefix(e, "%s", name);
    return m ? model_check_vocab(m, meta, name, e) : 0;
}

int session_check_vocab(const struct vocab *v, const struct session_data *d, const char *what, struct err *e) {
    char ours[DIGEST_TEXT_SIZE];
    digest_text(v->digest, ours);
    if (!d->format.vocab[0] || !strcmp(d->format.vocab, ours)) return 0;
    return err_set(e, ERR_DATA, "model and %s disagree: vocabulary %s against %s (tokenize with this model)", what,
                   ours, d->format.vocab);
}

void session_data_release(struct session_data *d) {
    session_file_release(&d->file);
    *d = (struct session_data){0};
}

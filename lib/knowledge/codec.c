/* The tables of codecs, and the names of encodings on the command line. */
#include <stdio.h>
#include <string.h>

#include "lib/knowledge/knowledge_internal.h"

static const struct knowledge_response_codec *const responses[] = {
    &knowledge_codec_dense,  &knowledge_codec_topk, &knowledge_codec_ghost,
    &knowledge_codec_sample, &knowledge_codec_topp,
};
static const struct knowledge_codec *const codecs[] = {
    [PER_POSITION] = &knowledge_codec_rows,
    [PER_SEQUENCE] = &knowledge_codec_rows,
    [PER_PAIR] = &knowledge_codec_attention,
};

const struct knowledge_response_codec *knowledge_response_codec(enum knowledge_encoding encoding) {
    for (size_t i = 0; i < COUNT_OF(responses); i++)
        if (responses[i]->encoding == encoding) return responses[i];
    return NULL;
}

const struct knowledge_response_codec *knowledge_response_codec_find(const char *name, size_t len) {
    for (size_t i = 0; i < COUNT_OF(responses); i++)
        if (strlen(responses[i]->name) == len && !memcmp(responses[i]->name, name, len)) return responses[i];
    return NULL;
}

const struct knowledge_codec *knowledge_codec_find(const char *name) {
    for (size_t i = 0; i < COUNT_OF(codecs); i++)
        if (!strcmp(codecs[i]->name, name)) return codecs[i];
    return NULL;
}

const struct knowledge_codec *knowledge_codec_of(enum knowledge_per per) {
    return codecs[per];
}

bool knowledge_is_response(const char *tensor) {
    static const char *const names[] = {"logits", "n", "ids", "logprobs", "counts", "draws"};
    if (strncmp(tensor, "teacher.", 8) != 0) return false;
    for (size_t i = 0; i < COUNT_OF(names); i++)
        if (!strcmp(tensor + 8, names[i])) return true;
    return false;
}

/* Writes the list for messages: "topp:P, sample:N, ghost:K, topk:K or dense". */
static const char *expected(char *out, size_t size) {
    size_t n = 0;
    for (size_t i = COUNT_OF(responses); i-- > 0;) {
        const struct knowledge_response_codec *c = responses[i];
        const char *join = i == 0 ? " or " : i + 1 < COUNT_OF(responses) ? ", " : "";
        int more = snprintf(out + n, size - n, "%s%s%s%s", join, c->name, c->argument ? ":" : "",
                            c->argument ? c->argument : "");
        n += (size_t)more < size - n ? (size_t)more : size - n - 1;
    }
    return out;
}

int knowledge_encoding_parse(const char *text, struct knowledge_format *f, struct err *e) {
    char all[128];
    size_t name_len = strcspn(text, ":");
    const char *argument = text[name_len] == ':' ? text + name_len + 1 : NULL;
    const struct knowledge_response_codec *c = knowledge_response_codec_find(text, name_len);
    if (!c) return err_set(e, ERR_USAGE, "unknown encoding \"%s\": expected %s", text, expected(all, sizeof all));
    struct knowledge_format made = *f;
    made.n = 0;
    made.p = 0;
    made.encoding = c->encoding;
    if (!c->argument) {
        if (argument) return err_set(e, ERR_USAGE, "encoding \"%s\": %s takes no number", text, c->name);
    } else if (!argument || !c->parse(argument, &made)) {
        bool share = c->encoding == KNOW_TOPP;
        return err_set(e, ERR_USAGE, "encoding \"%s\": expected %s:%s with %s from %s", text, c->name, c->argument,
                       c->argument, share ? "above 0 to 1" : "1 to 65535");
    }
    *f = made;
    return 0;
}

char *knowledge_encoding_text(const struct knowledge_format *f, char *out, size_t size) {
    const struct knowledge_response_codec *c = knowledge_response_codec(f->encoding);
    if (c)
        c->text(f, out, size);
    else
        snprintf(out, size, "none");
    return out;
}

double knowledge_response_bytes(const struct knowledge_format *f, uint64_t counted) {
    const struct knowledge_response_codec *c = knowledge_response_codec(f->encoding);
    return c ? c->bytes(f) * (f->target == TARGET_SEQUENCE ? 1 : (double)counted) : 0;
}

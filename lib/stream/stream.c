/* Names of stream kinds, targets and codecs. */
#include "lib/stream/stream.h"

static const char *const kinds[] = {
    [STREAM_ANY] = "any",       [STREAM_MODEL] = "model",
    [STREAM_TOKENS] = "tokens", [STREAM_KNOWLEDGE] = "knowledge",
    [STREAM_STATS] = "stats",   [STREAM_CHECKPOINT] = "checkpoint",
};
static const char *const codecs[] = {
    [CODEC_RAW] = "raw", [CODEC_ZSTD] = "zstd", [CODEC_PLANES] = "planes", [CODEC_SPARSE] = "sparse"};

const char *stream_kind_name(enum stream_kind kind) {
    return (size_t)kind < COUNT_OF(kinds) ? kinds[kind] : "unknown";
}

const char *stream_target_name(enum stream_target target) {
    static const char *const names[] = {"next", "masked", "sequence", "token"};
    return names[target];
}

/* Unknown names may come from a hostile file, and the message goes to a terminal. */
int stream_kind_parse(const char *name, enum stream_kind *out, struct err *e) {
    for (size_t i = STREAM_MODEL; i < COUNT_OF(kinds); i++)
        if (!strcmp(name, kinds[i])) {
            *out = (enum stream_kind)i;
            return 0;
        }
    return err_set(e, ERR_DATA,
                   "stream kind '%.64s' is unknown, this version knows model, tokens, knowledge, stats and "
                   "checkpoint",
                   name_valid(name, strlen(name)) ? name : "(not a name)");
}

const char *stream_codec_name(enum stream_codec codec) {
    return (size_t)codec < COUNT_OF(codecs) ? codecs[codec] : "unknown";
}

int stream_codec_parse(const char *name, enum stream_codec *out, struct err *e) {
    for (size_t i = 0; i < COUNT_OF(codecs); i++)
        if (!strcmp(name, codecs[i])) {
            *out = (enum stream_codec)i;
            return 0;
        }
    return err_set(e, ERR_USAGE, "codec '%.64s' is unknown, use raw, zstd, planes or sparse", name);
}

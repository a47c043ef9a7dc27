/* text: what people and programs read. */
#include <errno.h>
#include <stdint.h>
#include <unistd.h>

#include "lib/cli/cli_internal.h"

static ssize_t put(void *cookie, const char *data, size_t n) {
    return fd_write((int)(intptr_t)cookie, data, n) ? (ssize_t)n : 0; /* 0: failed, errno is set */
}

FILE *text_open(int fd) {
    FILE *f = fopencookie((void *)(intptr_t)fd, "w", (cookie_io_functions_t){.write = put});
    if (f && isatty(fd)) setvbuf(f, NULL, _IOLBF, 0);
    return f;
}

/* fclose alone reports only its own failure, not that of an earlier write. */
int text_close(FILE *f, const char *name, struct err *e) {
    bool failed = fflush(f) != 0 || ferror(f);
    int saved = errno;
    if (fclose(f) != 0 && !failed) {
        failed = true;
        saved = errno;
    }
    return failed ? err_sys(e, saved, "%s", name) : 0;
}

int cli_put_json(FILE *out, cJSON *j, bool complete, struct err *e) {
    complete = complete && j; /* a NULL is a duplicate that found no memory */
    char *text = complete ? json_text(j, e) : NULL;
    if (text) fprintf(out, "%s\n", text);
    cJSON_Delete(j);
    mem_free(text);
    return text ? 0 : complete ? e->code : err_nomem(e, "text");
}

/* Keys and strings come from a file and go to a terminal: what is not fit for a name is left out. */
void cli_put_facts(FILE *out, const cJSON *object) {
    const cJSON *x;
    cJSON_ArrayForEach(x, object) {
        if (!name_valid(x->string, strlen(x->string))) continue;
        if (cJSON_IsObject(x)) cli_put_facts(out, x); /* as deep as json_parse allows */
        if (cJSON_IsString(x) && name_valid(x->valuestring, strlen(x->valuestring)))
            fprintf(out, "  %s=%s", x->string, x->valuestring);
        if (cJSON_IsNumber(x)) fprintf(out, "  %s=%.10g", x->string, x->valuedouble);
        if (cJSON_IsBool(x)) fprintf(out, "  %s=%s", x->string, cJSON_IsTrue(x) ? "true" : "false");
    }
}

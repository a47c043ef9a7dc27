/* Prints text for people and JSON for programs; escapes what comes from outside. */
#include <errno.h>
#include <stdint.h>
#include <unistd.h>

#include "lib/cli/cli_internal.h"

static ssize_t put(void *cookie, const char *data, size_t n) {
    return fd_write((int)(intptr_t)cookie, data, n) ? (ssize_t)n : 0; /* 0: failed, with errno set */
}

FILE *text_open(int fd) {
    FILE *f = fopencookie((void *)(intptr_t)fd, "w", (cookie_io_functions_t){.write = put});
    if (f && isatty(fd)) setvbuf(f, NULL, _IOLBF, 0);
    return f;
}

/* fclose alone does not report earlier failures. */
int text_close(FILE *f, const char *name, struct err *e) {
    bool failed = fflush(f) != 0 || ferror(f);
    int saved = errno;
    if (fclose(f) != 0 && !failed) {
        failed = true;
        saved = errno;
    }
    return failed ? err_sys(e, saved, "%s", name) : 0;
}

void cli_put(FILE *out, const char *text) {
    char shown[ESCAPE_MAX];
    for (size_t n = strlen(text), took; n; text += took, n -= took) {
        escape_char(text, n, &took, shown);
        fputs(shown, out);
    }
}

int cli_put_json(FILE *out, cJSON *j, bool complete, struct err *e) {
    complete = complete && j; /* NULL: duplicating it ran out of memory */
    char *text = complete ? json_text_shown(j, e) : NULL;
    if (text) fprintf(out, "%s\n", text);
    cJSON_Delete(j);
    mem_free(text);
    return text ? 0 : complete ? e->code : err_nomem(e, "text");
}

static void put_fact(FILE *out, const char *of, const char *key, const char *value) {
    fputs("  ", out);
    if (of) {
        cli_put(out, of);
        fputc('.', out);
    }
    cli_put(out, key);
    fputc('=', out);
    cli_put(out, value);
}

/* Does the sibling before `object` in `parent` have that key, too, as rope and local_rope have theta? Looks at the
 * first keys only: a hostile file may have millions. */
static bool is_repeated(const cJSON *parent, const cJSON *object, const char *key) {
    if (!parent || object == parent->child) return false;
    const cJSON *x = cJSON_IsObject(object->prev) ? object->prev->child : NULL;
    for (int i = 0; x && i < 64; i++, x = x->next)
        if (strcmp(x->string, key) == 0) return true;
    return false;
}

static void put_number(FILE *out, double v) {
    fprintf(out, "%.10g", v);
}

/* Writes "5,3,0", runs as "5x512,0"; if there are more than MOST_RUNS runs, the first three and the number of elements.
 * Returns false if it is not a list of 1 to 4096 numbers. */
static bool put_list(FILE *out, const char *of, const char *key, const cJSON *list) {
    enum { MOST_RUNS = 16 };
    size_t n = 0, runs = 0;
    for (const cJSON *x = list->child; x; x = x->next) {
        if (!cJSON_IsNumber(x) || ++n > 4096) return false;
        runs += x == list->child || x->prev->valuedouble != x->valuedouble;
    }
    if (!n) return false;
    put_fact(out, of, key, "");
    size_t shown = 0;
    for (const cJSON *x = list->child, *next; x; x = next) {
        size_t run = 0;
        if (runs > MOST_RUNS && shown++ == 3) {
            fprintf(out, "...(%zu)", n);
            break;
        }
        for (next = x; next && next->valuedouble == x->valuedouble; next = next->next) run++;
        if (run > 1) fprintf(out, "%zux", run);
        put_number(out, x->valuedouble);
        if (next) fputc(',', out);
    }
    return true;
}

/* Skips strings that are long or have several lines. */
static void put_facts(FILE *out, const cJSON *parent, const cJSON *object) {
    const cJSON *x;
    char number[32];
    cJSON_ArrayForEach(x, object) {
        if (!name_valid(x->string, strlen(x->string))) continue;
        const char *of = is_repeated(parent, object, x->string) ? object->string : NULL;
        if (cJSON_IsObject(x)) put_facts(out, object, x); /* json_parse limits the depth */
        if (cJSON_IsArray(x)) put_list(out, of, x->string, x);
        if (cJSON_IsString(x) && name_valid(x->valuestring, strlen(x->valuestring)))
            put_fact(out, of, x->string, x->valuestring);
        if (cJSON_IsNumber(x)) {
            snprintf(number, sizeof number, "%.10g", x->valuedouble);
            put_fact(out, of, x->string, number);
        }
        if (cJSON_IsTrue(x)) put_fact(out, of, x->string, "true");
    }
}

void cli_put_facts(FILE *out, const cJSON *object) {
    put_facts(out, NULL, object);
}

/* Caches sensitivities on disk, one file per tensor, named by the digest of what they were measured on. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "lib/quant/budget.h"

#define SENSE_HEAD "rill sensitivity 1\n"
enum { SENSE_FILE_MOST = 4096 };

bool sense_knows(const struct sense *s, enum dtype to) {
    for (size_t i = 0; i < s->n; i++)
        if (s->types[i].to == to) return true;
    return false;
}

/* Parses "power P", then "TYPE ERROR" lines, then "end". */
static bool parse(char *text, struct sense *s) {
    size_t head = strlen(SENSE_HEAD);
    char *save, *name;
    if (strncmp(text, SENSE_HEAD, head) != 0) return false;
    *s = (struct sense){.power = -1};
    for (char *line = text + head; (name = strtok_r(line, " \n", &save)); line = NULL) {
        if (!strcmp(name, "end")) return s->power >= 0 && !strtok_r(NULL, "", &save);
        const char *number = strtok_r(NULL, "\n", &save);
        const struct dtype_info *t = dtype_by_name(name);
        double x;
        if (!number || !parse_f64(number, &x) || !(x >= 0)) return false;
        if (!strcmp(name, "power")) {
            s->power = x;
            continue;
        }
        if (!t || t->file_type < 0 || sense_knows(s, t->dtype) || s->n == SENSE_TYPES) return false;
        s->types[s->n].to = t->dtype;
        s->types[s->n++].error = x;
    }
    return false;
}

int sense_recall(const char *folder, struct digest key, struct sense *s, bool *found, struct err *e) {
    char path[CACHE_PATH], text[SENSE_FILE_MOST + 1];
    *found = false;
    *s = (struct sense){0};
    if (cache_path(folder, key, ".sense", path, e)) return e->code;
    FILE *f = fopen(path, "rb");
    if (!f) return errno == ENOENT ? 0 : err_sys(e, errno, "%s", path);
    size_t n = fread(text, 1, SENSE_FILE_MOST, f);
    bool failed = ferror(f);
    fclose(f);
    if (failed) return err_set(e, ERR_IO, "%s: cannot be read", path);
    text[n] = 0;
    if (memchr(text, 0, n) || !parse(text, s))
        return err_set(e, ERR_DATA, "%s: no sensitivities, or cut: remove it", path);
    *found = true;
    return 0;
}

int sense_store(const char *folder, struct digest key, const struct sense *s, struct err *e) {
    char path[CACHE_PATH];
    struct buf text = {0};
    struct out_file f = OUT_FILE_NONE;
    int rc = cache_path(folder, key, ".sense", path, e);
    if (!rc) rc = buf_printf(&text, e, SENSE_HEAD "power %.17g\n", s->power);
    for (size_t i = 0; !rc && i < s->n; i++)
        rc = buf_printf(&text, e, "%s %.17g\n", dtype_info(s->types[i].to)->name, s->types[i].error);
    if (!rc) rc = buf_printf(&text, e, "end\n");
    if (!rc) rc = out_file_create(&f, path, true, e);
    if (!rc && !fd_write(f.fd, text.data, text.len)) rc = err_sys(e, errno, "%s", path);
    if (!rc) rc = out_file_commit(&f, e);
    out_file_release(&f);
    buf_release(&text);
    return rc;
}

/* A set of strings, for the ids of provenance entries. */
#include <string.h>

#include "lib/cli/cli_internal.h"

static size_t slot_of(const struct idset *s, const char *id) {
    size_t i = (size_t)digest_bytes(id, strlen(id)).lo & (s->cap - 1);
    while (s->slots[i] && strcmp(s->slots[i], id) != 0) i = (i + 1) & (s->cap - 1);
    return i;
}

static int grow(struct idset *s, struct err *e) {
    struct idset bigger = {.cap = s->cap ? 2 * s->cap : 64};
    bigger.slots = mem_array(bigger.cap, sizeof *bigger.slots, e);
    if (!bigger.slots) return e->code;
    for (size_t i = 0; i < s->cap; i++)
        if (s->slots[i]) bigger.slots[slot_of(&bigger, s->slots[i])] = s->slots[i];
    bigger.n = s->n;
    mem_free(s->slots);
    *s = bigger;
    return 0;
}

int idset_add(struct idset *s, const char *id, bool *added, struct err *e) {
    if (2 * (s->n + 1) > s->cap && grow(s, e)) return e->code;
    size_t i = slot_of(s, id);
    *added = !s->slots[i];
    s->n += *added;
    s->slots[i] = id;
    return 0;
}

bool idset_has(const struct idset *s, const char *id) {
    return s->n && s->slots[slot_of(s, id)];
}

void idset_release(struct idset *s) {
    mem_free(s->slots);
    *s = (struct idset){0};
}

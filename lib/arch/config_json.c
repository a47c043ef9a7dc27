/* Helpers that the JSON of a configuration and of its rotary positions share. */
#include "lib/arch/arch_internal.h"

#include <stdlib.h>

double model_shortest_float(float f) {
    char text[32];
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)f);
        if (strtof(text, NULL) == f) break;
    }
    return strtod(text, NULL);
}

int config_get_name(const cJSON *o, const char *key, const char *const *names, uint32_t *out, struct err *e) {
    const char *name;
    char known[128] = "";
    size_t n = 0;
    int rc = json_get_str(o, key, &name, e);
    if (rc) return rc;
    for (uint32_t i = 0; names[i]; i++) {
        if (!strcmp(names[i], name)) {
            *out = i;
            return 0;
        }
        n += (size_t)snprintf(known + n, sizeof known - n, "%s%s", i ? ", " : "", names[i]);
    }
    return err_set(e, ERR_DATA, "\"%s\": '%.64s' is not supported (%s are)", key, name, known);
}

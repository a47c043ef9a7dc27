/* "key=value,key=value": how options that take several numbers are written. */
#include <stdio.h>
#include <string.h>

#include "lib/train/train_internal.h"

static bool parse_value(const char *value, struct train_key *k) {
    double number;
    if (k->whole) return parse_u64(value, k->whole) && (double)*k->whole >= k->least && (double)*k->whole <= k->most;
    if (!parse_f64(value, &number) || !(number >= k->least && number <= k->most)) return false;
    *k->number = number;
    return true;
}

bool train_keys_parse(const char *members, struct train_key *keys, size_t n) {
    char copy[256], *save = NULL;
    if (!members) return true;
    if (strlen(members) >= sizeof copy || !*members) return false;
    memcpy(copy, members, strlen(members) + 1);
    for (char *m = strtok_r(copy, ",", &save); m; m = strtok_r(NULL, ",", &save)) {
        char *value = strchr(m, '=');
        size_t i = 0;
        if (!value) return false;
        *value++ = 0;
        while (i < n && strcmp(keys[i].name, m) != 0) i++;
        if (i == n || keys[i].given || !parse_value(value, &keys[i])) return false;
        keys[i].given = true;
    }
    return true;
}

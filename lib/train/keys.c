/* Parsing of "key=value,key=value" in options with several values. */
#include <stdio.h>
#include <string.h>

#include "lib/train/train_internal.h"

bool train_glob_copy(char out[TRAIN_GLOB_TEXT], const char *text, size_t n) {
    if (!n || n >= TRAIN_GLOB_TEXT || !name_valid(text, n)) return false;
    memcpy(out, text, n);
    out[n] = 0;
    return true;
}

static bool parse_value(const char *value, struct train_key *k) {
    double number;
    if (k->text) return train_glob_copy(k->text, value, strlen(value));
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

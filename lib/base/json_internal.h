/* Private to lib/base: the three parts of JSON (json.c, json_scan.c, json_text.c). */
#ifndef RILL_JSON_INTERNAL_H
#define RILL_JSON_INTERNAL_H

#include "lib/base/base.h"

/* Is text[0..len) one RFC 8259 value within our limits, and nothing else? The message says at which byte it is not. */
int json_scan(const char *text, size_t len, struct err *e) MUST_CHECK;

/* What can only be seen in the tree: duplicate keys, infinite numbers, depth. `depth` of the outermost value is 1. */
int json_check_tree(const cJSON *value, int depth, struct err *e) MUST_CHECK;

#endif

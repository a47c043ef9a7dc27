/* Private to lib/base: shared by the three parts of JSON (json.c, json_scan.c, json_text.c). */
#ifndef RILL_JSON_INTERNAL_H
#define RILL_JSON_INTERNAL_H

#include "lib/base/base.h"

/* Checks that text[0..len) is exactly one RFC 8259 value within our limits. ERR_DATA names the offending byte. */
int json_scan(const char *text, size_t len, struct err *e) MUST_CHECK;

/* Checks what only the tree shows: duplicate keys, infinite numbers, depth. `depth` of the outermost value is 1. */
int json_check_tree(const cJSON *value, int depth, struct err *e) MUST_CHECK;

#endif

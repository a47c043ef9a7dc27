/*
 * Reading JSON. cJSON builds the tree. Before that, json_scan.c checks the text against RFC 8259 and our limits,
 * because cJSON is lenient ("01", "1.", invalid UTF-8, "\u0000"); after it, json_check_tree finds duplicate keys, which
 * must be compared unescaped.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "lib/base/base.h"
#include "lib/base/json_internal.h"

/* ---- duplicate keys ---- */

#define FEW_KEYS 16 /* up to here comparing all pairs is faster than a hash table */

static const cJSON *find_duplicate_of_few(const cJSON *object) {
    for (const cJSON *a = object->child; a; a = a->next)
        for (const cJSON *b = a->next; b; b = b->next)
            if (strcmp(a->string, b->string) == 0) return b;
    return NULL;
}

/* Open addressing, at most half full. The hash is seeded with an address, so that a file cannot provoke collisions. */
static int find_duplicate_of_many(const cJSON *object, size_t n, const cJSON **found, struct err *e) {
    size_t size = 64;
    while (size < 2 * n) size *= 2;
    const cJSON **table = mem_array(size, sizeof *table, e);
    if (!table) return e->code;
    for (const cJSON *item = object->child; item && !*found; item = item->next) {
        size_t at = XXH3_64bits_withSeed(item->string, strlen(item->string), (uintptr_t)table) & (size - 1);
        for (; table[at]; at = (at + 1) & (size - 1))
            if (strcmp(table[at]->string, item->string) == 0) *found = item;
        table[at] = item;
    }
    mem_free(table);
    return 0;
}

static int check_keys(const cJSON *object, struct err *e) {
    size_t n = 0;
    for (const cJSON *item = object->child; item; item = item->next, n++)
        if (!item->string) return err_set(e, ERR_DATA, "json: an object has a member without a key");
    const cJSON *found = NULL;
    if (n <= FEW_KEYS) {
        found = find_duplicate_of_few(object);
    } else {
        int rc = find_duplicate_of_many(object, n, &found, e);
        if (rc) return rc;
    }
    return found ? err_set(e, ERR_DATA, "json: duplicate key \"%.200s\"", found->string) : 0;
}

int json_check_tree(const cJSON *value, int depth, struct err *e) {
    if (cJSON_IsNumber(value) && !isfinite(value->valuedouble))
        return err_set(e, ERR_DATA, "json: a number is not finite (key \"%.200s\")",
                       value->string ? value->string : "");
    bool is_object = cJSON_IsObject(value);
    if (!is_object && !cJSON_IsArray(value)) return 0;
    if (depth > JSON_MAX_DEPTH) return err_set(e, ERR_DATA, "json: nested deeper than %d", JSON_MAX_DEPTH);
    int rc = is_object ? check_keys(value, e) : 0;
    for (const cJSON *item = value->child; item && !rc; item = item->next) rc = json_check_tree(item, depth + 1, e);
    return rc;
}

/* ---- parsing ---- */

cJSON *json_parse(const char *text, size_t len, struct err *e) {
    if (json_scan(text, len, e) != 0) return NULL;
    cJSON *value = cJSON_ParseWithLength(text, len);
    if (!value) { /* the text is valid, so this can only be lack of memory */
        err_set(e, ERR_IO, "out of memory: json of %zu bytes", len);
        return NULL;
    }
    if (json_check_tree(value, 1, e) != 0) {
        cJSON_Delete(value);
        return NULL;
    }
    return value;
}

/* ---- accessors ---- */

static const char *kind_of(const cJSON *item) {
    return cJSON_IsNull(item)     ? "null"
           : cJSON_IsBool(item)   ? "a boolean"
           : cJSON_IsNumber(item) ? "a number"
           : cJSON_IsString(item) ? "a string"
           : cJSON_IsArray(item)  ? "an array"
           : cJSON_IsObject(item) ? "an object"
                                  : "nothing";
}

/* Returns the member. NULL with *rc set: an error; NULL with *rc 0: an optional member is absent or null. */
static const cJSON *find(const cJSON *object, const char *key, bool optional, int *rc, struct err *e) {
    *rc = 0;
    if (!cJSON_IsObject(object)) {
        *rc = err_set(e, ERR_DATA, "json: looking for \"%s\" in %s, which is not an object", key, kind_of(object));
        return NULL;
    }
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    if (optional && (!item || cJSON_IsNull(item))) return NULL;
    if (!item) *rc = err_set(e, ERR_DATA, "json: missing key \"%s\"", key);
    return item;
}

static int wrong_kind(const cJSON *item, const char *key, const char *expected, struct err *e) {
    return err_set(e, ERR_DATA, "json: key \"%s\" is %s, expected %s", key, kind_of(item), expected);
}

static int get_u64(const cJSON *object, const char *key, bool optional, uint64_t min, uint64_t max, uint64_t *out,
                   struct err *e) {
    int rc;
    const cJSON *item = find(object, key, optional, &rc, e);
    if (!item) return rc;
    if (!cJSON_IsNumber(item)) return wrong_kind(item, key, "a whole number", e);
    double v = item->valuedouble;
    if (!(v >= 0) || v != floor(v))
        return err_set(e, ERR_DATA, "json: key \"%s\" is %.17g, expected a whole number", key, v);
    /* From 2^53 on the double may differ from the integer in the text. */
    if (v > (double)JSON_MAX_INTEGER || (uint64_t)v < min || (uint64_t)v > max)
        return err_set(e, ERR_DATA, "json: key \"%s\" is %.17g, expected %llu to %llu", key, v, (unsigned long long)min,
                       (unsigned long long)(max < JSON_MAX_INTEGER ? max : JSON_MAX_INTEGER));
    *out = (uint64_t)v;
    return 0;
}

static int get_f64(const cJSON *object, const char *key, bool optional, double min, double max, double *out,
                   struct err *e) {
    int rc;
    const cJSON *item = find(object, key, optional, &rc, e);
    if (!item) return rc;
    if (!cJSON_IsNumber(item)) return wrong_kind(item, key, "a number", e);
    double v = item->valuedouble;
    if (!(v >= min && v <= max))
        return err_set(e, ERR_DATA, "json: key \"%s\" is %.17g, expected %g to %g", key, v, min, max);
    *out = v;
    return 0;
}

static int get_str(const cJSON *object, const char *key, bool optional, const char **out, struct err *e) {
    int rc;
    const cJSON *item = find(object, key, optional, &rc, e);
    if (!item) return rc;
    if (!cJSON_IsString(item)) return wrong_kind(item, key, "a string", e);
    *out = item->valuestring;
    return 0;
}

static int get_bool(const cJSON *object, const char *key, bool optional, bool *out, struct err *e) {
    int rc;
    const cJSON *item = find(object, key, optional, &rc, e);
    if (!item) return rc;
    if (!cJSON_IsBool(item)) return wrong_kind(item, key, "true or false", e);
    *out = cJSON_IsTrue(item);
    return 0;
}

int json_get_u64(const cJSON *object, const char *key, uint64_t min, uint64_t max, uint64_t *out, struct err *e) {
    return get_u64(object, key, false, min, max, out, e);
}

int json_opt_u64(const cJSON *object, const char *key, uint64_t min, uint64_t max, uint64_t *out, struct err *e) {
    return get_u64(object, key, true, min, max, out, e);
}

int json_get_f64(const cJSON *object, const char *key, double min, double max, double *out, struct err *e) {
    return get_f64(object, key, false, min, max, out, e);
}

int json_opt_f64(const cJSON *object, const char *key, double min, double max, double *out, struct err *e) {
    return get_f64(object, key, true, min, max, out, e);
}

int json_get_str(const cJSON *object, const char *key, const char **out, struct err *e) {
    return get_str(object, key, false, out, e);
}

int json_opt_str(const cJSON *object, const char *key, const char **out, struct err *e) {
    return get_str(object, key, true, out, e);
}

int json_get_bool(const cJSON *object, const char *key, bool *out, struct err *e) {
    return get_bool(object, key, false, out, e);
}

int json_opt_bool(const cJSON *object, const char *key, bool *out, struct err *e) {
    return get_bool(object, key, true, out, e);
}

bool json_put_u64(cJSON *object, const char *key, uint64_t v) {
    return v <= JSON_MAX_INTEGER && cJSON_AddNumberToObject(object, key, (double)v);
}

bool json_put_f64(cJSON *object, const char *key, double v) {
    return cJSON_AddNumberToObject(object, key, v);
}

bool json_put_float(cJSON *object, const char *key, double v) {
    char text[32];
    if (!(fabs(v) < 1e15) || v != floor(v)) return json_put_f64(object, key, v);
    snprintf(text, sizeof text, "%.0f.0", v);
    return cJSON_AddRawToObject(object, key, text) != NULL;
}

bool json_put_f64_or_null(cJSON *object, const char *key, double v) {
    return isfinite(v) ? json_put_f64(object, key, v) : cJSON_AddNullToObject(object, key) != NULL;
}

bool json_put_str(cJSON *object, const char *key, const char *v) {
    return cJSON_AddStringToObject(object, key, v);
}

bool json_put_bool(cJSON *object, const char *key, bool v) {
    return cJSON_AddBoolToObject(object, key, v);
}

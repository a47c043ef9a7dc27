/* Parses --loss NAME:key=value,..., and writes it back. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/losses/losses_internal.h"

/* Writes the keys of a loss for a message: "weight=W, label=NAME, temperature=T". */
static const char *keys_text(const struct loss_type *t, char *out, size_t size) {
    const struct loss_key *tables[] = {loss_common_keys, t->logits ? loss_logits_keys : NULL, t->keys};
    size_t n = 0;
    for (size_t i = 0; i < COUNT_OF(tables); i++)
        for (const struct loss_key *k = tables[i]; k && k->name && n < size; k++)
            n += (size_t)snprintf(out + n, size - n, "%s%s=%s", n ? ", " : "", k->name, k->arg);
    return out;
}

/* Is `word` one of "a|b|c"? */
static bool is_choice(const char *word, const char *choices) {
    size_t n = strlen(word);
    if (strchr(word, '|')) return false;
    for (const char *c = choices; n && c; c = strchr(c, '|') ? strchr(c, '|') + 1 : NULL)
        if (!strncmp(c, word, n) && (c[n] == '|' || !c[n])) return true;
    return false;
}

static bool parse_weight(const char *text, struct loss *l) {
    char copy[64];
    snprintf(copy, sizeof copy, "%s", text);
    char *dots = strstr(copy, "..");
    if (dots) *dots = 0;
    if (!parse_f64(copy, &l->first) || !parse_f64(dots ? dots + 2 : copy, &l->last)) return false;
    return l->first >= 0 && l->last >= 0 && isfinite(l->first) && isfinite(l->last);
}

static bool parse_label(const char *text, struct loss *l) {
    size_t n = strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789_");
    if (!n || text[n] || n > 31) return false;
    memcpy(l->label, text, n + 1);
    return true;
}

static bool parse_at(const char *text, struct loss *l) {
    uint64_t layers;
    if (!strcmp(text, "final") || !strcmp(text, "exits")) {
        l->at = *text == 'f' ? LOSS_AT_FINAL : LOSS_AT_EXITS;
        return true;
    }
    if (!parse_u64(text, &layers) || !layers || layers > MODEL_MAX_LAYERS) return false;
    l->at = LOSS_AT_EXIT;
    l->at_layer = (uint32_t)layers;
    return true;
}

static const char *const teachers[] = {[LOSS_TEACHER_DATA] = "data",
                                       [LOSS_TEACHER_LIVE] = "live",
                                       [LOSS_TEACHER_FINAL] = "final",
                                       [LOSS_TEACHER_EMA] = "ema"};

static bool parse_teacher(const char *text, struct loss *l) {
    for (size_t i = LOSS_TEACHER_DATA; l->type->encodings && i < COUNT_OF(teachers); i++)
        if (!strcmp(text, teachers[i])) {
            l->teacher = (enum loss_teacher)i;
            return true;
        }
    return false;
}

static bool parse_own(const struct loss_key *k, const char *text, struct loss_value *v) {
    if (strlen(text) >= sizeof v->text) return false;
    memcpy(v->text, text, strlen(text) + 1);
    v->given = true;
    if (k->kind == LOSS_NUMBER) return parse_f64(text, &v->number) && v->number >= k->least && v->number <= k->most;
    return k->kind != LOSS_CHOICE || is_choice(text, k->arg);
}

/* Parses one "key=value". */
static int parse_member(struct loss *l, const char *key, const char *value, unsigned *seen, struct err *e) {
    static const struct {
        const char *name;
        bool (*parse)(const char *text, struct loss *l);
        bool on_logits;
    } common[] = {{"weight", parse_weight, false},
                  {"label", parse_label, false},
                  {"at", parse_at, true},
                  {"teacher", parse_teacher, true}};
    char keys[512];
    int i = loss_key_index(l->type, key), bit = i;
    bool known = i >= 0, ok = known && parse_own(&l->type->keys[i], value, &l->values[i]);
    for (size_t c = 0; !known && c < COUNT_OF(common); c++) {
        if (strcmp(key, common[c].name) != 0 || (common[c].on_logits && !l->type->logits)) continue;
        known = true;
        ok = common[c].parse(value, l);
        bit = LOSS_MAX_KEYS + (int)c;
    }
    if (!known || !ok)
        return err_set(e, ERR_USAGE, "--loss %s: %s %.40s=%.40s: expected %s", l->type->name,
                       known ? "a value out of range:" : "unknown key:", key, value,
                       keys_text(l->type, keys, sizeof keys));
    if (*seen & 1u << bit) return err_set(e, ERR_USAGE, "--loss %s: %s is given twice", l->type->name, key);
    *seen |= 1u << bit;
    return 0;
}

static int parse(struct loss *l, const char *text, struct err *e) {
    char copy[LOSS_TEXT], *save = NULL;
    unsigned seen = 0;
    /* the rest is for the defaults, which the canonical text names */
    if (strlen(text) > LOSS_TEXT / 2) return err_set(e, ERR_USAGE, "--loss %.40s...: too long", text);
    memcpy(copy, text, strlen(text) + 1);
    char *members = strchr(copy, ':');
    if (members) *members++ = 0;
    *l = (struct loss){.type = loss_type_by_name(copy), .first = 1, .last = 1, .factor = 1};
    if (!l->type)
        return err_set(e, ERR_USAGE, "unknown loss \"%.40s\": expected one of %s (--list-losses)", copy, loss_names());
    for (int i = 0; l->type->keys[i].name; i++)
        if (l->type->keys[i].fallback && !parse_own(&l->type->keys[i], l->type->keys[i].fallback, &l->values[i]))
            return err_set(e, ERR_USAGE, "%s: the default of %s is out of range", copy, l->type->keys[i].name);
    for (char *m = members ? strtok_r(members, ",", &save) : NULL; m; m = strtok_r(NULL, ",", &save)) {
        char *value = strchr(m, '=');
        if (!value) return err_set(e, ERR_USAGE, "--loss %s: \"%.40s\" is not key=value", copy, m);
        *value++ = 0;
        if (parse_member(l, m, value, &seen, e)) return e->code;
    }
    return 0;
}

int loss_list_add(struct loss_list *l, const char *text, struct err *e) {
    if (l->n == LOSS_MAX) return err_set(e, ERR_USAGE, "--loss: at most %d", LOSS_MAX);
    if (parse(&l->items[l->n], text, e)) return e->code;
    l->n++;
    return 0;
}

/* Writes v with the fewest digits that read back as v. */
/* As short as it reads back, but 30, not 3e+01. */
static void put_number(char out[32], double v) {
    double back = 0;
    bool plain = fabs(v) >= 1 && fabs(v) < 1e6;
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(out, 32, "%.*g", digits, v);
        if (plain && strchr(out, 'e')) continue;
        if (parse_f64(out, &back) && back == v) return;
    }
}

char *loss_text(const struct loss *l, char out[LOSS_TEXT]) {
    char first[32], last[32];
    put_number(first, l->first);
    put_number(last, l->last);
    size_t n = (size_t)snprintf(out, LOSS_TEXT, "%s:weight=%s", l->type->name, first);
    if (l->first != l->last) n += (size_t)snprintf(out + n, LOSS_TEXT - n, "..%s", last);
    if (l->label[0]) n += (size_t)snprintf(out + n, LOSS_TEXT - n, ",label=%s", l->label);
    if (l->at == LOSS_AT_EXITS) n += (size_t)snprintf(out + n, LOSS_TEXT - n, ",at=exits");
    if (l->at_layer) n += (size_t)snprintf(out + n, LOSS_TEXT - n, ",at=%u", l->at_layer);
    if (l->teacher != LOSS_TEACHER_AUTO)
        n += (size_t)snprintf(out + n, LOSS_TEXT - n, ",teacher=%s", teachers[l->teacher]);
    for (int i = 0; l->type->keys[i].name && n < LOSS_TEXT; i++) {
        const struct loss_value *v = &l->values[i];
        if (!v->given) continue;
        if (l->type->keys[i].kind == LOSS_NUMBER) put_number(first, v->number);
        n += (size_t)snprintf(out + n, LOSS_TEXT - n, ",%s=%s", l->type->keys[i].name,
                              l->type->keys[i].kind == LOSS_NUMBER ? first : v->text);
    }
    return out;
}

/* The effective value of every option, for provenance and report. */
#include "lib/cli/cli_internal.h"

/* Converts an option's value to its recorded form; *out NULL: JSON cannot represent it. False: out of memory. */
static bool setting_text(struct cli *c, const struct cli_option *o, const char *text, const char **out) {
    struct err e;
    *out = text;
    if (text && o->completes_files && names_recorded(&c->arena, text, out, &e)) return false;
    if (*out) *out = names_in_json(*out);
    return true;
}

cJSON *settings_json(struct cli *c) {
    cJSON *s = cJSON_CreateObject();
    bool ok = s != NULL;
    for (size_t i = 0; ok && i < c->args.n_own; i++) {
        const struct cli_option *o = &c->args.rows[i];
        if (o->transient || option_is_action(o)) continue;
        const char *text = NULL;
        switch (o->type) {
        case CLI_FLAG: ok = json_put_bool(s, o->name, *(bool *)o->to); break;
        case CLI_U64:
            if (o->fallback || c->args.values[i].given) ok = json_put_u64(s, o->name, *(uint64_t *)o->to);
            break;
        case CLI_F64:
        case CLI_SHARE:
            if (o->fallback || c->args.values[i].given) ok = json_put_f64(s, o->name, *(double *)o->to);
            break;
        case CLI_AMOUNT: ok = json_put_str(s, o->name, ((struct cli_amount *)o->to)->text); break;
        case CLI_STRING:
        case CLI_CHOICE:
            ok = setting_text(c, o, *(const char **)o->to, &text);
            if (ok && text) ok = json_put_str(s, o->name, text);
            break;
        case CLI_LIST: {
            const struct cli_list *list = o->to;
            cJSON *array = cJSON_AddArrayToObject(s, o->name);
            ok = array != NULL;
            for (size_t k = 0; ok && k < list->n; k++) {
                ok = setting_text(c, o, list->items[k], &text);
                if (ok && text) ok = cJSON_AddItemToArray(array, cJSON_CreateString(text));
            }
            break;
        }
        }
    }
    if (ok) return s;
    cJSON_Delete(s);
    return NULL;
}

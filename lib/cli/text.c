#include "lib/cli/cli.h"

int cli_put_json(FILE *out, cJSON *j, bool complete, struct err *e) {
    complete = complete && j; /* a NULL is a duplicate that found no memory */
    char *text = complete ? json_text(j, e) : NULL;
    if (text) fprintf(out, "%s\n", text);
    cJSON_Delete(j);
    mem_free(text);
    return text ? 0 : complete ? e->code : err_nomem(e, "text");
}

/* Keys and strings come from a file and go to a terminal: what is not fit for a name is left out. */
void cli_put_facts(FILE *out, const cJSON *object) {
    const cJSON *x;
    cJSON_ArrayForEach(x, object) {
        if (!name_valid(x->string, strlen(x->string))) continue;
        if (cJSON_IsObject(x)) cli_put_facts(out, x); /* as deep as json_parse allows */
        if (cJSON_IsString(x) && name_valid(x->valuestring, strlen(x->valuestring)))
            fprintf(out, "  %s=%s", x->string, x->valuestring);
        if (cJSON_IsNumber(x)) fprintf(out, "  %s=%.10g", x->string, x->valuedouble);
        if (cJSON_IsBool(x)) fprintf(out, "  %s=%s", x->string, cJSON_IsTrue(x) ? "true" : "false");
    }
}

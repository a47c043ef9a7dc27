/*
 * A plan as text that people can edit:
 *
 *     # tensor                      shape     type      bytes    bpw  why
 *     layers.0.attn.q.weight      576x576     q4_0     186624  4.500  # q4_0
 *
 * Only the first three words of a line are read; the rest is informative and rewritten by the next --dry-run.
 */
#include <inttypes.h>

#include "lib/quant/quant_internal.h"

static int put(struct buf *out, const char *text, struct err *e) {
    return buf_append(out, text, strlen(text), e);
}

static void shape_of(const struct model_config *c, struct model_slot s, uint64_t dims[2], char out[48]) {
    unsigned rank = model_slot_shape(c, s, dims);
    if (rank == 1) dims[1] = dims[0], dims[0] = 1;
    snprintf(out, 48, "%" PRIu64 "x%" PRIu64, dims[0], dims[1]);
}

int quant_plan_write(const struct quant_plan *p, const struct model_config *c, struct buf *out, struct err *e) {
    char line[TENSOR_MAX_NAME + 512], name[TENSOR_MAX_NAME + 1], shape[48];
    uint64_t dims[2], bytes = 0, elems = 0;
    snprintf(line, sizeof line, "%-30s %14s %8s %12s %7s  %s\n", "# tensor", "shape", "type", "bytes", "bpw", "why");
    int rc = put(out, line, e);
    for (size_t i = 0; !rc && i < p->n; i++) {
        struct model_slot s = model_slot_at(c, i);
        const struct quant_choice *choice = &p->choices[i];
        if (!model_role_is_matrix(s.role)) continue;
        shape_of(c, s, dims, shape);
        uint64_t n = dims[0] * dtype_row_bytes(choice->to, dims[1]);
        snprintf(line, sizeof line, "%-30s %14s %8s %12" PRIu64 " %7.4g  # %s\n", model_slot_name(s, name), shape,
                 dtype_info(choice->to)->name, n, 8.0 * (double)n / (double)(dims[0] * dims[1]), choice->why);
        rc = put(out, line, e);
        bytes += n;
        elems += dims[0] * dims[1];
    }
    if (rc) return rc;
    snprintf(line, sizeof line, "# matrices: %" PRIu64 " weights, %" PRIu64 " bytes, %.3f bits per weight\n", elems,
             bytes, elems ? 8.0 * (double)bytes / (double)elems : 0);
    return put(out, line, e);
}

/* ---- reading ---- */

#define BLANKS " \t\r"

static int where(const struct quant_options *o, unsigned line, struct err *e) {
    return err_prefix(e, "%s: line %u", o->plan_name, line);
}

/* The slot of a tensor name; ERR_DATA unless it is a matrix of this model. */
static int find_matrix(const struct model_config *c, const char *name, size_t *at, struct err *e) {
    struct model_slot s;
    if (model_slot_parse(name, &s, e) || model_slot_index(c, s) < 0)
        return err_set(e, ERR_DATA, "this model has no tensor '%.200s': the plan is for another model", name);
    if (!model_role_is_matrix(s.role)) return err_set(e, ERR_DATA, "'%s' is not a matrix: it stays f32", name);
    *at = (size_t)model_slot_index(c, s);
    return 0;
}

static int take_line(struct quant_plan *p, const struct model_config *c, char *text, struct err *e) {
    char *save, shape[48];
    uint64_t dims[2];
    size_t at = 0;
    const char *name = strtok_r(text, BLANKS, &save);
    if (!name) return 0;
    const char *said = strtok_r(NULL, BLANKS, &save), *type = said ? strtok_r(NULL, BLANKS, &save) : NULL;
    if (!type) return err_set(e, ERR_DATA, "'%.200s' without a shape and a type", name);
    int rc = find_matrix(c, name, &at, e);
    if (rc) return rc;
    struct quant_choice *choice = &p->choices[at];
    shape_of(c, model_slot_at(c, at), dims, shape);
    if (strcmp(said, shape) != 0)
        return err_set(e, ERR_DATA, "'%s' is %.40s here and %s in this model: the plan is for another model", name,
                       said, shape);
    if (choice->named) return err_set(e, ERR_DATA, "'%s' is given twice", name);
    unsigned dtype;
    rc = quant_dtype_parse(type, &dtype, e);
    if (rc) return e->code = ERR_DATA;
    choice->wanted = (enum dtype)dtype;
    choice->named = true;
    snprintf(choice->why, sizeof choice->why, "plan");
    return 0;
}

int plan_parse(struct quant_plan *p, const struct model_config *c, const struct quant_options *o, struct err *e) {
    unsigned number = 1;
    int rc = 0;
    for (const char *at = o->plan, *end; !rc && *at; at = *end ? end + 1 : end, number++) {
        char line[TENSOR_MAX_NAME + 512];
        end = at + strcspn(at, "\n");
        size_t n = strcspn(at, "#\n");
        if (n >= sizeof line) {
            rc = err_set(e, ERR_DATA, "longer than %zu bytes", sizeof line - 1);
        } else {
            memcpy(line, at, n);
            line[n] = 0;
            rc = take_line(p, c, line, e);
        }
        if (rc) return where(o, number, e);
    }
    for (size_t i = 0; i < p->n; i++) {
        char name[TENSOR_MAX_NAME + 1];
        struct model_slot s = model_slot_at(c, i);
        if (model_role_is_matrix(s.role) && !p->choices[i].named)
            return err_set(e, ERR_DATA, "%s: no line for tensor '%s': is the plan for another model?", o->plan_name,
                           model_slot_name(s, name));
    }
    return 0;
}

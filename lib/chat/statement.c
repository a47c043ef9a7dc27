/* Executes statements, which print text and set variables. */
#include "lib/chat/chat_internal.h"

enum flow { FLOW_FAIL, FLOW_ON, FLOW_BREAK, FLOW_CONTINUE };

static enum flow execute_body(struct render *r, const struct node *n);

static bool put(struct render *r, struct str s) {
    struct value v = str_value(s);
    return value_print(r, &v, r->out);
}

static bool push_frame(struct render *r, struct frame *parent) {
    struct frame *f = chat_alloc(r, 1, sizeof *f);
    if (!f) return false;
    f->parent = parent;
    r->frame = f;
    return true;
}

/* Returns what a body prints, as a string. */
static bool capture(struct render *r, const struct node *body, struct value *out) {
    struct buf text = {0}, *before = r->out;
    r->out = &text;
    bool ok = chat_execute(r, body);
    r->out = before;
    out->kind = V_STR;
    ok = ok && chat_copy(r, text.data, text.len, &out->s);
    buf_release(&text);
    return ok;
}

/* ---- set ---- */

/* Assigns a value to the target, or its items to several targets. */
static bool assign(struct render *r, const struct node *n, const struct value *v) {
    struct list *items;
    if (n->n_names == 1) return dict_set(r, &r->frame->vars, str_value(n->names[0]), *v);
    if (!value_items(r, v, &items)) return false;
    if (items->n != n->n_names) return chat_fail(r, "%zu values for %zu names", items->n, n->n_names);
    for (size_t i = 0; i < n->n_names; i++)
        if (!dict_set(r, &r->frame->vars, str_value(n->names[i]), items->items[i])) return false;
    return true;
}

static bool assign_attribute(struct render *r, const struct node *n, const struct value *v) {
    for (const struct frame *f = r->frame; f; f = f->parent) {
        const struct value *ns = dict_get(r, &f->vars, n->names[0]);
        if (ns && ns->kind == V_DICT && ns->flag) return dict_set(r, ns->dict, str_value(n->attribute), *v);
        if (ns) break;
    }
    return chat_fail(r, "set %.*s.%.*s: no namespace", (int)n->names[0].n, n->names[0].p, (int)n->attribute.n,
                     n->attribute.p);
}

static bool execute_set(struct render *r, const struct node *n) {
    struct value v = NONE_VALUE;
    if (n->type == N_SET) {
        if (!chat_eval(r, n->a, &v)) return false;
    } else {
        struct frame *outer = r->frame;
        if (!push_frame(r, outer) || !capture(r, n->body, &v)) return false;
        r->frame = outer;
        for (size_t i = 0; i < n->n_args; i++) {
            struct value of = v;
            struct call_args a = {0};
            struct value *args = chat_alloc(r, n->args[i]->n_args, sizeof *args);
            if (!args) return false;
            for (size_t k = 0; k < n->args[i]->n_args; k++)
                if (!chat_eval(r, n->args[i]->args[k], &args[k])) return false;
            if (n->args[i]->n_names) return chat_fail(r, "a filter of a block with named arguments");
            a.args = args;
            a.n = n->args[i]->n_args;
            if (!chat_filter(r, n->args[i]->s, &of, &a, &v)) return false;
        }
    }
    r->line = n->line;
    if (!n->n_names) return value_print(r, &v, r->out);
    return n->attribute.n ? assign_attribute(r, n, &v) : assign(r, n, &v);
}

/* ---- for ---- */

/* Keeps the items for which the loop's condition holds: the loop counts only these. */
static bool filter_items(struct render *r, const struct node *n, struct list **items) {
    struct value kept, holds;
    struct frame *outer = r->frame;
    if (!list_new(r, &kept, 0)) return false;
    for (size_t i = 0; i < (*items)->n; i++) {
        if (!push_frame(r, outer) || !assign(r, n, &(*items)->items[i]) || !chat_eval(r, n->b, &holds)) return false;
        if (value_truth(&holds) && !list_push(r, kept.list, (*items)->items[i])) return false;
    }
    r->frame = outer;
    *items = kept.list;
    return true;
}

static enum flow execute_for(struct render *r, const struct node *n) {
    struct value v;
    struct list *items;
    struct frame *outer = r->frame;
    struct loop *loop = chat_alloc(r, 1, sizeof *loop);
    if (!loop || !chat_eval(r, n->a, &v)) return FLOW_FAIL;
    r->line = n->line;
    if (!value_items(r, &v, &items) || (n->b && !filter_items(r, n, &items))) return FLOW_FAIL;
    *loop = (struct loop){.items = items, .depth = ++r->loops};
    enum flow flow = FLOW_ON;
    for (size_t i = 0; i < items->n && flow != FLOW_BREAK; i++) {
        loop->at = i;
        if (!push_frame(r, outer) || !assign(r, n, &items->items[i]) ||
            !dict_set(r, &r->frame->vars, str_value(STR("loop")), (struct value){.kind = V_LOOP, .loop = loop}))
            return FLOW_FAIL;
        flow = execute_body(r, n->body);
        if (flow == FLOW_FAIL) return flow;
    }
    r->frame = outer;
    r->loops--;
    if (items->n || !n->orelse) return FLOW_ON;
    if (!push_frame(r, outer)) return FLOW_FAIL;
    flow = execute_body(r, n->orelse);
    r->frame = outer;
    return flow;
}

/* ---- macros ---- */

static bool bind_parameters(struct render *r, const struct node *n, const struct call_args *a) {
    struct value v;
    for (size_t i = 0; i < n->n_names; i++) {
        const struct value *given = i < a->n ? &a->args[i] : NULL;
        for (size_t k = 0; k < a->n_kwargs; k++) {
            if (!str_equal(a->names[k], n->names[i])) continue;
            if (given) return chat_fail(r, "the argument '%.*s' comes twice", (int)n->names[i].n, n->names[i].p);
            given = &a->kwargs[k];
        }
        if (given)
            v = *given;
        else if (!n->kwargs[i])
            v = undefined_value(n->names[i]);
        else if (!chat_eval(r, n->kwargs[i], &v))
            return false;
        if (!dict_set(r, &r->frame->vars, str_value(n->names[i]), v)) return false;
    }
    return true;
}

static bool check_arguments(struct render *r, const struct node *n, const struct call_args *a) {
    if (a->n > n->n_names)
        return chat_fail(r, "the macro '%.*s' takes no more than %zu arguments", (int)n->s.n, n->s.p, n->n_names);
    for (size_t k = 0; k < a->n_kwargs; k++) {
        bool known = str_is(a->names[k], "caller");
        for (size_t i = 0; i < n->n_names; i++) known = known || str_equal(a->names[k], n->names[i]);
        if (!known)
            return chat_fail(r, "the macro '%.*s' has no argument '%.*s'", (int)n->s.n, n->s.p, (int)a->names[k].n,
                             a->names[k].p);
    }
    return true;
}

static bool call_macro(struct render *r, const struct macro *m, const struct call_args *a, struct value *out) {
    const struct node *n = m->node;
    struct frame *caller = r->frame;
    if (!check_arguments(r, n, a)) return false;
    if (!push_frame(r, m->frame)) return false;
    for (size_t k = 0; k < a->n_kwargs; k++)
        if (str_is(a->names[k], "caller") && !dict_set(r, &r->frame->vars, str_value(STR("caller")), a->kwargs[k]))
            return false;
    if (!bind_parameters(r, n, a) || !capture(r, n->body, out)) return false;
    r->frame = caller;
    return true;
}

static bool make_macro(struct render *r, const struct node *n, struct value *out) {
    struct macro *m = chat_alloc(r, 1, sizeof *m);
    if (!m) return false;
    *m = (struct macro){n, r->frame, call_macro};
    *out = (struct value){.kind = V_MACRO, .macro = m};
    return true;
}

/* {% call f(x) %}body{% endcall %} prints f(x), where caller() prints the body. */
static bool execute_call_block(struct render *r, const struct node *n) {
    struct value f, v, *args = chat_alloc(r, n->a->n_args + n->a->n_names + 1, sizeof *args);
    struct str *names = chat_alloc(r, n->a->n_names + 1, sizeof *names);
    size_t n_args = n->a->n_args, n_names = n->a->n_names;
    if (!args || !names || !chat_eval(r, n->a->a, &f)) return false;
    if (f.kind != V_MACRO) return chat_fail(r, "{%% call %%} of %s, expected a macro", value_kind(&f));
    for (size_t i = 0; i < n_args; i++)
        if (!chat_eval(r, n->a->args[i], &args[i])) return false;
    for (size_t i = 0; i < n_names; i++) {
        names[i] = n->a->names[i];
        if (!chat_eval(r, n->a->kwargs[i], &args[n_args + i])) return false;
    }
    names[n_names] = STR("caller");
    if (!make_macro(r, n, &args[n_args + n_names])) return false;
    struct call_args a = {args, n_args, names, args + n_args, n_names + 1};
    return call_macro(r, f.macro, &a, &v) && value_print(r, &v, r->out);
}

/* ---- other statements ---- */

static bool execute_generation(struct render *r, const struct node *n) {
    struct chat_span span = {.start = r->out->len};
    struct frame *outer = r->frame;
    if (r->out != r->text) return chat_fail(r, "{%% generation %%} inside a macro or a set block is not supported");
    if (!push_frame(r, outer) || !chat_execute(r, n->body)) return false;
    r->frame = outer;
    span.end = r->out->len;
    return span.start == span.end || buf_append(r->spans, &span, sizeof span, r->e) == 0;
}

static enum flow execute_if(struct render *r, const struct node *n) {
    struct value v;
    for (; n && n->type == N_IF; n = n->orelse) {
        if (!chat_eval(r, n->a, &v)) return FLOW_FAIL;
        if (value_truth(&v)) return execute_body(r, n->body);
        bool chained = n->orelse && n->orelse->type == N_IF && n->orelse->flag;
        if (!chained) return execute_body(r, n->orelse);
    }
    return FLOW_ON;
}

static enum flow execute_node(struct render *r, const struct node *n) {
    struct value v;
    bool ok = true;
    switch (n->type) {
    case N_TEXT: ok = put(r, n->s); break;
    case N_PRINT: ok = chat_eval(r, n->a, &v) && value_print(r, &v, r->out); break;
    case N_IF: return execute_if(r, n);
    case N_FOR: return execute_for(r, n);
    case N_SET:
    case N_SET_BLOCK: ok = execute_set(r, n); break;
    case N_MACRO: ok = make_macro(r, n, &v) && dict_set(r, &r->frame->vars, str_value(n->s), v); break;
    case N_CALL_BLOCK: ok = execute_call_block(r, n); break;
    case N_GENERATION: ok = execute_generation(r, n); break;
    case N_BREAK: return FLOW_BREAK;
    case N_CONTINUE: return FLOW_CONTINUE;
    default: ok = chat_fail(r, "no statement"); break;
    }
    return ok ? FLOW_ON : FLOW_FAIL;
}

static enum flow execute_body(struct render *r, const struct node *n) {
    enum flow flow = FLOW_ON;
    if (n && !chat_enter(r)) return FLOW_FAIL;
    for (const struct node *at = n; at && flow == FLOW_ON; at = at->next) {
        r->line = at->line;
        flow = chat_step(r, 0) ? execute_node(r, at) : FLOW_FAIL;
    }
    r->depth -= n != NULL;
    return flow;
}

bool chat_execute(struct render *r, const struct node *body) {
    return execute_body(r, body) != FLOW_FAIL;
}

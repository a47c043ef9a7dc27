/* Parses tokens to a syntax tree by recursive descent, with Jinja's operator precedence. */
#include <stdarg.h>
#include <stdio.h>

#include "lib/chat/chat_internal.h"

struct parser {
    struct chat_template *t;
    const struct chat_token *at;
    int depth, loops;
    struct err *e;
};

static struct node *parse_expression(struct parser *p);
static struct node *parse_unary(struct parser *p, bool with_filter);
static struct node *parse_body(struct parser *p, const char *const *ends);

/* ---- helpers ---- */

static void *fail(struct parser *p, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void *fail(struct parser *p, const char *fmt, ...) {
    char text[256];
    va_list list;
    va_start(list, fmt);
    vsnprintf(text, sizeof text, fmt, list);
    va_end(list);
    err_set(p->e, ERR_DATA, "chat template, line %d: %s", p->at->line, text);
    return NULL;
}

/* Fails with "expected X, found 'y'". */
static void *unexpected(struct parser *p, const char *expected) {
    static const char *const names[] = {
        [T_TEXT] = "text",    [T_OPEN] = "{{",     [T_CLOSE] = "}}", [T_BLOCK] = "{%",
        [T_BLOCK_END] = "%}", [T_END] = "the end", [T_INT] = NULL,   [T_STRING] = "a string"};
    const char *name = p->at->type < COUNT_OF(names) ? names[p->at->type] : NULL;
    if (name) return fail(p, "expected %s, found %s", expected, name);
    return fail(p, "expected %s, found '%.*s'", expected, (int)(p->at->s.n < 60 ? p->at->s.n : 60), p->at->s.p);
}

static struct node *new_node(struct parser *p, enum node_type type) {
    struct node *n = arena_array(&p->t->memory, 1, sizeof *n, p->e);
    if (!n) return NULL;
    n->type = type;
    n->line = p->at->line;
    return n;
}

static bool is_op(const struct parser *p, const char *op) {
    return p->at->type == T_OPERATOR && str_is(p->at->s, op);
}
static bool is_word(const struct parser *p, const char *word) {
    return p->at->type == T_NAME && str_is(p->at->s, word);
}
static bool take_op(struct parser *p, const char *op) {
    bool is = is_op(p, op);
    p->at += is;
    return is;
}
static bool take_word(struct parser *p, const char *word) {
    bool is = is_word(p, word);
    p->at += is;
    return is;
}
static bool need_op(struct parser *p, const char *op) {
    char quoted[16];
    if (take_op(p, op)) return true;
    snprintf(quoted, sizeof quoted, "'%s'", op);
    unexpected(p, quoted);
    return false;
}
static bool need_name(struct parser *p, struct str *out) {
    static const char *const reserved[] = {"if", "else", "elif", "for", "in", "is", "and", "or", "not"};
    if (p->at->type != T_NAME) return unexpected(p, "a name");
    for (size_t i = 0; i < COUNT_OF(reserved); i++)
        if (is_word(p, reserved[i])) return unexpected(p, "a name");
    *out = p->at++->s;
    return true;
}
static bool need_block_end(struct parser *p) {
    if (p->at->type != T_BLOCK_END) return unexpected(p, "%}");
    p->at++;
    return true;
}

static bool enter(struct parser *p) {
    if (++p->depth <= CHAT_MAX_NESTING) return true;
    fail(p, "nested deeper than %d", CHAT_MAX_NESTING);
    return false;
}

/* Growable arrays of a node. */
static bool grow(struct parser *p, void **array, size_t n, size_t size) {
    if (n & (n - 1)) return true; /* full at powers of two */
    void *grown = arena_array(&p->t->memory, n ? 2 * n : 1, size, p->e);
    if (!grown) return false;
    if (n) memcpy(grown, *array, n * size);
    *array = grown;
    return true;
}
static bool add_arg(struct parser *p, struct node *to, struct node *arg) {
    void *array = to->args;
    if (!arg || !grow(p, &array, to->n_args, sizeof(struct node *))) return false;
    to->args = array;
    to->args[to->n_args++] = arg;
    return true;
}
static bool add_name(struct parser *p, struct node *to, struct str name, struct node *value) {
    void *names = to->names, *values = to->kwargs;
    if (!grow(p, &names, to->n_names, sizeof(struct str)) || !grow(p, &values, to->n_names, sizeof(struct node *)))
        return false;
    to->names = names;
    to->kwargs = values;
    to->names[to->n_names] = name;
    to->kwargs[to->n_names++] = value;
    return true;
}

static struct node *binary(struct parser *p, enum node_type type, struct str op, struct node *a, struct node *b) {
    struct node *n = a && b ? new_node(p, type) : NULL;
    if (!n) return NULL;
    n->line = a->line;
    n->s = op;
    n->a = a;
    n->b = b;
    return n;
}

/* ---- primary expressions ---- */

static bool parse_list(struct parser *p, struct node *n, const char *close) {
    while (!take_op(p, close)) {
        if (n->n_args && !need_op(p, ",")) return false;
        if (n->n_args && take_op(p, close)) return true;
        if (!add_arg(p, n, parse_expression(p))) return false;
    }
    return true;
}

static struct node *parse_dict(struct parser *p) {
    struct node *n = new_node(p, N_DICT);
    while (n && !take_op(p, "}")) {
        if (n->n_args && !need_op(p, ",")) return NULL;
        if (n->n_args && take_op(p, "}")) break;
        if (!add_arg(p, n, parse_expression(p)) || !need_op(p, ":") || !add_arg(p, n, parse_expression(p))) return NULL;
    }
    return n;
}

/* After "(": an expression or a tuple. */
static struct node *parse_parenthesis(struct parser *p) {
    struct node *tuple = new_node(p, N_TUPLE), *first;
    if (!tuple || take_op(p, ")")) return tuple;
    first = parse_expression(p);
    if (!first) return NULL;
    if (take_op(p, ")")) return first;
    return add_arg(p, tuple, first) && parse_list(p, tuple, ")") ? tuple : NULL;
}

static struct node *parse_string(struct parser *p) {
    struct node *n = new_node(p, N_CONST_STR);
    if (!n) return NULL;
    n->s = p->at++->s;
    while (p->at->type == T_STRING) { /* adjacent strings are concatenated */
        char *joined = arena_alloc(&p->t->memory, n->s.n + p->at->s.n + 1, p->e);
        if (!joined) return NULL;
        memcpy(joined, n->s.p, n->s.n);
        memcpy(joined + n->s.n, p->at->s.p, p->at->s.n);
        n->s = (struct str){joined, n->s.n + p->at++->s.n};
    }
    return n;
}

static struct node *parse_name(struct parser *p) {
    static const struct {
        const char *name;
        enum node_type type;
        bool flag;
    } constants[] = {{"true", N_CONST_BOOL, true},   {"True", N_CONST_BOOL, true},  {"false", N_CONST_BOOL, false},
                     {"False", N_CONST_BOOL, false}, {"none", N_CONST_NONE, false}, {"None", N_CONST_NONE, false}};
    struct node *n = new_node(p, N_NAME);
    if (!n) return NULL;
    for (size_t i = 0; i < COUNT_OF(constants); i++)
        if (is_word(p, constants[i].name)) n->type = constants[i].type, n->flag = constants[i].flag;
    return need_name(p, &n->s) ? n : NULL;
}

static struct node *parse_primary(struct parser *p) {
    struct node *n;
    switch (p->at->type) {
    case T_NAME: return parse_name(p);
    case T_STRING: return parse_string(p);
    case T_INT:
    case T_FLOAT:
        n = new_node(p, p->at->type == T_INT ? N_CONST_INT : N_CONST_FLOAT);
        if (!n) return NULL;
        n->i = p->at->i;
        n->f = p->at++->f;
        return n;
    default: break;
    }
    if (take_op(p, "(")) return parse_parenthesis(p);
    if (take_op(p, "{")) return parse_dict(p);
    if (!take_op(p, "[")) return unexpected(p, "an expression");
    n = new_node(p, N_LIST);
    return n && parse_list(p, n, "]") ? n : NULL;
}

/* After "(": parses arguments into n. */
static bool parse_arguments(struct parser *p, struct node *n) {
    for (bool first = true; !take_op(p, ")"); first = false) {
        if (!first && !need_op(p, ",")) return false;
        if (!first && take_op(p, ")")) return true;
        if (is_op(p, "*") || is_op(p, "**")) return fail(p, "arguments with * or ** are not supported") != NULL;
        bool named = p->at->type == T_NAME && p->at[1].type == T_OPERATOR && str_is(p->at[1].s, "=");
        struct str name = p->at->s;
        if (named) p->at += 2;
        if (!named && n->n_names) return fail(p, "an argument without a name after one with a name") != NULL;
        struct node *value = parse_expression(p);
        if (!value || !(named ? add_name(p, n, name, value) : add_arg(p, n, value))) return false;
    }
    return true;
}

/* After "[". */
static struct node *parse_subscript(struct parser *p, struct node *of) {
    struct node *part[3] = {NULL}, *n;
    int i = 0;
    bool slice = false;
    while (!is_op(p, "]")) {
        if (take_op(p, ":")) {
            slice = true;
            if (++i > 2) return fail(p, "a slice has at most three parts");
        } else if (part[i] || !(part[i] = parse_expression(p))) {
            return part[i] ? unexpected(p, "']'") : NULL;
        }
    }
    p->at++;
    if (!slice && !part[0]) return fail(p, "an empty subscript");
    if (!(n = new_node(p, slice ? N_SLICE : N_INDEX))) return NULL;
    n->line = of->line;
    n->a = of;
    n->b = part[0];
    n->c = part[1];
    n->d = part[2];
    return n;
}

static struct node *parse_call(struct parser *p, struct node *of) {
    struct node *n = new_node(p, N_CALL);
    if (!n) return NULL;
    n->a = of;
    return parse_arguments(p, n) ? n : NULL;
}

static struct node *parse_attribute(struct parser *p, struct node *of) {
    struct node *n = new_node(p, p->at->type == T_INT ? N_INDEX : N_ATTR);
    if (!n) return NULL;
    n->a = of;
    if (n->type == N_INDEX) return (n->b = parse_primary(p)) ? n : NULL;
    if (p->at->type != T_NAME) return unexpected(p, "an attribute");
    n->s = p->at++->s;
    return n;
}

static struct node *parse_postfix(struct parser *p, struct node *n) {
    int before = p->depth;
    while (n) {
        const struct chat_token *start = p->at;
        if (take_op(p, "."))
            n = parse_attribute(p, n);
        else if (take_op(p, "["))
            n = parse_subscript(p, n);
        else if (take_op(p, "("))
            n = parse_call(p, n);
        if (p->at == start) break;
        if (n && !enter(p)) return NULL; /* the tree of a chain is as deep as the chain is long */
    }
    p->depth = before;
    return n;
}

/* ---- filters and tests ---- */

static struct node *parse_filter(struct parser *p, struct node *of) {
    struct node *n = new_node(p, N_FILTER);
    if (!n || !need_name(p, &n->s)) return NULL;
    n->a = of;
    if (!chat_has_filter(n->s)) return fail(p, "the filter '%.*s' is not supported", (int)n->s.n, n->s.p);
    if (take_op(p, "(") && !parse_arguments(p, n)) return NULL;
    return n;
}

static struct node *parse_test(struct parser *p, struct node *of) {
    static const char *const none_follow[] = {"else", "or", "and", "if", "is", "in", "not"};
    struct node *n = new_node(p, N_TEST);
    if (!n) return NULL;
    n->a = of;
    n->flag = take_word(p, "not");
    if (p->at->type != T_NAME) return unexpected(p, "a test");
    n->s = p->at++->s;
    if (!chat_has_test(n->s)) {
        p->at--;
        return fail(p, "the test '%.*s' is not supported", (int)n->s.n, n->s.p);
    }
    if (take_op(p, "(")) return parse_arguments(p, n) ? n : NULL;
    bool argument = p->at->type == T_NAME || p->at->type == T_STRING || p->at->type == T_INT ||
                    p->at->type == T_FLOAT || is_op(p, "[") || is_op(p, "{");
    for (size_t i = 0; i < COUNT_OF(none_follow); i++) argument = argument && !is_word(p, none_follow[i]);
    if (!argument) return n;
    struct node *arg = parse_primary(p);
    if (arg) arg = parse_postfix(p, arg);
    return add_arg(p, n, arg) ? n : NULL;
}

static struct node *parse_filters(struct parser *p, struct node *n) {
    int before = p->depth;
    while (n) {
        if (take_op(p, "|"))
            n = parse_filter(p, n);
        else if (take_word(p, "is"))
            n = parse_test(p, n);
        else if (take_op(p, "("))
            n = parse_call(p, n);
        else
            break;
        if (n && !enter(p)) return NULL;
    }
    p->depth = before;
    return n;
}

/* ---- operators, in order of decreasing precedence ---- */

static struct node *parse_unary(struct parser *p, bool with_filter) {
    struct node *n;
    if (!enter(p)) return NULL;
    if (is_op(p, "-") || is_op(p, "+")) {
        if (!(n = new_node(p, is_op(p, "-") ? N_NEGATE : N_PLUS))) return NULL;
        p->at++;
        if (!(n->a = parse_unary(p, false))) return NULL;
    } else {
        n = parse_primary(p);
        if (n) n = parse_postfix(p, n);
    }
    if (n && is_op(p, "**")) return fail(p, "the operator ** is not supported");
    if (n && with_filter) n = parse_filters(p, n);
    p->depth--;
    return n;
}

/* Left-associative operators; the tree of a chain is as deep as the chain is long. */
typedef struct node *parse_level(struct parser *p);
static struct node *parse_chain(struct parser *p, parse_level *next, const char *ops) {
    int before = p->depth;
    struct node *n = next(p);
    while (n && p->at->type == T_OPERATOR && p->at->s.n <= 2) {
        char padded[8];
        snprintf(padded, sizeof padded, " %.*s ", (int)p->at->s.n, p->at->s.p);
        if (!strstr(ops, padded)) break;
        struct str op = p->at++->s;
        if (!enter(p)) return NULL;
        n = binary(p, N_BINARY, op, n, next(p));
    }
    p->depth = before;
    return n;
}
static struct node *parse_operand(struct parser *p) {
    return parse_unary(p, true);
}
static struct node *parse_product(struct parser *p) {
    return parse_chain(p, parse_operand, " * / // % ");
}
static struct node *parse_concatenation(struct parser *p) {
    return parse_chain(p, parse_product, " ~ ");
}
static struct node *parse_sum(struct parser *p) {
    return parse_chain(p, parse_concatenation, " + - ");
}

/* Takes the comparison operator that begins here; an empty string if there is none. */
static struct str take_comparison(struct parser *p) {
    static const char *const ops[] = {"==", "!=", "<", ">", "<=", ">="};
    for (size_t i = 0; i < COUNT_OF(ops); i++)
        if (is_op(p, ops[i])) return p->at++->s;
    if (take_word(p, "in")) return STR("in");
    if (is_word(p, "not") && p->at[1].type == T_NAME && str_is(p->at[1].s, "in")) {
        p->at += 2;
        return STR("not in");
    }
    return (struct str){NULL, 0};
}

static struct node *parse_comparison(struct parser *p) {
    struct node *left = parse_sum(p), *chain = NULL;
    while (left) {
        struct str op = take_comparison(p);
        if (!op.n) break;
        struct node *right = parse_sum(p);
        if (!chain && !(chain = new_node(p, N_CHAIN))) return NULL;
        if (!add_arg(p, chain, binary(p, N_COMPARE, op, left, right))) return NULL;
        left = right;
    }
    if (!left || !chain) return left;
    return chain->n_args == 1 ? chain->args[0] : chain;
}

static struct node *parse_not(struct parser *p) {
    if (!is_word(p, "not")) return parse_comparison(p);
    struct node *n = enter(p) ? new_node(p, N_NOT) : NULL;
    if (!n) return NULL;
    p->at++;
    n->a = parse_not(p);
    p->depth--;
    return n->a ? n : NULL;
}

static struct node *parse_logic(struct parser *p, parse_level *next, const char *word, enum node_type type) {
    int before = p->depth;
    struct node *n = next(p);
    while (n && take_word(p, word)) {
        if (!enter(p)) return NULL;
        n = binary(p, type, STR(""), n, next(p));
    }
    p->depth = before;
    return n;
}
static struct node *parse_and(struct parser *p) {
    return parse_logic(p, parse_not, "and", N_AND);
}
static struct node *parse_or(struct parser *p) {
    return parse_logic(p, parse_and, "or", N_OR);
}

static struct node *parse_expression(struct parser *p) {
    if (!enter(p)) return NULL;
    int before = p->depth;
    struct node *n = parse_or(p);
    while (n && take_word(p, "if")) {
        struct node *cond = enter(p) ? new_node(p, N_COND) : NULL;
        if (!cond) return NULL;
        cond->b = n;
        if (!(cond->a = parse_or(p))) return NULL;
        if (take_word(p, "else") && !(cond->c = parse_expression(p))) return NULL;
        n = cond;
    }
    p->depth = before - 1;
    return n;
}

/* An expression, or several as a tuple without parentheses. */
static struct node *parse_tuple(struct parser *p, parse_level *item) {
    struct node *first = item(p), *tuple;
    if (!first || !is_op(p, ",")) return first;
    if (!(tuple = new_node(p, N_TUPLE)) || !add_arg(p, tuple, first)) return NULL;
    while (take_op(p, ",")) {
        if (p->at->type == T_BLOCK_END || p->at->type == T_CLOSE) break;
        if (!add_arg(p, tuple, item(p))) return NULL;
    }
    return tuple;
}

/* ---- statements ---- */

/* Is the next tag {% NAME? */
static bool at_tag(const struct parser *p, const char *name) {
    return p->at->type == T_BLOCK && p->at[1].type == T_NAME && str_is(p->at[1].s, name);
}
/* Takes {% NAME %}. */
static bool need_end(struct parser *p, const char *name) {
    if (!at_tag(p, name)) return unexpected(p, name);
    p->at += 2;
    return need_block_end(p);
}

static struct node *parse_if(struct parser *p) {
    struct node *n = new_node(p, N_IF);
    if (!n || !(n->a = parse_expression(p)) || !need_block_end(p)) return NULL;
    struct node *last = n;
    while (true) {
        last->body = parse_body(p, (const char *const[]){"elif", "else", "endif", NULL});
        if (p->e->code) return NULL;
        if (!at_tag(p, "elif")) break;
        p->at += 2;
        struct node *other = new_node(p, N_IF);
        if (!other || !(other->a = parse_expression(p)) || !need_block_end(p)) return NULL;
        other->flag = true; /* distinguishes it from an if at the start of an else */
        last->orelse = other;
        last = other;
    }
    if (at_tag(p, "else")) {
        p->at += 2;
        if (!need_block_end(p)) return NULL;
        last->orelse = parse_body(p, (const char *const[]){"endif", NULL});
        if (p->e->code) return NULL;
    }
    return need_end(p, "endif") ? n : NULL;
}

static bool parse_targets(struct parser *p, struct node *n) {
    bool bracket = take_op(p, "(");
    do {
        struct str name;
        if (!need_name(p, &name) || !add_name(p, n, name, NULL)) return false;
    } while (take_op(p, ","));
    return !bracket || need_op(p, ")");
}

static struct node *parse_for(struct parser *p) {
    struct node *n = new_node(p, N_FOR);
    if (!n || !parse_targets(p, n)) return NULL;
    if (!take_word(p, "in")) return unexpected(p, "'in'");
    if (!(n->a = parse_tuple(p, parse_or))) return NULL;
    if (take_word(p, "if") && !(n->b = parse_expression(p))) return NULL;
    if (is_word(p, "recursive")) return fail(p, "recursive loops are not supported");
    if (!need_block_end(p)) return NULL;
    p->loops++;
    n->body = parse_body(p, (const char *const[]){"else", "endfor", NULL});
    p->loops--;
    if (p->e->code) return NULL;
    if (at_tag(p, "else")) {
        p->at += 2;
        if (!need_block_end(p)) return NULL;
        n->orelse = parse_body(p, (const char *const[]){"endfor", NULL});
        if (p->e->code) return NULL;
    }
    return need_end(p, "endfor") ? n : NULL;
}

static struct node *parse_set_block(struct parser *p, struct node *n) {
    n->type = N_SET_BLOCK;
    while (take_op(p, "|")) {
        struct node *filter = parse_filter(p, NULL);
        if (!add_arg(p, n, filter)) return NULL;
    }
    if (!need_block_end(p)) return NULL;
    n->body = parse_body(p, (const char *const[]){"endset", NULL});
    return !p->e->code && need_end(p, "endset") ? n : NULL;
}

/* {% filter a | b %} prints its filtered body: a set block without a target. */
static struct node *parse_filter_block(struct parser *p) {
    struct node *n = new_node(p, N_SET_BLOCK);
    do {
        struct node *filter = n ? parse_filter(p, NULL) : NULL;
        if (!filter || !add_arg(p, n, filter)) return NULL;
    } while (take_op(p, "|"));
    if (!need_block_end(p)) return NULL;
    n->body = parse_body(p, (const char *const[]){"endfilter", NULL});
    return !p->e->code && need_end(p, "endfilter") ? n : NULL;
}

static struct node *parse_set(struct parser *p) {
    struct node *n = new_node(p, N_SET);
    if (!n || !parse_targets(p, n)) return NULL;
    if (n->n_names == 1 && take_op(p, ".")) {
        if (p->at->type != T_NAME) return unexpected(p, "an attribute");
        n->attribute = p->at++->s;
    }
    if (!take_op(p, "=")) return n->n_names == 1 ? parse_set_block(p, n) : unexpected(p, "'='");
    return (n->a = parse_tuple(p, parse_expression)) && need_block_end(p) ? n : NULL;
}

/* After "(": parses parameters into names, and their default expressions (or NULL) into kwargs. */
static bool parse_parameters(struct parser *p, struct node *n) {
    bool defaults = false;
    while (!take_op(p, ")")) {
        struct str name;
        struct node *value = NULL;
        if (n->n_names && !need_op(p, ",")) return false;
        if (!need_name(p, &name)) return false;
        if (take_op(p, "=")) {
            if (!(value = parse_expression(p))) return false;
            defaults = true;
        } else if (defaults) {
            return fail(p, "a parameter without a default after one with a default") != NULL;
        }
        if (!add_name(p, n, name, value)) return false;
    }
    return true;
}

/* A macro's body is executed by a call: break and continue do not reach the loop around its definition. */
static struct node *parse_macro_body(struct parser *p, struct node *n, const char *end) {
    int loops = p->loops;
    if (!need_block_end(p)) return NULL;
    p->loops = 0;
    n->body = parse_body(p, (const char *const[]){end, NULL});
    p->loops = loops;
    return !p->e->code && need_end(p, end) ? n : NULL;
}

static struct node *parse_macro(struct parser *p) {
    struct node *n = new_node(p, N_MACRO);
    if (!n || !need_name(p, &n->s) || !need_op(p, "(") || !parse_parameters(p, n)) return NULL;
    return parse_macro_body(p, n, "endmacro");
}

static struct node *parse_call_block(struct parser *p) {
    struct node *n = new_node(p, N_CALL_BLOCK);
    if (!n || (take_op(p, "(") && !parse_parameters(p, n)) || !(n->a = parse_expression(p))) return NULL;
    if (n->a->type != N_CALL) return fail(p, "{%% call %%} needs a call of a macro");
    n->s = STR("caller");
    return parse_macro_body(p, n, "endcall");
}

static struct node *parse_generation(struct parser *p) {
    struct node *n = new_node(p, N_GENERATION);
    if (!n || !need_block_end(p)) return NULL;
    p->t->has_generation = true;
    n->body = parse_body(p, (const char *const[]){"endgeneration", NULL});
    return !p->e->code && need_end(p, "endgeneration") ? n : NULL;
}

static struct node *parse_jump(struct parser *p, enum node_type type) {
    if (!p->loops) return fail(p, "break or continue outside a loop");
    struct node *n = new_node(p, type);
    return n && need_block_end(p) ? n : NULL;
}

/* After "{%". */
static struct node *parse_statement(struct parser *p) {
    if (take_word(p, "if")) return parse_if(p);
    if (take_word(p, "for")) return parse_for(p);
    if (take_word(p, "set")) return parse_set(p);
    if (take_word(p, "filter")) return parse_filter_block(p);
    if (take_word(p, "macro")) return parse_macro(p);
    if (take_word(p, "call")) return parse_call_block(p);
    if (take_word(p, "generation")) return parse_generation(p);
    if (take_word(p, "break")) return parse_jump(p, N_BREAK);
    if (take_word(p, "continue")) return parse_jump(p, N_CONTINUE);
    if (p->at->type != T_NAME) return unexpected(p, "a statement");
    return fail(p, "the statement '%.*s' is not supported here", (int)(p->at->s.n < 60 ? p->at->s.n : 60), p->at->s.p);
}

static struct node *parse_item(struct parser *p) {
    struct node *n;
    switch (p->at->type) {
    case T_TEXT:
        if (!(n = new_node(p, N_TEXT))) return NULL;
        n->s = p->at++->s;
        return n;
    case T_OPEN:
        if (!(n = new_node(p, N_PRINT))) return NULL;
        p->at++;
        if (!(n->a = parse_tuple(p, parse_expression))) return NULL;
        if (p->at->type != T_CLOSE) return unexpected(p, "}}");
        p->at++;
        return n;
    default: p->at++; return parse_statement(p);
    }
}

/* Parses up to a tag named in `ends`; NULL: up to the end of the template. NULL may be an empty body, see p->e. */
static struct node *parse_body(struct parser *p, const char *const *ends) {
    struct node *first = NULL, **last = &first;
    if (!enter(p)) return NULL;
    while (true) {
        for (size_t i = 0; ends && ends[i]; i++)
            if (at_tag(p, ends[i])) {
                p->depth--;
                return first;
            }
        if (p->at->type == T_END) break;
        if (!(*last = parse_item(p))) return NULL;
        last = &(*last)->next;
    }
    p->depth--;
    return ends ? unexpected(p, ends[0]) : first;
}

int chat_parse(struct chat_template *t, struct chat_token *tokens, struct err *e) {
    struct err found = {0}; /* an empty body is NULL, too, so the error code decides */
    struct parser p = {.t = t, .at = tokens, .e = &found};
    t->body = parse_body(&p, NULL);
    if (found.code) *e = found;
    return found.code;
}

/*
 * What the files of lib/chat share: tokens, the syntax tree, values, and the state of a rendering. The files in order;
 * each calls only those before it:
 *     lex                                      template to tokens
 *     value, json, operator, arguments         values, their text, operators, arguments of calls
 *     method, builtin                          methods, attributes and functions; filters and tests
 *     parse                                    tokens to syntax tree
 *     eval, statement                          expressions, statements
 *     chat                                     rendering a conversation
 */
#ifndef RILL_CHAT_INTERNAL_H
#define RILL_CHAT_INTERNAL_H

#include <string.h>

#include "lib/chat/chat.h"

struct render;
struct call_args;

struct str {
    const char *p; /* not NUL-terminated */
    size_t n;
};
#define STR(literal) ((struct str){literal, sizeof(literal) - 1})
static inline bool str_equal(struct str a, struct str b) {
    return a.n == b.n && (!a.n || memcmp(a.p, b.p, a.n) == 0);
}
static inline bool str_is(struct str a, const char *text) {
    return a.n == strlen(text) && (!a.n || memcmp(a.p, text, a.n) == 0);
}

/* ---- tokens (lex.c) ---------------------------------------------------------------------------------------------- */

enum token_type {
    T_TEXT,  /* outside tags */
    T_OPEN,  /* {{ */
    T_CLOSE, /* }} */
    T_BLOCK, /* {% */
    T_BLOCK_END,
    T_NAME,
    T_STRING, /* escapes resolved */
    T_INT,
    T_FLOAT,
    T_OPERATOR,
    T_END,
};
struct chat_token {
    enum token_type type;
    int line;
    struct str s;
    int64_t i;
    double f;
};
/* Splits a template into tokens, an array in `memory` that ends with T_END. ERR_DATA names the line. */
int chat_lex(struct arena *memory, struct str source, struct chat_token **out, struct err *e) MUST_CHECK;
/* Appends a code point as UTF-8 (1 to 4 bytes) and returns its length. */
size_t chat_put_utf8(char *to, uint32_t c);

/* ---- the syntax tree (parse.c) ----------------------------------------------------------------------------------- */

enum node_type {
    /* expressions */
    N_CONST_NONE,
    N_CONST_BOOL,
    N_CONST_INT,
    N_CONST_FLOAT,
    N_CONST_STR,
    N_NAME,
    N_LIST,   /* args */
    N_TUPLE,  /* args */
    N_DICT,   /* args: key, value, key, value ... */
    N_ATTR,   /* a.s */
    N_INDEX,  /* a[b] */
    N_SLICE,  /* a[b:c:d], each may be NULL */
    N_CALL,   /* a(args, names[i]=kwargs[i]) */
    N_FILTER, /* a | s(args) */
    N_TEST,   /* a is s(args); flag: is not */
    N_NOT,
    N_NEGATE,
    N_PLUS,
    N_AND,
    N_OR,
    N_BINARY,  /* a s b: arithmetic, and ~ */
    N_COMPARE, /* a s b; also in, not in */
    N_CHAIN,   /* args: comparisons of adjacent operands; 1 < x < 3 */
    N_COND,    /* b if a else c (c may be NULL) */
    /* statements; `next` links the statements of a body */
    N_TEXT,
    N_PRINT,      /* a */
    N_IF,         /* a: condition, body, orelse */
    N_FOR,        /* names in a if b: body, orelse */
    N_SET,        /* names (or name.attribute) = a */
    N_SET_BLOCK,  /* body; args: filters, each with a == NULL; without names the result is printed */
    N_MACRO,      /* s(names, defaults in args): body */
    N_CALL_BLOCK, /* names: parameters of caller; a: the call; body */
    N_GENERATION, /* body */
    N_BREAK,
    N_CONTINUE,
};
struct node {
    enum node_type type;
    int line;
    bool flag; /* N_TEST: negated; N_CONST_BOOL: the value */
    struct str s, attribute;
    int64_t i;
    double f;
    struct node *a, *b, *c, *d;
    struct node **args;
    size_t n_args;
    struct str *names; /* of kwargs, parameters or targets */
    struct node **kwargs;
    size_t n_names;
    struct node *body, *orelse, *next;
};
struct chat_template {
    struct arena memory;
    struct node *body;
    bool has_generation;
};
int chat_parse(struct chat_template *t, struct chat_token *tokens, struct err *e) MUST_CHECK;

/* ---- values (value.c) -------------------------------------------------------------------------------------------- */

enum kind { V_UNDEFINED, V_NONE, V_BOOL, V_INT, V_FLOAT, V_STR, V_LIST, V_DICT, V_LOOP, V_MACRO, V_FUNCTION, V_METHOD };
struct value {
    enum kind kind;
    bool flag; /* V_BOOL: the value; V_LIST: is a tuple; V_DICT: is a namespace */
    union {
        int64_t i;
        double f;
        struct str s; /* V_STR; V_UNDEFINED: what is undefined; V_FUNCTION: its name */
        struct list *list;
        struct dict *dict;
        struct loop *loop;
        struct macro *macro;
        struct method *method;
    };
};
struct list {
    struct value *items;
    size_t n, cap;
};
struct dict { /* in insertion order; keys are strings, numbers, booleans or none */
    struct value *keys, *values;
    size_t n, cap;
};
struct loop {
    const struct list *items;
    size_t at;
    int depth;
};
struct macro {
    const struct node *node;
    struct frame *frame; /* where it was defined */
    /* set by statement.c, because a call executes statements */
    bool (*call)(struct render *r, const struct macro *m, const struct call_args *a, struct value *out);
};
struct method {
    struct value self;
    struct str name;
};
#define NONE_VALUE ((struct value){.kind = V_NONE})
static inline struct value int_value(int64_t i) {
    return (struct value){.kind = V_INT, .i = i};
}
static inline struct value bool_value(bool b) {
    return (struct value){.kind = V_BOOL, .flag = b};
}
static inline struct value str_value(struct str s) {
    return (struct value){.kind = V_STR, .s = s};
}
static inline struct value undefined_value(struct str what) {
    return (struct value){.kind = V_UNDEFINED, .s = what};
}

/* ---- a rendering ------------------------------------------------------------------------------------------------- */

struct frame { /* variables of a scope */
    struct dict vars;
    struct frame *parent;
};
struct render {
    struct arena memory;
    size_t used;
    uint64_t steps;
    int depth, loops; /* depth of nested evaluations; of nested loops */
    int line;         /* of the node being evaluated, for messages */
    const struct chat_options *o;
    struct buf *out;   /* current output */
    struct buf *text;  /* output of the rendering, as opposed to that of a macro or block */
    struct buf *spans; /* struct chat_span: {% generation %} blocks */
    struct frame *frame;
    struct err *e;
};
/* Functions on a rendering return false with *r->e set on failure. */
bool chat_fail(struct render *r, const char *fmt, ...) PRINTF_LIKE(2, 3); /* ERR_DATA with r->line */
/* one level deeper; the caller decrements r->depth */
bool chat_enter(struct render *r);
bool chat_step(struct render *r, size_t bytes);            /* counts a step on this many bytes */
void *chat_alloc(struct render *r, size_t n, size_t size); /* zeroed, counted; NULL on failure */
bool chat_copy(struct render *r, const void *p, size_t n, struct str *out);

const char *value_kind(const struct value *v); /* for messages, "a list" */
bool value_truth(const struct value *v);
/* Counts its steps. Beyond the limit it returns false, and the next chat_step fails. */
bool value_equal(struct render *r, const struct value *a, const struct value *b, int depth);
bool value_is_number(const struct value *v); /* as in Python, also for booleans */
double value_number(const struct value *v);
bool value_print(struct render *r, const struct value *v, struct buf *out);  /* str(v) */
bool value_string(struct render *r, const struct value *v, struct str *out); /* the same as a string of the rendering */
bool list_new(struct render *r, struct value *out, size_t cap);
bool list_push(struct render *r, struct list *l, struct value v);
bool dict_new(struct render *r, struct value *out);
bool dict_set(struct render *r, struct dict *d, struct value key, struct value v);
const struct value *dict_find(struct render *r, const struct dict *d, const struct value *key);
const struct value *dict_get(struct render *r, const struct dict *d, struct str key);
/* Lists the items of a list, keys of a dict or characters of a string; nothing for undefined. */
bool value_items(struct render *r, const struct value *v, struct list **out);
bool value_contains(struct render *r, const struct value *item, const struct value *in, bool *out);
struct json_style {
    int indent; /* -1: on one line */
    bool ascii, sort;
    struct str item, key; /* separators */
};
bool value_json(struct render *r, const struct value *v, const struct json_style *style, struct buf *out);
size_t str_length(struct str s); /* in code points */
struct str str_slice(struct str s, size_t first, size_t n);
bool chat_is_space(int32_t c); /* Python's str.isspace() */
enum letter_case { UPPER, LOWER, TITLE, TITLE_FILTER, CAPITALIZE };
/* Maps each character to one: ligatures and the like stay single, although Python may expand them. */
bool chat_change_case(struct render *r, struct str s, enum letter_case how, struct value *out);
enum { STRIP_LEFT = 1, STRIP_RIGHT = 2 };
struct str str_strip(struct str s, const struct str *chars, int sides); /* chars NULL: white space */

/* Converts JSON text that json_parse has accepted. Distinguishes 1 from 1.0, which cJSON does not (json.c). */
bool chat_read_json(struct render *r, const char *json, size_t n, struct value *out);

struct call_args {
    const struct value *args;
    size_t n;
    const struct str *names;
    const struct value *kwargs;
    size_t n_kwargs;
};
/* Returns argument `i`, or the one with this name; NULL if it is not given. */
const struct value *arg_find(const struct call_args *a, size_t i, const char *name);
/* Checks that there are at most `max` positional arguments, and no names except those in `names` (space-separated). */
bool call_check(struct render *r, const struct call_args *a, const char *what, struct str name, size_t max,
                const char *names);
bool arg_str(struct render *r, const struct call_args *a, size_t i, const char *name, struct str fallback,
             struct str *out);
bool arg_int(struct render *r, const struct call_args *a, size_t i, const char *name, int64_t fallback, int64_t *out);

bool chat_filter(struct render *r, struct str name, const struct value *v, const struct call_args *a,
                 struct value *out);
bool chat_test(struct render *r, struct str name, const struct value *v, const struct call_args *a, bool *out);
bool chat_has_filter(struct str name);
bool chat_has_test(struct str name);
bool chat_attribute(struct render *r, const struct value *v, struct str name, struct value *out);     /* v.name */
bool chat_index(struct render *r, const struct value *v, const struct value *key, struct value *out); /* v[key] */
bool chat_call_method(struct render *r, const struct method *m, const struct call_args *a, struct value *out);
bool chat_call_function(struct render *r, struct str name, const struct call_args *a, struct value *out);
bool chat_has_function(const struct render *r, struct str name);
bool chat_binary(struct render *r, struct str op, const struct value *a, const struct value *b, struct value *out);
bool chat_compare(struct render *r, struct str op, const struct value *a, const struct value *b, bool *out);
bool chat_slice(struct render *r, const struct value *v, const struct value part[3], struct value *out);
/* Joins the printed items with `between`. */
bool chat_join(struct render *r, const struct list *items, struct str between, struct value *out);
bool chat_eval(struct render *r, const struct node *n, struct value *out); /* eval.c */
bool chat_execute(struct render *r, const struct node *body);              /* statement.c */

#endif

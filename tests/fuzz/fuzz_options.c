/*
 * Fuzzes command lines: words that end in zero bytes, for a table with an option of every type and clause. An accepted
 * command line must be accepted again from the words that the provenance keeps, and help must be printable after any
 * parse.
 */
#include "lib/cli/cli_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool flag, table, quiet;
static const char *text, *file, *choice, *encode;
static uint64_t count, threads;
static double ratio, any, share;
static struct cli_amount amount;
static struct cli_list losses;

static const struct cli_option own[] = {
    {.name = "text", .type = CLI_STRING, .to = &text, .arg = "TEXT", .needs = {"!table"}, .help = "h"},
    {.name = "model", .letter = 'm', .type = CLI_STRING, .to = &file, .completes_files = true, .help = "h"},
    {.name = "type", .type = CLI_CHOICE, .to = &choice, .choices = "q4_0|q4_k_m|q8_0", .fallback = "q4_0", .help = "h"},
    {.name = "encode",
     .type = CLI_STRING,
     .to = &encode,
     .fallback = "dense",
     .needs = {"!table", "type=q8_0|!text"},
     .help = "h"},
    {.name = "count",
     .letter = 'n',
     .type = CLI_U64,
     .to = &count,
     .fallback = "7",
     .min = 1,
     .max = 4096,
     .needs = {"encode=sample:N|ratio=0.5"},
     .help = "h"},
    {.name = "ratio",
     .type = CLI_F64,
     .to = &ratio,
     .fallback = "0.5",
     .min = -1,
     .max = 1,
     .needs = {"!ratio=0|flag"},
     .help = "h"},
    {.name = "share",
     .type = CLI_SHARE,
     .to = &share,
     .fallback = "0",
     .max = 0.9,
     .needs = {"amount|!share=0.25"},
     .help = "h"},
    {.name = "amount",
     .type = CLI_AMOUNT,
     .to = &amount,
     .fallback = "0",
     .max = 100,
     .needs = {"!amount=3|share"},
     .help = "h"},
    {.name = "any", .type = CLI_F64, .to = &any, .help = "h"},
    {.name = "loss", .type = CLI_LIST, .to = &losses, .fallback = "kl", .needs = {"!loss=ce:W|any"}, .help = "h"},
    {.name = "flag", .type = CLI_FLAG, .to = &flag, .help = "h"},
    {.name = "table", .type = CLI_FLAG, .to = &table, .help = "h"},
    {0},
};
static const struct cli_option common[] = {
    {.name = "quiet", .letter = 'q', .type = CLI_FLAG, .to = &quiet, .transient = true, .help = "h"},
    {.name = "threads", .letter = 'j', .type = CLI_U64, .to = &threads, .transient = true, .min = 1, .help = "h"},
    {.name = "help", .letter = 'h', .type = CLI_FLAG, .help = "h"},
    {.name = "help-man", .type = CLI_FLAG},
};
static const struct cli_program program = {
    .name = "fuzz", .summary = "s", .options = own, .operands = "[FILE]", .max_operands = 3};

enum { MAX_WORDS = 64 };

static int parse(struct cli_args *args, struct arena *arena, int argc, char **argv) {
    struct err e = {0};
    char again[sizeof e.msg];
    flag = table = quiet = false;
    text = file = NULL;
    any = 0;
    threads = 0;
    int rc = args_parse(args, arena, &program, common, COUNT_OF(common), argc, argv, &e);
    if (!rc && !args->action) rc = args_check(args, &program, &e);
    if (!rc) return 0;
    /* a refusal must be ERR_USAGE with one printable line */
    escape_text(again, sizeof again, e.msg, strlen(e.msg));
    if (rc != ERR_USAGE || e.code != rc || !*e.msg || strcmp(again, e.msg) != 0) abort();
    return rc;
}

static void check_kept(const struct cli_args *args, struct arena *arena) {
    struct cli_args second;
    struct err e;
    char **argv = arena_array(arena, args->n_kept + 1, sizeof *argv, &e);
    if (!argv) abort();
    for (size_t i = 0; i < args->n_kept; i++) argv[i] = (char *)(uintptr_t)args->kept[i];
    double before = ratio, share_before = share, of_all = amount.share;
    uint64_t n = count;
    if (parse(&second, arena, (int)args->n_kept, argv)) abort();
    if (share != share_before || amount.share != of_all) abort();
    if (second.n_kept != args->n_kept || second.n_operands != args->n_operands || ratio != before || count != n)
        abort();
    for (size_t i = 0; i < args->n_kept; i++)
        if (strcmp(second.kept[i], args->kept[i]) != 0) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static FILE *nowhere;
    struct arena arena = {0};
    struct cli_args args;
    struct err e;
    char name[] = "rill-fuzz", *argv[MAX_WORDS + 1] = {name}, *words = mem_alloc(size + 1, &e);
    int argc = 1;
    if (!nowhere) nowhere = fopen("/dev/null", "w");
    if (!words || !nowhere) abort();
    memcpy(words, data, size);
    words[size] = 0;
    for (char *w = words; w < words + size && argc < MAX_WORDS; w += strlen(w) + 1) argv[argc++] = w;
    argv[argc] = NULL;
    if (parse(&args, &arena, argc, argv) == 0 && !args.action) check_kept(&args, &arena);
    help_options(nowhere, &args);
    help_text(nowhere, &program, &args);
    arena_release(&arena);
    mem_free(words);
    return 0;
}

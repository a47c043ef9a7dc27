/* Tests of the option parser: every type, every error with its suggestion, and what is kept for the provenance. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/cli/cli_internal.h"

static bool flag, quiet;
static const char *text, *choice, *model;
static uint64_t count, threads;
static double ratio, share;
static struct cli_amount amount;
static struct cli_list losses;

static const struct cli_option own[] = {
    {.name = "text", .type = CLI_STRING, .to = &text, .arg = "TEXT", .help = "h"},
    {.name = "type", .type = CLI_CHOICE, .to = &choice, .choices = "q4_0|q4_k_m|q8_0", .fallback = "q4_0", .help = "h"},
    {.name = "count",
     .letter = 'n',
     .type = CLI_U64,
     .to = &count,
     .fallback = "7",
     .min = 1,
     .max = 4096,
     .help = "h"},
    {.name = "ratio", .type = CLI_F64, .to = &ratio, .fallback = "0.5", .min = 0, .max = 1, .help = "h"},
    {.name = "share", .type = CLI_SHARE, .to = &share, .fallback = "25%", .min = 0, .max = 0.9, .help = "h"},
    {.name = "amount", .type = CLI_AMOUNT, .to = &amount, .fallback = "0", .max = 1000, .help = "h"},
    {.name = "loss", .type = CLI_LIST, .to = &losses, .fallback = "kl", .help = "h"},
    {.name = "flag", .type = CLI_FLAG, .to = &flag, .help = "h"},
    {.name = "model", .letter = 'm', .type = CLI_STRING, .to = &model, .arg = "MODEL", .help = "h"},
    {0},
};
static const struct cli_option common[] = {
    {.name = "quiet", .letter = 'q', .type = CLI_FLAG, .to = &quiet, .transient = true, .help = "h"},
    {.name = "threads", .letter = 'j', .type = CLI_U64, .to = &threads, .transient = true, .min = 1, .help = "h"},
    {.name = "help", .letter = 'h', .type = CLI_FLAG, .help = "h"},
    {.name = "help-man", .type = CLI_FLAG},
};
static const struct cli_program program = {.name = "test", .options = own, .operands = "[FILE]", .max_operands = 1};

static struct arena arena;
static struct cli_args args;
static struct err e;

/* The command line as words; the last one is NULL. */
static int parse(const char *const *words) {
    char *argv[32] = {(char *)(uintptr_t) "rill-test"};
    int argc = 1;
    while (words[argc - 1]) {
        argv[argc] = (char *)(uintptr_t)words[argc - 1];
        argc++;
    }
    arena_release(&arena);
    flag = quiet = false;
    text = choice = model = NULL;
    threads = 0;
    e = (struct err){0};
    int rc = args_parse(&args, &arena, &program, common, COUNT_OF(common), argc, argv, &e);
    return rc ? rc : args.action ? 0 : args_check(&args, &program, &e);
}
#define PARSE(...) parse((const char *const[]){__VA_ARGS__, NULL})
#define REFUSED(message, ...)                                                                                          \
    do {                                                                                                               \
        assert_int_equal(PARSE(__VA_ARGS__), ERR_USAGE);                                                               \
        assert_string_equal(e.msg, message);                                                                           \
    } while (0)

static void expect_kept(const char *joined) {
    char all[512] = "";
    for (size_t i = 0, n = 0; i < args.n_kept; i++)
        n += (size_t)snprintf(all + n, sizeof all - n, "%s%s", i ? " " : "", args.kept[i]);
    assert_string_equal(all, joined);
}

static void defaults(void **state) {
    (void)state;
    assert_int_equal(parse((const char *const[]){NULL}), 0);
    assert_string_equal(choice, "q4_0");
    assert_int_equal(count, 7);
    assert_true(ratio == 0.5);
    assert_int_equal(losses.n, 1);
    assert_string_equal(losses.items[0], "kl");
    assert_null(text);
    assert_false(flag);
    expect_kept("test");
}

static void both_spellings_any_order(void **state) {
    (void)state;
    assert_int_equal(PARSE("in.rill", "--text=a=b", "--count", "2K", "--flag", "--ratio", "1e-2", "--type=q8_0"), 0);
    assert_string_equal(text, "a=b");
    assert_int_equal(count, 2048);
    assert_true(flag);
    assert_true(ratio == 1e-2);
    assert_string_equal(choice, "q8_0");
    assert_int_equal(args.n_operands, 1);
    assert_string_equal(args.operands[0], "in.rill");
    expect_kept("test in.rill --text=a=b --count 2K --flag --ratio 1e-2 --type=q8_0");
}

static void letters(void **state) {
    (void)state;
    assert_int_equal(PARSE("-j4", "-n", "3", "-qm", "x.rill"), 0);
    assert_int_equal(threads, 4);
    assert_int_equal(count, 3);
    assert_true(quiet);
    assert_string_equal(model, "x.rill");
    expect_kept("test -n 3 -m x.rill"); /* -q and -j do not change the output */
    assert_int_equal(PARSE("-mx"), 0);
    assert_string_equal(model, "x");
}

static void transient_values_are_not_kept(void **state) {
    (void)state;
    assert_int_equal(PARSE("--threads", "2", "a"), 0);
    expect_kept("test a");
    assert_int_equal(PARSE("--threads=2", "a"), 0);
    expect_kept("test a");
}

static void shares_and_amounts(void **state) {
    (void)state;
    assert_int_equal(parse((const char *const[]){NULL}), 0);
    assert_true(share == 0.25);
    assert_true(amount.n == 0 && amount.share == 0);
    assert_int_equal(PARSE("--share", "0.5", "--amount", "67%"), 0);
    assert_true(share == 0.5 && amount.n == 0 && amount.share == 0.67);
    assert_string_equal(amount.text, "67%");
    expect_kept("test --share 0.5 --amount 67%");
    assert_int_equal(PARSE("--share=50%", "--amount=20"), 0);
    assert_true(share == 0.5 && amount.n == 20 && amount.share == 0);
    assert_int_equal(PARSE("--share=0%", "--amount=100%"), 0);
    assert_true(share == 0 && amount.share == 1);
    REFUSED("--share: 91% is outside of 0 to 0.9", "--share", "91%");
    REFUSED("--ratio: '50%' is not a number", "--ratio", "50%");
    REFUSED("--amount: 1001 is above 1000", "--amount", "1001");
    static const char *const bad[] = {"", "%", "x%", "5 %", "50%%", "nan%", "1e999%"};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        assert_int_equal(PARSE("--share", bad[i]), ERR_USAGE);
        assert_int_equal(PARSE("--amount", bad[i]), ERR_USAGE);
    }
    REFUSED("--amount: '0%': expected more than 0% and at most 100%", "--amount", "0%");
    REFUSED("--amount: '101%': expected more than 0% and at most 100%", "--amount", "101%");
    REFUSED("--amount: '0.5' is neither a whole number nor a percentage", "--amount", "0.5");
}

static void lists_replace_their_default(void **state) {
    (void)state;
    assert_int_equal(PARSE("--loss", "ce", "--loss=kl:t=2"), 0);
    assert_int_equal(losses.n, 2);
    assert_string_equal(losses.items[0], "ce");
    assert_string_equal(losses.items[1], "kl:t=2");
}

static void dashes(void **state) {
    (void)state;
    assert_int_equal(PARSE("-"), 0);
    assert_string_equal(args.operands[0], "-");
    assert_int_equal(PARSE("--", "--flag"), 0);
    assert_string_equal(args.operands[0], "--flag");
    assert_false(flag);
    expect_kept("test -- --flag");
    assert_int_equal(PARSE("--text", "-5"), 0); /* a value may begin with a dash */
    assert_string_equal(text, "-5");
    assert_int_equal(PARSE("--text", ""), 0);
    assert_string_equal(text, "");
}

static void actions_end_parsing(void **state) {
    (void)state;
    assert_int_equal(PARSE("--help", "--nonsense"), 0);
    assert_string_equal(args.action->name, "help");
    assert_int_equal(PARSE("-qh"), 0);
    assert_string_equal(args.action->name, "help");
    assert_int_equal(PARSE("--help-man"), 0);
    assert_string_equal(args.action->name, "help-man");
}

static void unknown(void **state) {
    (void)state;
    REFUSED("unknown option --cuont=3 (did you mean --count?)", "--cuont=3");
    REFUSED("unknown option --rat (did you mean --ratio?)", "--rat");        /* no abbreviations */
    REFUSED("unknown option --helpman (did you mean --help?)", "--helpman"); /* hidden options are not suggested */
    REFUSED("unknown option --zzzzzz (--help lists the options)", "--zzzzzz");
    REFUSED("unknown option -text (did you mean --text?)", "-text");
    REFUSED("unknown option -x (--help lists the options)", "-x");
    REFUSED("unknown option -5 (--help lists the options)", "-5");
}

static void repeated(void **state) {
    (void)state;
    REFUSED("--count is given twice", "--count=1", "-n", "1");
    REFUSED("--flag is given twice", "--flag", "--flag");
    REFUSED("--quiet is given twice", "-qq");
}

static void missing(void **state) {
    (void)state;
    REFUSED("--text needs a value (TEXT)", "--text");
    REFUSED("--model needs a value (MODEL)", "-m");
    REFUSED("--text needs a value (TEXT) but --flag follows (write --text=--flag if it is meant)", "--text", "--flag");
    REFUSED("--flag takes no value", "--flag=yes");
    REFUSED("unexpected operand 'b'", "a", "b");
}

static void wrong_values(void **state) {
    (void)state;
    REFUSED("--type: 'q8' is not one of q4_0|q4_k_m|q8_0 (did you mean q8_0?)", "--type=q8");
    REFUSED("--type: '' is not one of q4_0|q4_k_m|q8_0", "--type=");
    REFUSED("--type: 'q4_0|q8_0' is not one of q4_0|q4_k_m|q8_0", "--type=q4_0|q8_0");
    REFUSED("--count: '3x' is not a whole number", "--count=3x");
    REFUSED("--count: '-3' is not a whole number", "--count=-3");
    REFUSED("--count: '' is not a whole number", "--count=");
    REFUSED("--count: 0 is outside of 1 to 4096", "--count=0");
    REFUSED("--count: 4097 is outside of 1 to 4096", "--count=4097");
    REFUSED("--threads: 0 is below 1", "-j0");
    REFUSED("--threads: 9007199254740992 is above 9007199254740991", "-j9007199254740992");
    REFUSED("--threads: 16777216G is above 9007199254740991", "-j16777216G");
    REFUSED("--ratio: 1.5 is outside of 0 to 1", "--ratio=1.5");
    REFUSED("--ratio: 'half' is not a number", "--ratio=half");
}

static void required(void **state) {
    (void)state;
    static const char *to;
    static const struct cli_option rows[] = {
        {.name = "to", .type = CLI_STRING, .to = &to, .arg = "TYPE", .required = true, .help = "h"}, {0}};
    static const struct cli_program p = {
        .name = "x", .options = rows, .operands = "PATH", .min_operands = 1, .max_operands = -1};
    char *argv[] = {(char *)(uintptr_t) "x", (char *)(uintptr_t) "--to=a", NULL};
    assert_int_equal(args_parse(&args, &arena, &p, NULL, 0, 1, argv, &e), 0);
    assert_int_equal(args_check(&args, &p, &e), ERR_USAGE);
    assert_string_equal(e.msg, "--to TYPE is required");
    assert_int_equal(args_parse(&args, &arena, &p, NULL, 0, 2, argv, &e), 0);
    assert_int_equal(args_check(&args, &p, &e), ERR_USAGE);
    assert_string_equal(e.msg, "an operand is needed: PATH");
}

/* Clauses of every form: what they refuse, and how help words it. */
static void needs(void **state) {
    (void)state;
    static double t;
    static const char *stats, *score, *encode;
    static bool table, json;
    static double part;
    static struct cli_amount layers;
    static const struct cli_option rows[] = {
        {.name = "table", .type = CLI_FLAG, .to = &table, .needs = {"!json"}, .help = "h"},
        {.name = "json", .type = CLI_FLAG, .to = &json, .help = "h"},
        {.name = "t", .type = CLI_F64, .to = &t, .fallback = "1", .needs = {"encode=sample:N|table"}, .help = "h"},
        {.name = "encode", .type = CLI_STRING, .to = &encode, .fallback = "dense", .help = "h"},
        {.name = "stats",
         .type = CLI_STRING,
         .to = &stats,
         .needs = {"json|!t=0.5", "!score=weights|table"},
         .help = "h"},
        {.name = "score",
         .type = CLI_CHOICE,
         .to = &score,
         .choices = "auto|weights|both",
         .fallback = "auto",
         .needs = {"!score=both|stats", "!score=weights|!table"},
         .help = "h"},
        {.name = "part",
         .type = CLI_SHARE,
         .to = &part,
         .fallback = "0",
         .max = 1,
         .needs = {"!part=0.5|layers"},
         .help = "h"},
        {.name = "layers",
         .type = CLI_AMOUNT,
         .to = &layers,
         .fallback = "0",
         .max = 100,
         .needs = {"!layers=3|json"},
         .help = "h"},
        {0}};
    static const struct {
        const char *words[8], *message; /* NULL: accepted */
    } cases[] = {
        {{"--json"}, NULL},
        {{"--table"}, NULL},
        {{"--table", "--json"}, "--table has no effect with --json"},
        {{"--t", "2"}, "--t needs --encode sample:N or --table"},
        {{"--t", "1"}, "--t needs --encode sample:N or --table"},
        {{"--t", "2", "--encode", "sample:50"}, NULL},
        {{"--t", "2", "--encode=samples"}, "--t needs --encode sample:N or --table"},
        {{"--t", "2", "--table"}, NULL},
        {{"--stats", "a"}, NULL},
        {{"--stats", "a", "--t", "5e-1", "--table"}, "--stats with --t 0.5 needs --json"},
        {{"--stats", "a", "--score", "weights"}, "--stats with --score weights needs --table"},
        {{"--score", "auto"}, NULL},
        {{"--score", "both"}, "--score both needs --stats"},
        {{"--score", "both", "--stats", "a"}, NULL},
        {{"--score", "weights", "--table"}, "--score weights has no effect with --table"},
        {{"--part", "40%"}, NULL},
        {{"--part", "50%"}, "--part 0.5 needs --layers"},
        {{"--part", "50%", "--layers", "0"}, "--part 0.5 needs --layers"},
        {{"--part", "50%", "--layers", "67%"}, NULL},
        {{"--part", "50%", "--layers", "2"}, NULL},
        {{"--layers", "3"}, "--layers 3 needs --json"},
        {{"--layers", "3%"}, NULL},
    };
    static const char *const words[] = {"not with --json",
                                        "",
                                        "only with --encode sample:N or --table",
                                        "",
                                        "with --t 0.5 only with --json; with --score weights only with --table",
                                        "both: only with --stats; weights: not with --table",
                                        "0.5: only with --layers",
                                        "3: only with --json"};
    static const struct cli_program p = {.name = "test", .options = rows, .operands = ""};
    struct arena a = {0};
    struct cli_args got;
    char text_of[256];
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char *argv[10] = {(char *)(uintptr_t) "rill-test"};
        int argc = 1;
        for (; cases[i].words[argc - 1]; argc++) argv[argc] = (char *)(uintptr_t)cases[i].words[argc - 1];
        table = json = false;
        stats = NULL;
        assert_int_equal(args_parse(&got, &a, &p, NULL, 0, argc, argv, &e), 0);
        assert_int_equal(args_check(&got, &p, &e), cases[i].message ? ERR_USAGE : 0);
        if (cases[i].message) assert_string_equal(e.msg, cases[i].message);
    }
    for (size_t i = 0; i < COUNT_OF(words); i++) {
        needs_describe(&rows[i], text_of, sizeof text_of);
        assert_string_equal(text_of, words[i]);
    }
    arena_release(&a);
}

static void nearest(void **state) {
    (void)state;
    static const char *const names[] = {"prune", "quantize", "teacher-infer", "ls"};
    assert_string_equal(cli_nearest("purne", names, 4), "prune");
    assert_string_equal(cli_nearest("teacher", names, 4), "teacher-infer");
    assert_string_equal(cli_nearest("quantise", names, 4), "quantize");
    assert_null(cli_nearest("xy", names, 4)); /* nothing in "ls" is similar */
    assert_null(cli_nearest("", names, 4));
    assert_null(cli_nearest("", names, 0));
}

static int cleanup(void **state) {
    (void)state;
    arena_release(&arena);
    return 0;
}

/* cli_file_read from a non-blocking pipe whose text comes late and in two pieces. */
static void text_is_waited_for(void **state) {
    (void)state;
    struct err err;
    int ends[2];
    char got_text[16] = "";
    size_t got = 0;
    assert_int_equal(pipe2(ends, O_NONBLOCK), 0);
    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < 2; i++) usleep(20000), (void)!write(ends[1], "abc", 3);
        _exit(0);
    }
    close(ends[1]);
    struct cli_file f = {.fd = ends[0], .name = "text", .digest = digest_new(&err)};
    assert_int_equal(cli_file_read(&f, got_text, sizeof got_text, &got, &err), 0);
    assert_int_equal(got, 6);
    assert_string_equal(got_text, "abcabc");
    assert_int_equal(waitpid(child, NULL, 0), child);
    digest_free(f.digest);
    close(ends[0]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults),
        cmocka_unit_test(both_spellings_any_order),
        cmocka_unit_test(letters),
        cmocka_unit_test(transient_values_are_not_kept),
        cmocka_unit_test(lists_replace_their_default),
        cmocka_unit_test(dashes),
        cmocka_unit_test(actions_end_parsing),
        cmocka_unit_test(unknown),
        cmocka_unit_test(repeated),
        cmocka_unit_test(missing),
        cmocka_unit_test(wrong_values),
        cmocka_unit_test(required),
        cmocka_unit_test(needs),
        cmocka_unit_test(shares_and_amounts),
        cmocka_unit_test(nearest),
        cmocka_unit_test(text_is_waited_for),
    };
    return cmocka_run_group_tests(tests, NULL, cleanup);
}

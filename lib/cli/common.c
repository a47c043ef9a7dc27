/* The options that all programs share, as rows of the option table. */
#include "lib/cli/cli_internal.h"

#define FORCE_HELP "replace an output file that exists; let binary output go to a terminal"

size_t common_options(struct cli *c, const struct cli_program *p, struct cli_option rows[CLI_MAX_COMMON]) {
    size_t n = 0;
    if (p->writes_stream || p->writes_text) {
        rows[n++] = (struct cli_option){
            .name = "output",
            .letter = 'o',
            .type = CLI_STRING,
            .to = &c->output_path,
            .arg = "FILE",
            .completes_files = true,
            .writes = CLI_RESULT,
            .transient = true,
            .help = "write to FILE, complete or not at all, instead of standard output; -: standard output"};
        rows[n++] = (struct cli_option){.name = "force",
                                        .type = CLI_FLAG,
                                        .to = &c->force,
                                        .transient = !p->force_help,
                                        .help = p->force_help ? p->force_help : FORCE_HELP};
    }
    if (p->writes_stream) {
        rows[n++] = (struct cli_option){
            .name = "codec",
            .type = CLI_CHOICE,
            .to = &c->codec,
            .arg = "CODEC",
            .choices = "raw|zstd|planes|sparse",
            .fallback = "raw",
            .needs = {p->stream_needs},
            .help = "how tensors are stored. raw: for pipes; zstd or planes (byte planes of each element, smaller and "
                    "faster): "
                    "for files to keep; sparse (planes plus a bit for each zero): for pruned models"};
        rows[n++] = (struct cli_option){.name = "level",
                                        .type = CLI_U64,
                                        .to = &c->level,
                                        .arg = "N",
                                        .min = 1,
                                        .max = 19,
                                        .needs = {"codec=zstd|codec=planes|codec=sparse", p->stream_needs},
                                        .help = "zstd compression level; if not given, the codec's default"};
        rows[n++] = (struct cli_option){.name = "no-provenance",
                                        .type = CLI_FLAG,
                                        .to = &c->no_provenance,
                                        .transient = true,
                                        .help = "do not record how the output was made"};
    }
    if (p->seeded)
        rows[n++] = (struct cli_option){.name = "seed",
                                        .type = CLI_U64,
                                        .to = &c->seed,
                                        .arg = "N",
                                        .fallback = "0",
                                        .min = 0,
                                        .max = (double)JSON_MAX_INTEGER,
                                        .needs = {p->seed_needs[0], p->seed_needs[1]},
                                        .help = "random seed; the same seed gives the same result"};
    if (p->threaded)
        rows[n++] = (struct cli_option){.name = "threads",
                                        .letter = 'j',
                                        .type = CLI_U64,
                                        .to = &c->threads,
                                        .arg = "N",
                                        .min = 1,
                                        .max = 4096,
                                        .transient = true,
                                        .help = "number of threads; if not given, one for each core this process may "
                                                "use. The result does not depend on it"};
    rows[n++] = (struct cli_option){
        .name = "max-memory",
        .type = CLI_U64,
        .to = &c->max_memory,
        .arg = "BYTES",
        .min = 1,
        .max = 0x1p60,
        .transient = true,
        .help =
            "fail rather than allocate more than this for tensors and tables; K, M and G are powers of 1024. If not "
            "given: what the machine has available, within the limits of the control group and ulimit -v"};
    rows[n++] = (struct cli_option){
        .name = "progress",
        .type = CLI_CHOICE,
        .to = &c->progress_mode,
        .arg = "WHEN",
        .choices = "auto|always|never",
        .fallback = "auto",
        .needs = {"!progress=always|!quiet"},
        .transient = true,
        .help =
            "show progress. auto: a bar on a terminal, shown by the last program of a pipeline; without a terminal, a "
            "line every half minute if -v is given"};
    rows[n++] = (struct cli_option){.name = "report",
                                    .type = CLI_STRING,
                                    .to = &c->report_path,
                                    .arg = "FILE",
                                    .completes_files = true,
                                    .writes = CLI_REPLACES,
                                    .transient = true,
                                    .help = "write a report to FILE as JSON: settings, counts, times, peak memory"};
    if (p->threaded)
        rows[n++] = (struct cli_option){
            .name = "profile",
            .type = CLI_FLAG,
            .to = &c->profile,
            .needs = {"!quiet|report"},
            .transient = true,
            .help = "report at the end, and in --report, where the time went: shares of the main thread's time in "
                    "reading, matrix products, attention and so on, and how long threads were idle"};
    rows[n++] = (struct cli_option){.name = "verbose",
                                    .letter = 'v',
                                    .type = CLI_FLAG,
                                    .to = &c->verbose,
                                    .needs = {"!quiet"},
                                    .transient = true,
                                    .help = "print more details on standard error"};
    rows[n++] = (struct cli_option){.name = "quiet",
                                    .letter = 'q',
                                    .type = CLI_FLAG,
                                    .to = &c->quiet,
                                    .transient = true,
                                    .help = "print no notes, warnings or progress; errors are always printed"};
    rows[n++] = (struct cli_option){.name = "help", .letter = 'h', .type = CLI_FLAG, .help = "show this help"};
    rows[n++] = (struct cli_option){.name = "version",
                                    .letter = 'V',
                                    .type = CLI_FLAG,
                                    .help = "show the version; with -v also the CPU path and its kernels"};
    rows[n++] = (struct cli_option){.name = "help-man", .type = CLI_FLAG};
    rows[n++] = (struct cli_option){.name = "help-bash", .type = CLI_FLAG};
    rows[n++] = (struct cli_option){.name = "help-zsh", .type = CLI_FLAG};
    rows[n++] = (struct cli_option){.name = "help-fish", .type = CLI_FLAG};
    rows[n++] = (struct cli_option){.name = "help-summary", .type = CLI_FLAG};
    rows[n++] = (struct cli_option){.name = "help-options", .type = CLI_FLAG};
    return n;
}

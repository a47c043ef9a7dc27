/* The options that programs share, as rows of the option table. */
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
            .help = "write FILE instead of standard output, complete or not at all; - is standard output"};
        rows[n++] = (struct cli_option){.name = "force",
                                        .type = CLI_FLAG,
                                        .to = &c->force,
                                        .transient = !p->force_help,
                                        .help = p->force_help ? p->force_help : FORCE_HELP};
    }
    if (p->writes_stream) {
        rows[n++] = (struct cli_option){.name = "codec",
                                        .type = CLI_CHOICE,
                                        .to = &c->codec,
                                        .arg = "CODEC",
                                        .choices = "raw|zstd|planes|sparse",
                                        .fallback = "raw",
                                        .needs = {p->stream_needs},
                                        .help = "how tensors are stored: raw for pipes, zstd or planes (byte planes of "
                                                "each element, smaller and faster) for files that are kept, sparse "
                                                "(planes, and a bit for each zero) for pruned models"};
        rows[n++] = (struct cli_option){.name = "level",
                                        .type = CLI_U64,
                                        .to = &c->level,
                                        .arg = "N",
                                        .min = 1,
                                        .max = 19,
                                        .needs = {"codec=zstd|codec=planes|codec=sparse", p->stream_needs},
                                        .help = "zstd's compression level; without it, the codec's default"};
        rows[n++] = (struct cli_option){.name = "no-provenance",
                                        .type = CLI_FLAG,
                                        .to = &c->no_provenance,
                                        .transient = true,
                                        .help = "do not record what made this from what"};
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
                                        .help = "seed of all random numbers; the same seed gives the same result"};
    if (p->threaded)
        rows[n++] = (struct cli_option){
            .name = "threads",
            .letter = 'j',
            .type = CLI_U64,
            .to = &c->threads,
            .arg = "N",
            .min = 1,
            .max = 4096,
            .transient = true,
            .help = "threads to use; without it, all the cores this process may use. The result does not depend on it"};
    rows[n++] = (struct cli_option){
        .name = "max-memory",
        .type = CLI_U64,
        .to = &c->max_memory,
        .arg = "BYTES",
        .min = 1,
        .max = 0x1p60,
        .transient = true,
        .help =
            "allocate no more memory than this for tensors and tables, and fail before exceeding it; K, M and G are "
            "powers of 1024. Without it: what the machine has available, the control group and ulimit -v leave"};
    rows[n++] = (struct cli_option){
        .name = "progress",
        .type = CLI_CHOICE,
        .to = &c->progress_mode,
        .arg = "WHEN",
        .choices = "auto|always|never",
        .fallback = "auto",
        .needs = {"!progress=always|!quiet"},
        .transient = true,
        .help = "show progress; auto: a bar on a terminal, by the last program of a pipeline, and without a "
                "terminal, if -v is given, a line every half minute"};
    rows[n++] =
        (struct cli_option){.name = "report",
                            .type = CLI_STRING,
                            .to = &c->report_path,
                            .arg = "FILE",
                            .completes_files = true,
                            .writes = CLI_REPLACES,
                            .transient = true,
                            .help = "write what was done to FILE as JSON: settings, counts, seconds, peak memory"};
    if (p->threaded)
        rows[n++] = (struct cli_option){
            .name = "profile",
            .type = CLI_FLAG,
            .to = &c->profile,
            .needs = {"!quiet|report"},
            .transient = true,
            .help = "say at the end, and in --report, what the time went into: reading, matrix products, attention and "
                    "so on, as shares of the main thread's time, and how long threads were idle"};
    rows[n++] = (struct cli_option){.name = "verbose",
                                    .letter = 'v',
                                    .type = CLI_FLAG,
                                    .to = &c->verbose,
                                    .needs = {"!quiet"},
                                    .transient = true,
                                    .help = "print more on standard error"};
    rows[n++] = (struct cli_option){.name = "quiet",
                                    .letter = 'q',
                                    .type = CLI_FLAG,
                                    .to = &c->quiet,
                                    .transient = true,
                                    .help = "no notes, warnings or progress; errors are always shown"};
    rows[n++] = (struct cli_option){.name = "help", .letter = 'h', .type = CLI_FLAG, .help = "show this text"};
    rows[n++] = (struct cli_option){.name = "version",
                                    .letter = 'V',
                                    .type = CLI_FLAG,
                                    .help = "show the version; with -v, also the CPU path and its kernels"};
    rows[n++] = (struct cli_option){.name = "help-man", .type = CLI_FLAG};
    rows[n++] = (struct cli_option){.name = "help-bash", .type = CLI_FLAG};
    rows[n++] = (struct cli_option){.name = "help-zsh", .type = CLI_FLAG};
    rows[n++] = (struct cli_option){.name = "help-fish", .type = CLI_FLAG};
    rows[n++] = (struct cli_option){.name = "help-summary", .type = CLI_FLAG};
    rows[n++] = (struct cli_option){.name = "help-options", .type = CLI_FLAG};
    return n;
}

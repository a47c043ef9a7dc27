/* rill quantize: quantizes a model stream, one tensor at a time. */
#include "lib/compress/compress.h"

static struct compress_quantize_options o;

static struct cli_option options[] = {
    {.name = "type",
     .type = CLI_STRING,
     .to = &o.type,
     .arg = "TYPE",
     .needs = {"!plan"},
     .help = "a file type of llama-quantize, in upper or lower case: q8_0, q6_k, q5_k_m, q5_k_s, q5_1, q5_0, q4_k_m, "
             "q4_k_s, q4_1, q4_0, iq4_nl, iq4_xs, mxfp4, q3_k_l, q3_k_m, q3_k_s, iq3_m, iq3_s, iq3_xs, iq3_xxs, q2_k, "
             "q2_k_s, iq2_m, iq2_s, iq2_xs, iq2_xxs, tq2_0, tq1_0, f16, bf16 or f32; q3_k, q4_k and q5_k are short for "
             "q3_k_m, q4_k_m and q5_k_m. Norms and biases stay f32"},
    {.name = "pure",
     .type = CLI_FLAG,
     .to = &o.pure,
     .needs = {"type"},
     .help = "no mixture: every matrix gets the type that most have in TYPE"},
    {.name = "tensor-type",
     .type = CLI_LIST,
     .to = &o.rules,
     .arg = "REGEX=TYPE",
     .needs = {"!plan"},
     .help =
         "the type of the matrices whose name, Rill's or GGUF's, matches the regular expression; the last match wins. "
         "With a target, what is left to choose from goes to the others"},
    {.name = "head-type",
     .type = CLI_STRING,
     .to = &o.head_type,
     .arg = "TYPE",
     .needs = {"!plan"},
     .help = "another type for the output matrix (the embedding where they are tied)"},
    {.name = "embed-type",
     .type = CLI_STRING,
     .to = &o.embed_type,
     .arg = "TYPE",
     .needs = {"!plan"},
     .help = "another type for the embedding of a model whose output is not tied to it"},
    {.name = "plan",
     .type = CLI_STRING,
     .to = &o.plan,
     .arg = "FILE",
     .completes_files = true,
     .help = "take the type of each matrix from this file, as --dry-run prints it"},
    {.name = "target-bpw",
     .type = CLI_F64,
     .to = &o.target_bpw,
     .arg = "BITS",
     .min = 0.01,
     .max = 32,
     .needs = {"!type", "!plan", "!target-size"},
     .help =
         "choose a type for each matrix so that the model has at most so many bits per weight, norms included, and the "
         "least error: measured with --stats, and for good results weighed by --fisher. Reads the model twice"},
    {.name = "target-size",
     .type = CLI_U64,
     .to = &o.target_size,
     .arg = "BYTES",
     .min = 1,
     .needs = {"!type", "!plan"},
     .help = "the same for the bytes of all tensors, without header and vocabulary; 90M: 90 times 1048576"},
    {.name = "types",
     .type = CLI_STRING,
     .to = &o.types,
     .arg = "LIST",
     .needs = {"target-bpw|target-size"},
     .help = "what a target may choose from, as q3_k,q4_k,q6_k; without it " QUANT_BUDGET_TYPES "; those that need "
             "importance only where --stats has it"},
    {.name = "fisher",
     .type = CLI_STRING,
     .to = &o.fisher,
     .arg = "TOKENS",
     .completes_files = true,
     .needs = {"target-bpw|target-size"},
     .help =
         "weigh the matrices against each other by how much the model's own distribution over these tokens depends on "
         "them (Fisher information, a backward pass over each sequence, the model and its gradients in memory); "
         "without it, the relative errors of all outputs count the same"},
    {.name = "search",
     .type = CLI_U64,
     .to = &o.search,
     .arg = "STEPS",
     .fallback = "0",
     .max = QUANT_MOST_STEPS,
     .needs = {"target-bpw|target-size", "data"},
     .help =
         "go on from the best plan by the true divergence from the original on --data, in so many moves of bits from "
         "some matrices to others; for good results 200 or more. They are judged rounded to nearest or by hqq; for "
         "gptq "
         "and learned, which go on from the plan, nearest with as much less error as these leave. Two copies of the "
         "model in memory"},
    {.name = "search-tokens",
     .type = CLI_U64,
     .to = &o.search_tokens,
     .arg = "N",
     .fallback = "4096",
     .max = 1e12,
     .needs = {"search"},
     .help = "judge moves on whole sequences of --data up to the one that reaches N positions; 0: all; each needs "
             "memory for its logits"},
    {.name = "cache",
     .type = CLI_STRING,
     .to = &o.cache,
     .arg = "FOLDER",
     .completes_files = true,
     .needs = {"!dry-run|target-bpw|target-size"},
     .help =
         "keep in this folder, made if it is missing, what is quantized, by digests of the tensor and of all that its "
         "blocks come from, and the errors that a target measures: a run that was interrupted, or that differs in "
         "some tensors, another type or another target takes from there what is the same. It may be removed at any "
         "time"},
    {.name = "dry-run",
     .type = CLI_FLAG,
     .to = &o.dry_run,
     .needs = {"!method=hqq|search"},
     .help =
         "print the plan and stop: each matrix with its type, size and the reason, as text for --plan, edited or not"},
    {.name = "stats",
     .type = CLI_STRING,
     .to = &o.stats,
     .arg = "FILE",
     .completes_files = true,
     .needs = {"!method=hqq"},
     .help = "weight the error of each input channel by the statistics of calibrate, or of llama-imatrix (a GGUF or a "
             ".dat). From calibrate --head-moments, gptq and learned quantize the head by error feedback, too"},
    {.name = "clip",
     .type = CLI_FLAG,
     .to = &o.clip,
     .needs = {"stats", "!method=gptq", "!method=learned", "!dry-run|search"},
     .help = "cut off the largest weights of a group where that lowers the error by --stats, as AWQ does, but of q and "
             "k"},
    {.name = "method",
     .type = CLI_CHOICE,
     .to = &o.method,
     .choices = "rtn|hqq|gptq|learned",
     .fallback = "rtn",
     .help = "rtn: each weight to the nearest value, with the scales that a search finds; hqq: the same, then mins (or "
             "scales, in types without) in half-quadratic steps, which need no data; gptq: with --data, codes by "
             "error feedback on the grid of each type and descent over codes and scales, layer by layer; "
             "learned: then both by gradients of the error that attention, and the feed-forward part, make in what "
             "comes out of them"},
    {.name = "data",
     .type = CLI_STRING,
     .to = &o.data,
     .arg = "TOKENS",
     .completes_files = true,
     .needs = {"method=gptq|method=learned|search", "!dry-run|search"},
     .help = "the tokens to calibrate on, and to search by: text like that which the model will see, 128 sequences of "
             "512 for a start"},
    {.name = "max-tokens",
     .type = CLI_U64,
     .to = &o.max_tokens,
     .arg = "N",
     .fallback = "0",
     .needs = {"data", "method=gptq|method=learned", "!dry-run"},
     .help = "calibrate on whole sequences up to the one that reaches N positions; 0: all"},
    {.name = "damp",
     .type = CLI_F64,
     .to = &o.damp,
     .arg = "SHARE",
     .fallback = "0.01",
     .max = 1,
     .needs = {"data", "method=gptq|method=learned", "!dry-run"},
     .help = "what is added to the diagonal of the second moments, as a share of its mean; ten times as much when they "
             "do not factor, up to four times"},
    {.name = "sweeps",
     .type = CLI_U64,
     .to = &o.sweeps,
     .arg = "N",
     .fallback = "4",
     .max = 1000,
     .needs = {"data", "method=gptq|method=learned", "!dry-run"},
     .help = "passes of descent over codes and scales after the feedback, at most; 0: plain GPTQ"},
    {.name = "passes",
     .type = CLI_U64,
     .to = &o.passes,
     .arg = "N",
     .fallback = "6",
     .min = 1,
     .max = 1000,
     .needs = {"method=learned", "data", "!dry-run"},
     .help =
         "steps that are learned, each after the data went through and back; one sequence of eight is held out, and "
         "what is best on these is kept"},
    {.name = "symmetric",
     .type = CLI_FLAG,
     .to = &o.symmetric,
     .needs = {"data", "method=gptq|method=learned", "!dry-run"},
     .help = "towards what the original's matrices make of the inputs that they have now, as GPTQ has it, in half the "
             "time; "
             "without it, towards what they made of the original's inputs"},
    {.name = "precision",
     .type = CLI_CHOICE,
     .to = &o.how.precision,
     .choices = "auto|bf16|f32",
     .fallback = "auto",
     .needs = {"data"},
     .help = "of the forward pass over the data; sums are f32 in any case. " SESSION_AUTO_HELP "else f32"},
    {.name = "strict",
     .type = CLI_FLAG,
     .to = &o.strict,
     .help =
         "refuse a model with rows that are not a whole number of blocks, rather than use another type for them, and "
         "types that need --stats when there are none"},
    {0},
};

static int run(struct cli *c, struct err *e) {
    return compress_quantize(c, &o, e);
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "quantize",
        .summary = "store a model's weights in fewer bits",
        .operands = "[MODEL]",
        .max_operands = 1,
        .reads_stdin = true,
        .writes_stream = true,
        .stream_needs = "!dry-run",
        .seeded = true,
        .seed_needs = {"fisher|search"},
        .force_help = "replace an output file that exists; let binary output go to a terminal; let tensors that are "
                      "quantized already take more bits",
        .threaded = true,
        .description =
            "Rounds the matrices of a model to one of GGUF's grids, one tensor at a time: a model larger than memory "
            "passes through a pipe.\nTYPE is a file type of llama-quantize, and each matrix gets the type that it gets "
            "there: in q4_k_m q6_k for the output and for v and down of half of the layers, q4_k elsewhere. A row that "
            "is "
            "not a whole number of blocks of 256 falls back to a type with blocks of 32, as llama.cpp does; the "
            "program "
            "reports it, with the resulting bits per weight, and --strict refuses it.\nTypes below 3.4 bits need "
            "--stats. "
            "Tensors that are quantized already are rounded again, which is reported. They get no more bits than they "
            "have: a tensor that only a mixture would raise stays as it is, anything else is refused without "
            "--force.\nThe types are a plan: --dry-run prints it, --plan reads it. With --target-bpw or --target-size "
            "they are "
            "chosen: the error of each matrix in each type is measured, and the best plan within the size is found "
            "exactly.",
        .examples =
            "rill quantize --type q4_k_m model.rill -o model.q4.rill\n    the usual mixture\n"
            "rill quantize --type q8_0 < model.rill > model.q8.rill\n    nearly lossless, half of f16\n"
            "rill quantize --type q4_0 --tensor-type attn_v=q8_0 model.rill -o model.qv.rill\n    v in more bits\n"
            "rill quantize --type q4_k_m --method gptq --data tokens.rill model.rill -o model.gptq.rill\n    by error "
            "feedback\n"
            "rill quantize --type q3_k_m --method learned --data tokens.rill model.rill -o model.learned.rill\n    the "
            "same, "
            "and then learned\n"
            "rill quantize --type q4_0 --dry-run model.rill -o plan.txt\n    what would be done\n"
            "rill quantize --target-bpw 6 --stats model.stats.rill --fisher tokens.rill model.rill -o q.rill\n   "
            " the "
            "types that are expected to change the model least in 6 bits per weight\n"
            "rill quantize --target-bpw 6 --search 300 --data tokens.rill model.rill -o q.rill\n    those, and then "
            "moves of bits that the divergence from the original shows to be better\n",
        .options = options,
        .run = run,
    };
    for (struct cli_option *option = options; option->name; option++)
        if (strcmp(option->name, "type") == 0) option->suggests = quant_type_names();
    return cli_main(&program, argc, argv);
}

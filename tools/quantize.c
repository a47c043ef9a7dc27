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
     .help = "no mixture: all matrices get the main type of TYPE"},
    {.name = "tensor-type",
     .type = CLI_LIST,
     .to = &o.rules,
     .arg = "REGEX=TYPE",
     .needs = {"!plan"},
     .help = "type for the matrices whose names (Rill's or GGUF's) match the regular expression; the last match wins. "
             "With a target, the rest of the size is distributed over the other matrices"},
    {.name = "head-type",
     .type = CLI_STRING,
     .to = &o.head_type,
     .arg = "TYPE",
     .needs = {"!plan"},
     .help = "type for the output matrix (the embedding, if they are tied)"},
    {.name = "embed-type",
     .type = CLI_STRING,
     .to = &o.embed_type,
     .arg = "TYPE",
     .needs = {"!plan"},
     .help = "type for the embedding, if the output matrix is not tied to it"},
    {.name = "plan",
     .type = CLI_STRING,
     .to = &o.plan,
     .arg = "FILE",
     .completes_files = true,
     .help = "read the type of each matrix from this file, as printed by --dry-run"},
    {.name = "target-bpw",
     .type = CLI_F64,
     .to = &o.target_bpw,
     .arg = "BITS",
     .min = 0.01,
     .max = 32,
     .needs = {"!type", "!plan", "!target-size"},
     .help = "choose the type of each matrix so that the model has at most this many bits per weight, norms included, "
             "and the smallest error, as measured with --stats and, for good results, weighted by --fisher. Reads the "
             "model twice"},
    {.name = "target-size",
     .type = CLI_U64,
     .to = &o.target_size,
     .arg = "BYTES",
     .min = 1,
     .needs = {"!type", "!plan"},
     .help = "the same, with a limit in bytes for all tensors, without header and vocabulary; 90M is 90 times 1048576"},
    {.name = "types",
     .type = CLI_STRING,
     .to = &o.types,
     .arg = "LIST",
     .needs = {"target-bpw|target-size"},
     .help = "types that a target may choose from, such as q3_k,q4_k,q6_k; if not given: " QUANT_BUDGET_TYPES
             "; types that need "
             "importance are used only if --stats provides it"},
    {.name = "fisher",
     .type = CLI_STRING,
     .to = &o.fisher,
     .arg = "TOKENS",
     .completes_files = true,
     .needs = {"target-bpw|target-size"},
     .help =
         "weight the errors of different matrices by how much the model's own distribution over these tokens "
         "depends on them (Fisher information; takes a backward pass per sequence, with the model and its gradients "
         "in memory); if not given, the relative output errors of all matrices count alike"},
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
         "keep quantized tensors, and the errors that a target measures, in this folder (made if missing), named by "
         "digests of everything they depend on. A later run takes from it what has not changed: after an "
         "interruption, or with other types or another target. It may be deleted at any time"},
    {.name = "dry-run",
     .type = CLI_FLAG,
     .to = &o.dry_run,
     .needs = {"!method=hqq|search"},
     .help =
         "print the plan and stop: the type, size and reason for each matrix, as text for --plan, which you can edit"},
    {.name = "stats",
     .type = CLI_STRING,
     .to = &o.stats,
     .arg = "FILE",
     .completes_files = true,
     .needs = {"!method=hqq"},
     .help =
         "weight errors by input channel, with the statistics of rill calibrate or of llama-imatrix (a GGUF or .dat "
         "file). With those of calibrate --moments, gptq needs no --data; with these or those of --head-moments, gptq "
         "and learned with --data use error feedback for the head, too"},
    {.name = "clip",
     .type = CLI_FLAG,
     .to = &o.clip,
     .needs = {"stats", "!method=gptq", "!method=learned", "!dry-run|search"},
     .help =
         "clip the largest weights of a group where that lowers the error by --stats, as in AWQ, except for q and k"},
    {.name = "method",
     .type = CLI_CHOICE,
     .to = &o.method,
     .choices = "rtn|hqq|gptq|learned",
     .fallback = "rtn",
     .help = "rtn: round to nearest, with searched scales; hqq: half-quadratic steps that improve the mins (or the "
             "scales, in types without), no data needed; gptq: error feedback layer by layer with --data, or tensor by "
             "tensor with the second moments of --stats, then coordinate descent over codes and scales; learned: gptq, "
             "then codes and scales learned from gradients of "
             "the output error of attention and feed-forward parts"},
    {.name = "data",
     .type = CLI_STRING,
     .to = &o.data,
     .arg = "TOKENS",
     .completes_files = true,
     .needs = {"method=gptq|method=learned|search", "!dry-run|search"},
     .help = "data for calibration and for --search: tokens of text like that which the model will see; 128 sequences "
             "of 512 are a good start"},
    {.name = "max-tokens",
     .type = CLI_U64,
     .to = &o.max_tokens,
     .arg = "N",
     .fallback = "0",
     .needs = {"data", "method=gptq|method=learned", "!dry-run"},
     .help = "use whole sequences of --data, up to the one that reaches N tokens; 0: all"},
    {.name = "damp",
     .type = CLI_F64,
     .to = &o.damp,
     .arg = "SHARE",
     .fallback = "0.01",
     .max = 1,
     .needs = {"data|stats", "method=gptq|method=learned", "!dry-run"},
     .help = "damping: added to the diagonal of the second moments, as a share of its mean; increased tenfold, up to "
             "four times, if they cannot be factored"},
    {.name = "sweeps",
     .type = CLI_U64,
     .to = &o.sweeps,
     .arg = "N",
     .fallback = "4",
     .max = 1000,
     .needs = {"data|stats", "method=gptq|method=learned", "!dry-run"},
     .help =
         "at most this many passes of coordinate descent over codes and scales after error feedback; 0: plain GPTQ"},
    {.name = "passes",
     .type = CLI_U64,
     .to = &o.passes,
     .arg = "N",
     .fallback = "6",
     .min = 1,
     .max = 1000,
     .needs = {"method=learned", "data", "!dry-run"},
     .help = "optimization steps: the first takes a forward and a backward pass over the data, each other one over at "
             "least 8192 positions of it; one sequence in eight is held out, and the result that is best there is "
             "kept"},
    {.name = "symmetric",
     .type = CLI_FLAG,
     .to = &o.symmetric,
     .needs = {"data", "method=gptq|method=learned", "!dry-run"},
     .help = "fit the original matrix's outputs on the quantized model's inputs, as in GPTQ, in half the time; without "
             "it, fit its outputs on the original model's inputs"},
    {.name = "precision",
     .type = CLI_CHOICE,
     .to = &o.how.precision,
     .choices = "auto|bf16|f32",
     .fallback = "auto",
     .needs = {"data"},
     .help = "precision of the forward passes over --data; sums are always f32. " SESSION_AUTO_HELP "otherwise f32"},
    {.name = "strict",
     .type = CLI_FLAG,
     .to = &o.strict,
     .help = "fail if rows are not a whole number of blocks, instead of falling back to another type, or if a type "
             "needs --stats and there are none"},
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
            "Quantizes the matrices of a model to one of GGUF's types, one tensor at a time, so a model larger than "
            "memory can pass through a pipe.\n\nTYPE is a file type of llama-quantize, and each matrix gets the type "
            "that llama-quantize would give it: in q4_k_m, for instance, q6_k for the output matrix and for v and down "
            "in half of the layers, q4_k elsewhere. If a row is not a whole number of blocks of 256, the matrix falls "
            "back to a type with blocks of 32, as in llama.cpp; the program reports this with the resulting bits per "
            "weight, and --strict makes it an error.\n\niq2_*, q2_k_s and the like are too coarse to be useful without "
            "--stats: the program warns, and --strict makes it an error. A tensor that is already quantized is "
            "quantized again, which is reported. It cannot get more bits than it has: if only a mixture would raise "
            "it, it stays as it is; otherwise this is an error without --force.\n\nThe choice of types is a plan: "
            "--dry-run prints it and --plan reads it. With --target-bpw or --target-size the types are chosen "
            "automatically: the error of each matrix in each type is measured, and the best plan within that size is "
            "found exactly.",
        .examples =
            "rill quantize --type q4_k_m model.rill -o model.q4.rill\n"
            "    the usual mixture\n"
            "rill quantize --type q8_0 < model.rill > model.q8.rill\n"
            "    nearly lossless, half the size of f16\n"
            "rill quantize --type q4_0 --tensor-type attn_v=q8_0 model.rill -o model.qv.rill\n"
            "    with more bits for v\n"
            "rill quantize --type q4_k_m --method gptq --data tokens.rill model.rill -o model.gptq.rill\n"
            "    GPTQ, with calibration data\n"
            "rill quantize --type q4_k_m --method gptq --stats moments.stats.rill model.rill -o model.gptq.rill\n"
            "    GPTQ in one pass over the tensors, with statistics of calibrate --moments\n"
            "rill quantize --type q3_k_m --method learned --data tokens.rill model.rill -o model.learned.rill\n"
            "    GPTQ followed by learned rounding\n"
            "rill quantize --type q4_0 --dry-run model.rill -o plan.txt\n"
            "    print the plan\n"
            "rill quantize --target-bpw 6 --stats model.stats.rill --fisher tokens.rill model.rill -o q.rill\n"
            "    the best types within 6 bits per weight\n"
            "rill quantize --target-bpw 6 --search 300 --data tokens.rill model.rill -o q.rill\n"
            "    the best types, then a search by the measured divergence\n",
        .options = options,
        .run = run,
    };
    for (struct cli_option *option = options; option->name; option++)
        if (strcmp(option->name, "type") == 0) option->suggests = quant_type_names();
    return cli_main(&program, argc, argv);
}

/* rill distill: trains a student on a teacher's predictions. */
#include <string.h>

#include "lib/job/job.h"

static struct job_options o = {.teacher.role = "teacher"};
static double price;

static struct cli_option options[] = {
    SESSION_MODEL(o.student, "STUDENT", true, "the student to start from"),
    {.name = "loss", .type = CLI_LIST, .to = &o.losses, .arg = "LOSS"}, /* choices and help are set in main */
    {.name = "list-losses",
     .type = CLI_FLAG,
     .prints = loss_print_table,
     .help = "list all losses with their formulas, sources, keys, and the data they need"},
    {.name = "teacher",
     .type = CLI_STRING,
     .to = &o.teacher.model,
     .arg = "MODEL",
     .completes_files = true,
     .help = "online teacher: a model, quantized or not, that runs during training; the data may then be plain tokens, "
             "and every loss can use it"},
    {.name = "teacher-precision",
     .type = CLI_CHOICE,
     .to = &o.teacher.precision,
     .choices = "auto|int8|bf16|f32",
     .fallback = "auto",
     .needs = {"teacher"},
     .help = "precision of the teacher, as for teacher-infer --precision"},
    {.name = "teacher-weights",
     .type = CLI_CHOICE,
     .to = &o.teacher_weights,
     .choices = "resident|stream",
     .fallback = "resident",
     .needs = {"teacher"},
     .help = "stream: read the teacher layer by layer, holding one layer in memory; it is read once per step, or more "
             "often if the hidden states of the step do not fit in an eighth of free memory"},
    {.name = "exit",
     .type = CLI_STRING,
     .to = &o.exits,
     .arg = "LAYERS",
     .help =
         "N,N,...: train early exits, heads after that many layers that share the final norm and output matrix, for "
         "losses with at=exits or at=N; the saved model does not include them"},
    {.name = "lr",
     .type = CLI_F64,
     .to = &o.distill.plan.now.lr,
     .arg = "RATE",
     .fallback = "1e-4",
     .min = 0,
     .max = 10,
     .help = "peak learning rate"},
    {.name = "lr-min",
     .type = CLI_F64,
     .to = &o.distill.plan.now.lr_min,
     .arg = "RATE",
     .min = 0,
     .max = 10,
     .help = "learning rate at the last step (default: a tenth of --lr)"},
    {.name = "warmup",
     .type = CLI_U64,
     .to = &o.distill.plan.now.warmup,
     .arg = "STEPS",
     .help = "steps of linear warmup (default: a tenth of the steps, at most 100)"},
    {.name = "steps",
     .type = CLI_U64,
     .to = &o.distill.plan.now.steps,
     .arg = "N",
     .min = 1,
     .help = "number of optimizer steps (default: as many as the data allows; the data must then be a file)"},
    {.name = "schedule",
     .type = CLI_LIST,
     .to = &o.schedules,
     .arg = "SCHEDULE",
     .help = "learning rate after warmup: cosine (the default), linear, constant, or wsd[:decay=SHARE] "
             "(warmup-stable-decay), which falls as 1 - sqrt during the last SHARE of the steps (0.2). For "
             "earlier steps, UNTIL:[NAME:]steps=N,warmup=N,lr=RATE,lr-min=RATE: up to step UNTIL the rate is that of a "
             "run with "
             "these settings. If --resume changes the schedule, the earlier one is added to the provenance, so that a "
             "single command reproduces the model"},
    {.name = "epochs",
     .type = CLI_U64,
     .to = &o.epochs,
     .arg = "N",
     .fallback = "1",
     .min = 1,
     .max = 1e6,
     .help = "number of passes over the data; more than one needs a file"},
    {.name = "shuffle",
     .type = CLI_FLAG,
     .to = &o.shuffle,
     .help = "shuffle the sequences (or packs) of the data, differently in each epoch, by --seed. The data must be a "
             "file, but may be larger than memory: only 20 bytes per sequence are held"},
    {.name = "mix",
     .type = CLI_LIST,
     .to = &o.mix,
     .arg = "FILE",
     .completes_files = true,
     .help = "FILE[=WEIGHT]: mix in WEIGHT (default 1) positions of this file for each position of the data, sequence "
             "by sequence. A file that ends starts over; an epoch is one pass over the main data. All files must have "
             "the same vocabulary, predictions and fields"},
    {.name = "decay-data",
     .type = CLI_LIST,
     .to = &o.decay_data,
     .arg = "FILE",
     .completes_files = true,
     .needs = {"schedule"},
     .help =
         "FILE[=WEIGHT]: during the decay phase of --schedule wsd, use this file (several in proportion to their "
         "weights, default 1) instead of the data. Name a file from before the decay again to keep it; it continues "
         "where it was"},
    {.name = "batch-tokens",
     .type = CLI_U64,
     .to = &o.distill.batch_tokens,
     .arg = "N",
     .fallback = "8192",
     .min = 1,
     .help = "positions per optimizer step: whole sequences (or packs of tokenize --pack) are added until there are at "
             "least this many"},
    {.name = "micro-tokens",
     .type = CLI_U64,
     .to = &o.distill.micro_tokens,
     .arg = "N",
     .fallback = "1024",
     .min = 1,
     .help = "positions per forward and backward pass, at most (but at least one sequence); memory grows with it"},
    SESSION_TRAINING_PRECISION(o.student),
    {.name = "quantize",
     .type = CLI_STRING,
     .to = &o.quantize,
     .arg = "TYPE",
     .needs = {"!lora"},
     .help = "quantization-aware training: forward passes use each matrix as quantize --type TYPE stores it, gradients "
             "update f32 master weights (straight-through), and the output has the quantized blocks of the last step. "
             "--eval evaluates these too"},
    {.name = "quantize-plan",
     .type = CLI_STRING,
     .to = &o.quantize_plan,
     .arg = "FILE",
     .completes_files = true,
     .needs = {"!quantize", "!lora"},
     .help = "like --quantize, with the type of each matrix from this file, as printed by quantize --dry-run"},
    {.name = "tensor-type",
     .type = CLI_LIST,
     .to = &o.tensor_types,
     .arg = "REGEX=TYPE",
     .needs = {"quantize"},
     .help = "like quantize --tensor-type: another type for matrices whose names match"},
    {.name = "quantize-refit",
     .type = CLI_U64,
     .to = &o.distill.train.quantize.refit,
     .arg = "STEPS",
     .fallback = "0",
     .needs = {"quantize|quantize-plan"},
     .help = "steps between searches for the scales of blocks; in between, only codes follow the weights. 0: keep the "
             "scales of the first search, which was better wherever it was measured"},
    {.name = "recompute",
     .type = CLI_FLAG,
     .to = &o.distill.recompute,
     .transient = true,
     .help = "gradient checkpointing: keep only the inputs of layers and recompute their forward pass during backward; "
             "takes a third more time and much less memory. The result is the same to the bit"},
    {.name = "weight-decay",
     .type = CLI_F64,
     .to = &o.distill.train.weight_decay,
     .arg = "W",
     .fallback = "0.1",
     .min = 0,
     .max = 1,
     .help = "decoupled weight decay, for all matrices except the embedding"},
    {.name = "optimizer",
     .type = CLI_STRING,
     .to = &o.optimizer,
     .arg = "NAME",
     .fallback = "adamw",
     .help = "adamw, or muon[:momentum=B] (default 0.95): orthogonalized momentum for matrices inside layers and AdamW "
             "for the rest, with updates scaled like AdamW's so that the same --lr works for both"},
    {.name = "ema",
     .type = CLI_F64,
     .to = &o.distill.train.ema,
     .arg = "DECAY",
     .fallback = "0",
     .min = 0,
     .max = 0.9999999,
     .help =
         "write an exponential moving average of the weights instead of the final weights; early on the decay is (1 "
         "+ step) / (10 + step) while that is smaller. 0: the final weights"},
    {.name = "group",
     .type = CLI_LIST,
     .to = &o.groups,
     .arg = "GROUP",
     .help = "GLOB:lr=FACTOR,decay=W: for parameters with matching names (see rill ls), multiply the learning rate by "
             "FACTOR and set the weight decay to W; the first match wins. --log has the gradient norm "
             "of each group"},
    {.name = "freeze",
     .type = CLI_LIST,
     .to = &o.frozen,
     .arg = "GLOB",
     .help = "do not train parameters with matching names; they need no gradients or optimizer state"},
    {.name = "keep-mask",
     .type = CLI_FLAG,
     .to = &o.distill.train.keep_mask,
     .needs = {"!lora"},
     .help = "keep weights at 0 that are 0 in the student's matrices, to train a model that prune made sparse"},
    {.name = "lora",
     .type = CLI_STRING,
     .to = &o.lora,
     .arg = "RANK",
     .needs = {"!mup"},
     .help = "RANK[:alpha=A,target=GLOB]: train low-rank adapters for the matrices of layers (those with matching "
             "names) instead of the weights. Adapters are scaled by A / RANK (default A: RANK) and merged into the "
             "weights at the end; --group and --freeze know them as NAME.lora_a and NAME.lora_b"},
    {.name = "mup",
     .type = CLI_FLAG,
     .to = &o.distill.train.mup,
     .help =
         "muP: scale learning rate and weight decay of hidden matrices by their width relative to the base model of "
         "init --mup, so that a learning rate tuned on the base works for the student"},
    {.name = "clip",
     .type = CLI_F64,
     .to = &o.distill.clip,
     .arg = "NORM",
     .fallback = "1",
     .min = 0,
     .max = 1e9,
     .help = "clip the gradient to this norm; 0: no clipping"},
    {.name = "beta1",
     .type = CLI_F64,
     .to = &o.distill.train.beta1,
     .arg = "B",
     .fallback = "0.9",
     .min = 0,
     .max = 0.999999,
     .help = "first-moment decay of AdamW"},
    {.name = "beta2",
     .type = CLI_F64,
     .to = &o.distill.train.beta2,
     .arg = "B",
     .fallback = "0.95",
     .min = 0,
     .max = 0.999999,
     .help = "second-moment decay of AdamW"},
    {.name = "eps",
     .type = CLI_F64,
     .to = &o.distill.train.eps,
     .arg = "E",
     .fallback = "1e-8",
     .min = 1e-30,
     .max = 1,
     .help = "epsilon of AdamW"},
    {.name = "optimizer-state",
     .type = CLI_CHOICE,
     .to = &o.optimizer_state,
     .choices = "f32|bf16",
     .fallback = "f32",
     .help = "element type of the optimizer's moments; bf16, stochastically rounded, takes half the memory"},
    {.name = "eval",
     .type = CLI_STRING,
     .to = &o.eval,
     .arg = "FILE",
     .completes_files = true,
     .help = "a held-out stream, tokens or knowledge, to evaluate the student on as it would be saved (averaged, with "
             "--ema): eval_ce on the labels and, if the stream has a teacher's predictions or --teacher makes them, "
             "eval_kl, which is named and defined like kl in the log. The values appear in --log, --report and the "
             "progress line"},
    {.name = "eval-every",
     .type = CLI_U64,
     .to = &o.distill.eval.every,
     .arg = "STEPS",
     .fallback = "100",
     .min = 1,
     .needs = {"eval"},
     .help = "steps between evaluations; there is always one after the last step"},
    {.name = "keep-best",
     .type = CLI_FLAG,
     .to = &o.distill.train.keep_best,
     .needs = {"eval"},
     .help = "write the state with the best --eval-metric instead of the last one; its step is recorded in the "
             "provenance. Needs memory for another copy of the trained parameters"},
    {.name = "patience",
     .type = CLI_U64,
     .to = &o.distill.eval.patience,
     .arg = "K",
     .min = 1,
     .needs = {"eval", "!plan"},
     .help = "early stopping: stop after K evaluations in a row without improvement"},
    {.name = "min-delta",
     .type = CLI_F64,
     .to = &o.distill.eval.min_delta,
     .arg = "D",
     .fallback = "0",
     .min = 0,
     .max = 1e6,
     .needs = {"patience"},
     .help = "how much the metric must fall to count as an improvement for --patience"},
    {.name = "eval-metric",
     .type = CLI_CHOICE,
     .to = &o.distill.eval.metric,
     .choices = "kl|ce",
     .needs = {"keep-best|patience", "!plan"},
     .help = "metric for --keep-best and --patience (default: kl if the held-out stream or --teacher has predictions, "
             "else ce)"},
    {.name = "log",
     .type = CLI_STRING,
     .to = &o.log,
     .arg = "FILE",
     .completes_files = true,
     .writes = CLI_APPENDS,
     .transient = true,
     .needs = {"!plan"},
     .help = "write a line for each step: step, kl (named after the encoding), ce, lr, gradient norm, tokens, the "
             "gradient noise scale (the batch size, in labelled positions, at which noise and gradient are equally "
             "large; known only for steps of several passes, otherwise nan), gradient norms of each --group, and the "
             "--eval values (nan where there was no evaluation). --resume continues after the checkpoint's line and "
             "drops any later lines"},
    {.name = "checkpoint",
     .type = CLI_STRING,
     .to = &o.checkpoint,
     .arg = "FILE",
     .completes_files = true,
     .writes = CLI_REPLACES,
     .continues = "resume",
     .transient = true,
     .needs = {"!plan"},
     .help = "save the state of the run to FILE every --checkpoint-every steps, at the end, on SIGUSR1, and on SIGINT "
             "or SIGTERM, which then end the program"},
    {.name = "checkpoint-every",
     .type = CLI_U64,
     .to = &o.checkpoint_every,
     .arg = "STEPS",
     .fallback = "100",
     .min = 1,
     .needs = {"checkpoint"},
     .transient = true,
     .help = "steps between checkpoints"},
    {.name = "resume",
     .type = CLI_STRING,
     .to = &o.resume,
     .arg = "FILE",
     .completes_files = true,
     .transient = true,
     .help = "continue from a checkpoint with the same student, data and options; the result is the same to the bit as "
             "without the interruption. --steps, --epochs, --warmup, --lr and --lr-min may differ: the learning rate "
             "then continues as in a run with the new values"},
    {.name = "start-state",
     .type = CLI_STRING,
     .to = &o.start_state,
     .arg = "FILE",
     .completes_files = true,
     .help = "start with the optimizer moments of a checkpoint from another run, with other data or other initial "
             "weights"},
    {.name = "plan",
     .type = CLI_FLAG,
     .to = &o.plan_only,
     .help = "do not train, but print a line of JSON with the time, memory and bytes the run will need, estimated from "
             "one measured step"},
    {.name = "price",
     .type = CLI_F64,
     .to = &price,
     .arg = "PER_HOUR",
     .min = 0,
     .max = 1e6,
     .needs = {"report|plan"},
     .transient = true,
     .help = "cost of the machine per hour: --report and --plan then give the cost of the run and of a million tokens, "
             "--report also the cost per unit by which the loss kl fell from the first step to the last"},
    {0},
};

/* Measures the machine's peak only if there is a report. */
static int report(struct cli *c, const struct job *j, const struct distill_run *done, struct err *e) {
    cJSON *to = cli_report(c);
    const struct trainer *t = job_trainer(j);
    if (cli_given(c, "report") && distill_put_speed(to, t, done, price, e)) return e->code;
    return distill_put_run(to, t, done) && distill_put_settings(cli_settings(c), t) ? 0 : err_nomem(e, "report");
}

static int train(struct cli *c, struct job *j, struct err *e) {
    struct stream_writer *writer;
    struct distill_run done;
    if (cli_open_output(c, &writer, e) || job_train(j, &done, e) || report(c, j, &done, e) || job_write(j, writer, e))
        return e->code;
    return cli_close_output(c, e);
}

/* --plan: prints a line of JSON instead of writing a model. */
static int predict(struct cli *c, struct job *j, struct err *e) {
    struct distill_forecast f;
    FILE *out;
    if (cli_text(c, &out, e) || job_predict(j, &f, e)) return e->code;
    cJSON *line = cJSON_CreateObject();
    bool ok = line && distill_put_forecast(line, &f, price);
    int rc = ok ? cli_result(c, line, e) : err_nomem(e, "plan");
    cJSON_Delete(line);
    return rc;
}

static int run(struct cli *c, struct err *e) {
    struct job *j;
    if (job_open(&j, c, &o, e)) return e->code;
    int rc = o.plan_only ? predict(c, j, e) : train(c, j, e);
    job_free(j);
    return rc;
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "distill",
        .summary = "train a student on a teacher's predictions",
        .operands = "[KNOWLEDGE]",
        .max_operands = 1,
        .reads_stdin = true,
        .writes_stream = true,
        .stream_needs = "!plan",
        .writes_text = true,
        .threaded = true,
        .seeded = true,
        .seed_needs = {"shuffle"},
        .description =
            "Trains the student on a knowledge stream (or on plain tokens) and writes the result. Optimizer AdamW or "
            "Muon, linear warmup, a learning rate schedule, gradient clipping by norm. The result depends on the "
            "sequences of the data and on the options, not on how the stream is split into batches, nor on -j.\n\n"
            "Losses are means over the positions that have a next token; if the data has a mask (tokenize --chat), "
            "only where that next token is marked, so a chat model learns the answers but not the questions. Student "
            "and knowledge must have the same vocabulary. Knowledge encoded by logit-dump can be used only at the "
            "temperature it was encoded with. If a loss becomes NaN, the program stops and writes nothing.\n\nIn log "
            "and report, the name of the loss kl depends on the encoding: kl from dense knowledge; kl_lower_bound from "
            "ghost, where all other tokens count as one; kl_truncated from topk, over its entries only; teacher_ce "
            "from samples: -sum p ln q of teacher p and student q, which is kl plus the teacher's entropy. ce, the "
            "cross-entropy of the labels, is the same for all.\n\nA resumed run may be given more steps or another "
            "learning rate. Each step then uses the rate that a run with the new settings would have at that step; "
            "there is no second warmup. For example, after 30 of 30 steps, at the end of a cosine, a run resumed with "
            "--steps 60 goes back up to the middle of the longer cosine. The recorded command expresses this with "
            "--schedule and needs no checkpoint.",
        .examples =
            "rill distill -m student.rill < corpus.kd.rill > trained.rill\n"
            "    one pass over the knowledge\n"
            "rill distill -m student.rill --loss kl --loss ce:weight=0.1 corpus.kd.rill -o trained.rill\n"
            "    with a little cross-entropy of the labels\n"
            "rill distill -m student.rill --epochs 3 --checkpoint run.rill < corpus.kd.rill > trained.rill\n"
            "    with a checkpoint every 100 steps\n"
            "rill distill -m student.rill --batch-tokens 64 --epochs 2 --resume run.ck corpus.kd.rill > b.rill\n"
            "    a second epoch after the first, from the checkpoint run.ck\n"
            "rill distill -m student.rill --lora 4:target=*.attn.* --ema 0.99 corpus.kd.rill -o adapted.rill\n"
            "    low-rank adapters for attention, averaged over the steps\n"
            "rill distill -m student.rill --quantize q4_0 corpus.kd.rill -o aware.rill\n"
            "    quantization-aware training, written as q4_0\n"
            "rill distill -m student.rill --eval dense.kd.rill --keep-best --patience 3 corpus.kd.rill > b.rill\n"
            "    until held-out divergence has not improved in three evaluations; writes the best state\n"
            "rill distill -m student.rill --shuffle --mix b.kd.rill=0.5 corpus.kd.rill -o mixed.rill\n"
            "    shuffled, with a third of the data from another file\n"
            "rill distill -m student.rill --schedule wsd --decay-data b.kd.rill corpus.kd.rill -o annealed.rill\n"
            "    the last fifth of the steps on other data\n"
            "rill distill -m student.rill --epochs 3 --plan --price 1.2 corpus.kd.rill\n"
            "    time and cost of three epochs\n",
        .options = options,
        .run = run,
    };
    for (struct cli_option *option = options; option->name; option++) {
        if (strcmp(option->name, "loss") != 0) continue;
        option->choices = loss_names();
        option->help = loss_help();
    }
    return cli_main(&program, argc, argv);
}

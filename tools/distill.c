/* rill distill: trains a student on what a teacher says. */
#include <string.h>

#include "lib/job/job.h"

static struct job_options o = {.teacher.role = "teacher"};
static double price;

static struct cli_option options[] = {
    SESSION_MODEL(o.student, "STUDENT", true, "the student to begin with, a model stream"),
    {.name = "loss", .type = CLI_LIST, .to = &o.losses, .arg = "LOSS"}, /* choices and help: the table's, see main */
    {.name = "list-losses",
     .type = CLI_FLAG,
     .prints = loss_print_table,
     .help = "show every loss: its formula, where it comes from, its keys, and what the data must have"},
    {.name = "teacher",
     .type = CLI_STRING,
     .to = &o.teacher.model,
     .arg = "MODEL",
     .completes_files = true,
     .help = "a teacher that runs beside the student, a model stream, quantized or not: the data may then be plain "
             "tokens, and "
             "any loss may ask it"},
    {.name = "teacher-precision",
     .type = CLI_CHOICE,
     .to = &o.teacher.precision,
     .choices = "auto|int8|bf16|f32",
     .fallback = "auto",
     .needs = {"teacher"},
     .help = "of the teacher's activations and products, as teacher-infer --precision"},
    {.name = "teacher-weights",
     .type = CLI_CHOICE,
     .to = &o.teacher_weights,
     .choices = "resident|stream",
     .fallback = "resident",
     .needs = {"teacher"},
     .help = "stream: the teacher is read layer by layer, once for each step, or for as much of it as has its hidden "
             "states in an eighth of the free memory, which else holds one layer"},
    {.name = "exit",
     .type = CLI_STRING,
     .to = &o.exits,
     .arg = "LAYERS",
     .help = "N,N,...: further heads after that many layers, with the norm and weights of the last one, for losses "
             "with at=exits or "
             "at=N; the saved model is as without them"},
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
     .help = "learning rate of the last step (default: a tenth of --lr)"},
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
     .help = "optimizer steps of the schedule; then it stops (default: as many as the data has, which must be a file "
             "then)"},
    {.name = "schedule",
     .type = CLI_LIST,
     .to = &o.schedules,
     .arg = "SCHEDULE",
     .help =
         "what follows the warmup: cosine (the default), linear, constant, or wsd[:decay=SHARE], which falls as "
         "1 - sqrt in the last SHARE of the steps (0.2). May be repeated with UNTIL:[NAME:]steps=N,warmup=N,lr=RATE,"
         "lr-min=RATE: up to step UNTIL the learning rate is that of a run with these numbers, in order. --resume "
         "with another schedule adds the one before to the provenance, so that one command makes the same model "
         "from the beginning"},
    {.name = "epochs",
     .type = CLI_U64,
     .to = &o.epochs,
     .arg = "N",
     .fallback = "1",
     .min = 1,
     .max = 1e6,
     .help = "times the data is read; more than once only from a file"},
    {.name = "shuffle",
     .type = CLI_FLAG,
     .to = &o.shuffle,
     .help = "take the data's sequences (its packs, if it has any) in a random order, another one in each epoch, by "
             "--seed. The data must be a file, which may be larger than memory: 20 bytes a sequence are"},
    {.name = "mix",
     .type = CLI_LIST,
     .to = &o.mix,
     .arg = "FILE",
     .completes_files = true,
     .help = "FILE[=WEIGHT]: take WEIGHT (1) positions of this file for each one of the data, sequence by sequence in "
             "that proportion; may be repeated. A file that ends begins anew, and an epoch is one of the data. All "
             "hold the same: vocabulary, response and fields"},
    {.name = "decay-data",
     .type = CLI_LIST,
     .to = &o.decay_data,
     .arg = "FILE",
     .completes_files = true,
     .needs = {"schedule"},
     .help =
         "FILE[=WEIGHT]: in the decay of the schedule wsd take the data from this file, or these, in proportion to "
         "their weights (1), instead; may be repeated. A file of before that is to stay is named again, and goes on "
         "where it was"},
    {.name = "batch-tokens",
     .type = CLI_U64,
     .to = &o.distill.batch_tokens,
     .arg = "N",
     .fallback = "8192",
     .min = 1,
     .help =
         "positions in an optimizer step: whole sequences (whole packs, of tokenize --pack), until there are at least "
         "as many"},
    {.name = "micro-tokens",
     .type = CLI_U64,
     .to = &o.distill.micro_tokens,
     .arg = "N",
     .fallback = "1024",
     .min = 1,
     .help = "positions in one forward and backward pass, at most (but one sequence); memory grows with it"},
    SESSION_TRAINING_PRECISION(o.student),
    {.name = "quantize",
     .type = CLI_STRING,
     .to = &o.quantize,
     .arg = "TYPE",
     .needs = {"!lora"},
     .help = "train the student for being quantized: its forward passes read each matrix as quantize --type TYPE "
             "stores it, gradients move f32 masters behind it (straight-through), and what is written are the blocks "
             "of the last step. --eval judges these, too"},
    {.name = "quantize-plan",
     .type = CLI_STRING,
     .to = &o.quantize_plan,
     .arg = "FILE",
     .completes_files = true,
     .needs = {"!quantize", "!lora"},
     .help = "the same with the type of each matrix from this file, as quantize --dry-run prints it"},
    {.name = "tensor-type",
     .type = CLI_LIST,
     .to = &o.tensor_types,
     .arg = "REGEX=TYPE",
     .needs = {"quantize"},
     .help = "as quantize --tensor-type: another type for the matrices whose name matches"},
    {.name = "quantize-refit",
     .type = CLI_U64,
     .to = &o.distill.train.quantize.refit,
     .arg = "STEPS",
     .fallback = "0",
     .needs = {"quantize|quantize-plan"},
     .help =
         "steps between two searches for the scales of blocks, between which codes alone follow the weights; 0: the "
         "scales of the first search hold, which was better wherever it was measured"},
    {.name = "recompute",
     .type = CLI_FLAG,
     .to = &o.distill.recompute,
     .transient = true,
     .help = "keep only the inputs of layers and run their forward pass again in backward: a third more time for a "
             "fraction of the memory; the result is the same to the bit"},
    {.name = "weight-decay",
     .type = CLI_F64,
     .to = &o.distill.train.weight_decay,
     .arg = "W",
     .fallback = "0.1",
     .min = 0,
     .max = 1,
     .help = "decoupled, on matrices but for the embedding"},
    {.name = "optimizer",
     .type = CLI_STRING,
     .to = &o.optimizer,
     .arg = "NAME",
     .fallback = "adamw",
     .help = "adamw, or muon[:momentum=B] (0.95): momentum made orthogonal for matrices inside layers, AdamW for the "
             "rest; its steps have the size of AdamW's, so that one --lr serves both"},
    {.name = "ema",
     .type = CLI_F64,
     .to = &o.distill.train.ema,
     .arg = "DECAY",
     .fallback = "0",
     .min = 0,
     .max = 0.9999999,
     .help = "write the exponential average of the weights over the steps instead of the last ones; its decay is "
             "(1 + step) / (10 + step) while that is less. 0: the last weights"},
    {.name = "group",
     .type = CLI_LIST,
     .to = &o.groups,
     .arg = "GROUP",
     .help = "GLOB:lr=FACTOR,decay=W: parameters of these names (rill ls) learn at FACTOR times the rate, with weight "
             "decay W whatever they are; may be repeated, the first that fits holds. --log has the gradient's norm of "
             "each group"},
    {.name = "freeze",
     .type = CLI_LIST,
     .to = &o.frozen,
     .arg = "GLOB",
     .help = "leave parameters of these names as they are; they take no gradients and no optimizer state. May be "
             "repeated"},
    {.name = "keep-mask",
     .type = CLI_FLAG,
     .to = &o.distill.train.keep_mask,
     .needs = {"!lora"},
     .help = "weights that are 0 in the student's matrices stay 0: a model that prune made sparse is trained as it is"},
    {.name = "lora",
     .type = CLI_STRING,
     .to = &o.lora,
     .arg = "RANK",
     .needs = {"!mup"},
     .help = "RANK[:alpha=A,target=GLOB]: train low-rank adapters of the matrices of layers alone (of these names), "
             "which count A / RANK times (A is RANK) and are added to the weights in the end; --group and --freeze "
             "name them NAME.lora_a and NAME.lora_b"},
    {.name = "mup",
     .type = CLI_FLAG,
     .to = &o.distill.train.mup,
     .help = "rates and decay of hidden matrices by how much wider they are than those of the base that init --mup "
             "named: a rate that is right for the base is right for the student"},
    {.name = "clip",
     .type = CLI_F64,
     .to = &o.distill.clip,
     .arg = "NORM",
     .fallback = "1",
     .min = 0,
     .max = 1e9,
     .help = "largest norm of the gradient; 0: any"},
    {.name = "beta1",
     .type = CLI_F64,
     .to = &o.distill.train.beta1,
     .arg = "B",
     .fallback = "0.9",
     .min = 0,
     .max = 0.999999,
     .help = "of AdamW"},
    {.name = "beta2",
     .type = CLI_F64,
     .to = &o.distill.train.beta2,
     .arg = "B",
     .fallback = "0.95",
     .min = 0,
     .max = 0.999999,
     .help = "of AdamW"},
    {.name = "eps",
     .type = CLI_F64,
     .to = &o.distill.train.eps,
     .arg = "E",
     .fallback = "1e-8",
     .min = 1e-30,
     .max = 1,
     .help = "of AdamW"},
    {.name = "optimizer-state",
     .type = CLI_CHOICE,
     .to = &o.optimizer_state,
     .choices = "f32|bf16",
     .fallback = "f32",
     .help = "of the optimizer's moments; bf16, rounded up or down at random, takes half their memory"},
    {.name = "eval",
     .type = CLI_STRING,
     .to = &o.eval,
     .arg = "FILE",
     .completes_files = true,
     .help = "a held-out stream, tokens or knowledge, on which the student is evaluated as it would be saved (with its "
             "averages, if --ema): eval_ce of its labels and, where it holds a teacher's answers or --teacher gives "
             "them, eval_kl, named and meant as kl in the log. Values go into --log, --report and the progress line"},
    {.name = "eval-every",
     .type = CLI_U64,
     .to = &o.distill.eval.every,
     .arg = "STEPS",
     .fallback = "100",
     .min = 1,
     .needs = {"eval"},
     .help = "steps between two evaluations; there is one after the last step, too"},
    {.name = "keep-best",
     .type = CLI_FLAG,
     .to = &o.distill.train.keep_best,
     .needs = {"eval"},
     .help = "write the state with the smallest --eval-metric instead of the last one; the provenance has its step. "
             "Takes memory for one more copy of what is trained"},
    {.name = "patience",
     .type = CLI_U64,
     .to = &o.distill.eval.patience,
     .arg = "K",
     .min = 1,
     .needs = {"eval", "!plan"},
     .help = "stop early: after K evaluations in a row that are no improvement"},
    {.name = "min-delta",
     .type = CLI_F64,
     .to = &o.distill.eval.min_delta,
     .arg = "D",
     .fallback = "0",
     .min = 0,
     .max = 1e6,
     .needs = {"patience"},
     .help = "by how much the metric must fall to be an improvement for --patience"},
    {.name = "eval-metric",
     .type = CLI_CHOICE,
     .to = &o.distill.eval.metric,
     .choices = "kl|ce",
     .needs = {"keep-best|patience", "!plan"},
     .help = "what --keep-best and --patience go by (default: kl where the held-out stream or --teacher has answers, "
             "else ce)"},
    {.name = "log",
     .type = CLI_STRING,
     .to = &o.log,
     .arg = "FILE",
     .completes_files = true,
     .writes = CLI_APPENDS,
     .transient = true,
     .needs = {"!plan"},
     .help =
         "a line for each step: step, the loss kl under the name that the encoding gives it, ce, lr, gradient norm, "
         "tokens, the gradient noise scale (labelled positions in a batch at which noise and gradient weigh the same, "
         "from steps of several passes; nan: not known), norms of each --group, and values of --eval (nan: not "
         "evaluated after this step); --resume goes on after the checkpoint's line, and what came after it is cut "
         "off"},
    {.name = "checkpoint",
     .type = CLI_STRING,
     .to = &o.checkpoint,
     .arg = "FILE",
     .completes_files = true,
     .writes = CLI_REPLACES,
     .continues = "resume",
     .transient = true,
     .needs = {"!plan"},
     .help = "keep the state of the run here: every --checkpoint-every steps, at the end, on SIGUSR1, and on SIGINT or "
             "SIGTERM, which end the program then"},
    {.name = "checkpoint-every",
     .type = CLI_U64,
     .to = &o.checkpoint_every,
     .arg = "STEPS",
     .fallback = "100",
     .min = 1,
     .needs = {"checkpoint"},
     .transient = true,
     .help = "steps between two checkpoints"},
    {.name = "resume",
     .type = CLI_STRING,
     .to = &o.resume,
     .arg = "FILE",
     .completes_files = true,
     .transient = true,
     .help = "go on from a checkpoint, with the same student, data and options: the result is the same to the bit. "
             "--steps, --epochs, --warmup, --lr and --lr-min may be others: from the next step on the learning rate is "
             "that which a run with these has at that step"},
    {.name = "start-state",
     .type = CLI_STRING,
     .to = &o.start_state,
     .arg = "FILE",
     .completes_files = true,
     .help = "begin with the optimizer's moments from this checkpoint of another run, of other data or from other "
             "weights"},
    {.name = "plan",
     .type = CLI_FLAG,
     .to = &o.plan_only,
     .help = "train nothing and print a line of JSON: seconds, memory and bytes that the run will take, from one pass "
             "and one update that are measured, and tokens a second"},
    {.name = "price",
     .type = CLI_F64,
     .to = &price,
     .arg = "PER_HOUR",
     .min = 0,
     .max = 1e6,
     .needs = {"report|plan"},
     .transient = true,
     .help =
         "what the machine costs an hour: --report and --plan then state the cost of the run and of a million tokens, "
         "--report also that of a unit of the loss kl, by how much it fell from the first step to the last"},
    {0},
};

/* The machine's speed is asked for only when there is a report. */
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

/* --plan: a line of JSON instead of a model. */
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
        .summary = "train a student on what a teacher says",
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
            "Trains the student on a knowledge stream (or on plain tokens) and writes it: AdamW or Muon, linear "
            "warmup, a schedule, clipping by the gradient's norm. The result depends on the data's sequences and the "
            "options, not on how the stream is cut into batches, nor on -j.\n\n"
            "Losses are means over the positions that have a next token and, where the data has a mask (tokenize "
            "--chat), "
            "before a token that is in it: a chat model learns its answers, not the questions. Student and knowledge "
            "must name the same "
            "vocabulary, and knowledge that logit-dump has encoded serves its own temperature only. A loss that is no "
            "longer a number ends the program; nothing is written then.\n\n"
            "Log and report name the value of the loss kl by what it is of: kl, from dense knowledge; kl_lower_bound, "
            "from ghost, which takes all other tokens as one; kl_truncated, from topk, of the entries alone; "
            "teacher_ce, "
            "from draws, -sum p ln q of teacher p and student q, which is kl plus the teacher's entropy. ce, of the "
            "labels, is the same for all.\n\n"
            "A run that is resumed may be made longer, or get another learning rate. Each step then has the rate that "
            "a "
            "run with the new numbers has at that step: there is no second warmup, and after 30 steps of 30, at the "
            "end "
            "of its cosine, a run that is resumed with --steps 60 rises to the middle of the longer one. The recorded "
            "command says so with --schedule and needs no checkpoint.",
        .examples =
            "rill distill -m student.rill < corpus.kd.rill > trained.rill\n"
            "    one pass over the knowledge\n"
            "rill distill -m student.rill --loss kl --loss ce:weight=0.1 corpus.kd.rill -o trained.rill\n"
            "    with a little cross-entropy on the tokens themselves\n"
            "rill distill -m student.rill --epochs 3 --checkpoint run.rill < corpus.kd.rill > trained.rill\n"
            "    a state to resume from every 100 steps\n"
            "rill distill -m student.rill --batch-tokens 64 --epochs 2 --resume run.ck corpus.kd.rill > b.rill\n"
            "    a second epoch after the first, of which run.ck is the state\n"
            "rill distill -m student.rill --lora 4:target=*.attn.* --ema 0.99 corpus.kd.rill -o adapted.rill\n"
            "    adapters of the attention's matrices, averaged over the steps\n"
            "rill distill -m student.rill --quantize q4_0 corpus.kd.rill -o aware.rill\n"
            "    trained for being q4_0, and written so\n"
            "rill distill -m student.rill --eval dense.kd.rill --keep-best --patience 3 corpus.kd.rill > b.rill\n"
            "    until the held-out divergence has not fallen in three evaluations; the best state is written\n"
            "rill distill -m student.rill --shuffle --mix b.kd.rill=0.5 corpus.kd.rill -o mixed.rill\n"
            "    in random order, a third of it from another file\n"
            "rill distill -m student.rill --schedule wsd --decay-data b.kd.rill corpus.kd.rill -o annealed.rill\n"
            "    the last fifth of the steps on other data\n"
            "rill distill -m student.rill --epochs 3 --plan --price 1.2 corpus.kd.rill\n"
            "    what three epochs would take and cost\n",
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

/* rill distill: trains a student on what a teacher says. */
#include <string.h>

#include "lib/distill/distill.h"
#include "lib/session/session.h"

static struct session_options how, teacher_how = {.role = "teacher"};
static const char *teacher_weights, *exits;
static const char *optimizer, *optimizer_state, *log_path, *checkpoint_path, *resume_path, *start_path, *lora;
static struct cli_list losses, schedules, group_texts, frozen;
static struct train_group groups[TRAIN_MAX_GROUPS];
static const char *now_named; /* the one of --schedule that has no UNTIL; NULL: none */
static uint64_t epochs, checkpoint_every;
static double price;
static bool plan_only;
static struct distill_options o;
static struct train_schedule *const schedule = &o.plan.now;

static struct cli_option options[] = {
    SESSION_MODEL(how, "STUDENT", true, "the student to begin with, a model stream"),
    {.name = "loss", .type = CLI_LIST, .to = &losses, .arg = "LOSS"}, /* choices and help: the table's, see main */
    {.name = "list-losses",
     .type = CLI_FLAG,
     .prints = loss_print_table,
     .help = "show every loss: its formula, where it comes from, its keys, and what the data must have"},
    {.name = "teacher",
     .type = CLI_STRING,
     .to = &teacher_how.model,
     .arg = "MODEL",
     .completes_files = true,
     .help = "a teacher that runs beside the student, a model stream, quantized or not: the data may then be plain "
             "tokens, and "
             "any loss may ask it"},
    {.name = "teacher-precision",
     .type = CLI_CHOICE,
     .to = &teacher_how.precision,
     .choices = "auto|int8|bf16|f32",
     .fallback = "auto",
     .needs = {"teacher"},
     .help = "of the teacher's activations and products, as teacher-infer --precision"},
    {.name = "teacher-weights",
     .type = CLI_CHOICE,
     .to = &teacher_weights,
     .choices = "resident|stream",
     .fallback = "resident",
     .needs = {"teacher"},
     .help = "stream: the teacher is read layer by layer for each --micro-tokens positions, and memory holds one "
             "layer; for losses on "
             "logits"},
    {.name = "exit",
     .type = CLI_STRING,
     .to = &exits,
     .arg = "LAYERS",
     .help = "N,N,...: further heads after that many layers, with the norm and weights of the last one, for losses "
             "with at=exits or "
             "at=N; the saved model is as without them"},
    {.name = "lr",
     .type = CLI_F64,
     .to = &o.plan.now.lr,
     .arg = "RATE",
     .fallback = "1e-4",
     .min = 0,
     .max = 10,
     .help = "peak learning rate"},
    {.name = "lr-min",
     .type = CLI_F64,
     .to = &o.plan.now.lr_min,
     .arg = "RATE",
     .min = 0,
     .max = 10,
     .help = "learning rate of the last step (default: a tenth of --lr)"},
    {.name = "warmup",
     .type = CLI_U64,
     .to = &o.plan.now.warmup,
     .arg = "STEPS",
     .help = "steps of linear warmup (default: a tenth of the steps, at most 100)"},
    {.name = "steps",
     .type = CLI_U64,
     .to = &o.plan.now.steps,
     .arg = "N",
     .min = 1,
     .help = "optimizer steps of the schedule; then it stops (default: as many as the data has, which must be a file "
             "then)"},
    {.name = "schedule",
     .type = CLI_LIST,
     .to = &schedules,
     .arg = "SCHEDULE",
     .help =
         "what follows the warmup: cosine (the default), linear, constant, or wsd[:decay=SHARE], which falls as "
         "1 - sqrt in the last SHARE of the steps (0.2). May be repeated with UNTIL:[NAME:]steps=N,warmup=N,lr=RATE,"
         "lr-min=RATE: up to step UNTIL the learning rate is that of a run with these numbers, in order. --resume "
         "with another schedule adds the one before to the provenance, so that one command makes the same model "
         "from the beginning"},
    {.name = "epochs",
     .type = CLI_U64,
     .to = &epochs,
     .arg = "N",
     .fallback = "1",
     .min = 1,
     .max = 1e6,
     .help = "times the data is read; more than once only from a file"},
    {.name = "batch-tokens",
     .type = CLI_U64,
     .to = &o.batch_tokens,
     .arg = "N",
     .fallback = "8192",
     .min = 1,
     .help = "positions in an optimizer step: whole sequences, until there are at least as many"},
    {.name = "micro-tokens",
     .type = CLI_U64,
     .to = &o.micro_tokens,
     .arg = "N",
     .fallback = "1024",
     .min = 1,
     .help = "positions in one forward and backward pass, at most (but one sequence); memory grows with it"},
    SESSION_TRAINING_PRECISION(how),
    {.name = "recompute",
     .type = CLI_FLAG,
     .to = &o.recompute,
     .transient = true,
     .help = "keep only the inputs of layers and run their forward pass again in backward: a third more time for a "
             "fraction of the memory; the result is the same to the bit"},
    {.name = "weight-decay",
     .type = CLI_F64,
     .to = &o.train.weight_decay,
     .arg = "W",
     .fallback = "0.1",
     .min = 0,
     .max = 1,
     .help = "decoupled, on matrices but for the embedding"},
    {.name = "optimizer",
     .type = CLI_STRING,
     .to = &optimizer,
     .arg = "NAME",
     .fallback = "adamw",
     .help = "adamw, or muon[:momentum=B] (0.95): momentum made orthogonal for matrices inside layers, AdamW for the "
             "rest; its steps have the size of AdamW's, so that one --lr serves both"},
    {.name = "ema",
     .type = CLI_F64,
     .to = &o.train.ema,
     .arg = "DECAY",
     .fallback = "0",
     .min = 0,
     .max = 0.9999999,
     .help = "write the exponential average of the weights over the steps instead of the last ones; its decay is "
             "(1 + step) / (10 + step) while that is less. 0: the last weights"},
    {.name = "group",
     .type = CLI_LIST,
     .to = &group_texts,
     .arg = "GROUP",
     .help = "GLOB:lr=FACTOR,decay=W: parameters of these names (rill ls) learn at FACTOR times the rate, with weight "
             "decay W whatever they are; may be repeated, the first that fits holds. --log has the gradient's norm of "
             "each group"},
    {.name = "freeze",
     .type = CLI_LIST,
     .to = &frozen,
     .arg = "GLOB",
     .help = "leave parameters of these names as they are; they take no gradients and no optimizer state. May be "
             "repeated"},
    {.name = "lora",
     .type = CLI_STRING,
     .to = &lora,
     .arg = "RANK",
     .needs = {"!mup"},
     .help = "RANK[:alpha=A,target=GLOB]: train low-rank adapters of the matrices of layers alone (of these names), "
             "which count A / RANK times (A is RANK) and are added to the weights in the end; --group and --freeze "
             "name them NAME.lora_a and NAME.lora_b"},
    {.name = "mup",
     .type = CLI_FLAG,
     .to = &o.train.mup,
     .help = "rates and decay of hidden matrices by how much wider they are than those of the base that init --mup "
             "named: a rate that is right for the base is right for the student"},
    {.name = "clip",
     .type = CLI_F64,
     .to = &o.clip,
     .arg = "NORM",
     .fallback = "1",
     .min = 0,
     .max = 1e9,
     .help = "largest norm of the gradient; 0: any"},
    {.name = "beta1",
     .type = CLI_F64,
     .to = &o.train.beta1,
     .arg = "B",
     .fallback = "0.9",
     .min = 0,
     .max = 0.999999,
     .help = "of AdamW"},
    {.name = "beta2",
     .type = CLI_F64,
     .to = &o.train.beta2,
     .arg = "B",
     .fallback = "0.95",
     .min = 0,
     .max = 0.999999,
     .help = "of AdamW"},
    {.name = "eps",
     .type = CLI_F64,
     .to = &o.train.eps,
     .arg = "E",
     .fallback = "1e-8",
     .min = 1e-30,
     .max = 1,
     .help = "of AdamW"},
    {.name = "optimizer-state",
     .type = CLI_CHOICE,
     .to = &optimizer_state,
     .choices = "f32|bf16",
     .fallback = "f32",
     .help = "of the optimizer's moments; bf16, rounded up or down at random, takes half their memory"},
    {.name = "log",
     .type = CLI_STRING,
     .to = &log_path,
     .arg = "FILE",
     .completes_files = true,
     .writes = CLI_APPENDS,
     .transient = true,
     .needs = {"!plan"},
     .help =
         "a line for each step: step, the loss kl under the name that the encoding gives it, ce, lr, gradient norm, "
         "tokens, the gradient noise scale (labelled positions in a batch at which noise and gradient weigh the same, "
         "from steps of several passes; nan: not known), and norms of each --group; --resume goes on after the "
         "checkpoint's line, and what came after it is cut off"},
    {.name = "checkpoint",
     .type = CLI_STRING,
     .to = &checkpoint_path,
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
     .to = &checkpoint_every,
     .arg = "STEPS",
     .fallback = "100",
     .min = 1,
     .needs = {"checkpoint"},
     .transient = true,
     .help = "steps between two checkpoints"},
    {.name = "resume",
     .type = CLI_STRING,
     .to = &resume_path,
     .arg = "FILE",
     .completes_files = true,
     .transient = true,
     .help = "go on from a checkpoint, with the same student, data and options: the result is the same to the bit. "
             "--steps, --epochs, --warmup, --lr and --lr-min may be others: from the next step on the learning rate is "
             "that which a run with these has at that step"},
    {.name = "start-state",
     .type = CLI_STRING,
     .to = &start_path,
     .arg = "FILE",
     .completes_files = true,
     .help = "begin with the optimizer's moments from this checkpoint of another run, of other data or from other "
             "weights"},
    {.name = "plan",
     .type = CLI_FLAG,
     .to = &plan_only,
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

struct work {
    struct cli *c;
    struct model *student;
    struct session_teacher *teacher; /* beside the student; NULL: none */
    struct trainer *trainer;
    struct session_data data;
    struct distill_extent extent;   /* of an epoch; steps 0: not counted */
    struct session_file checkpoint; /* to resume from: closed when it has been read, for its disk space */
    bool begun;                     /* the data: an epoch after the first one needs it anew */
};

/* Without --steps: as many as the data makes. */
static int resolve_steps(struct cli *c, struct work *w, struct err *e) {
    struct stream_reader *r;
    if (epochs > 1 && !w->data.file.is_file)
        return err_set(e, ERR_USAGE, "--epochs %llu: a pipe can be read once", (unsigned long long)epochs);
    if (!cli_given(c, "steps")) {
        if (!w->data.file.is_file)
            return err_set(e, ERR_USAGE, "how many steps? The data comes through a pipe: give --steps");
    }
    if (plan_only && !w->data.file.is_file)
        return err_set(e, ERR_USAGE, "--plan reads the data twice, which a pipe cannot give");
    if (!cli_given(c, "steps") || plan_only) {
        if (session_file_again(&w->data.file, STREAM_ANY, &r, e) || distill_count(r, &o, &w->extent, e)) return e->code;
        if (!cli_given(c, "steps") && !u64_mul(w->extent.steps, epochs, &schedule->steps))
            return err_set(e, ERR_USAGE, "too many epochs");
    }
    if (!cli_given(c, "warmup")) schedule->warmup = train_default_warmup(schedule->steps);
    if (!cli_given(c, "lr-min")) schedule->lr_min = train_default_lr_min(schedule);
    const struct schedule_type *type = train_schedule_type(schedule);
    if (cli_given(c, "lr-min") && !type->falls)
        return err_set(e, ERR_USAGE, "--lr-min has no effect with --schedule %s", type->name);
    return 0;
}

static int open_data(void *ctx, struct stream_reader **r, struct err *e) {
    struct work *w = ctx;
    *r = w->data.stream;
    if (w->begun) return session_file_again(&w->data.file, STREAM_ANY, r, e);
    w->begun = true;
    return 0;
}

/* ---- checkpoints ------------------------------------------------------------------------------------------------- */

static int save_checkpoint(void *ctx, struct trainer *t, struct err *e) {
    struct cli *c = ((struct work *)ctx)->c;
    struct stream_write_options raw = {0};
    struct stream_writer *writer = NULL;
    struct cli_out_file *file;
    int fd, rc = cli_create(c, checkpoint_path, true, &fd, &file, e);
    if (!rc) rc = stream_writer_open(&writer, fd, checkpoint_path, &raw, e);
    if (!rc) rc = trainer_save(t, writer, e);
    if (!rc) rc = stream_writer_finish(writer, NULL, e);
    stream_writer_free(writer);
    return rc ? rc : cli_commit(c, file, e);
}

static bool save_wanted(void *ctx) {
    (void)ctx;
    return cli_take_usr1();
}

static bool stop_wanted(void *ctx) {
    (void)ctx;
    return cli_stop_requested() != 0;
}

/* A plan as options: what the provenance remembers. */
static int remember_plan(struct cli *c, const struct train_plan *p, bool changed, struct err *e) {
    char text[TRAIN_MAX_PAST][TRAIN_PHASE_TEXT];
    const char *words[TRAIN_MAX_PAST + 1];
    size_t n = 0;
    cJSON *list = cJSON_AddArrayToObject(cli_settings(c), "schedule");
    bool ok = list != NULL;
    for (size_t i = 0; i < p->n_past; i++) words[n++] = train_phase_text(&p->past[i], text[i]);
    if (now_named) words[n++] = now_named;
    for (size_t i = 0; ok && i < n; i++) ok = cJSON_AddItemToArray(list, cJSON_CreateString(words[i]));
    if (!ok) return err_nomem(e, "settings");
    return changed ? cli_remember(c, "schedule", words, n, e) : 0;
}

/* Another run's checkpoint is one. */
static int start(struct cli *c, struct work *w, struct err *e) {
    struct stream_reader *r;
    if (!start_path) return 0;
    if (cli_open_stream(c, start_path, "start-state", STREAM_CHECKPOINT, &r, e)) return e->code;
    return trainer_start(w->trainer, r, e);
}

/* The checkpoint is no input of the provenance: the recorded command makes the same model without it. */
static int resume(struct cli *c, struct work *w, struct err *e) {
    struct stream_reader *r;
    struct train_plan asked = *trainer_plan(w->trainer);
    struct distill_progress p;
    char text[DISTILL_TEXT];
    if (!resume_path) return remember_plan(c, &asked, false, e);
    if (!strcmp(resume_path, "-") && (!strcmp(how.model, "-") || !strcmp(cli_input_path(c, 0), "-")))
        return err_set(e, ERR_USAGE, "standard input is asked for twice (resume)");
    session_file_init(&w->checkpoint, resume_path);
    int rc = session_file_again(&w->checkpoint, STREAM_CHECKPOINT, &r, e);
    if (!rc) rc = trainer_restore(w->trainer, r, e);
    session_file_release(&w->checkpoint);
    if (rc) return rc;
    trainer_progress(w->trainer, &p);
    const struct train_plan *plan = trainer_plan(w->trainer);
    if (distill_resumed_text(w->trainer, text) || cli_verbose(c)) cli_say(c, "%s: %s", resume_path, text);
    if (!json_put_u64(cli_report(c), "resumed_after_step", p.step)) return err_nomem(e, "report");
    return remember_plan(c, plan, !train_plan_equal(plan, &asked), e);
}

/* ---- the run ----------------------------------------------------------------------------------------------------- */

static void show_step(void *ctx, const struct distill_progress *p, double tokens_per_second) {
    cli_progress(((struct work *)ctx)->c, p->step, "loss %.4f, %.0f tokens/s", p->loss, tokens_per_second);
}

/* The machine's speed is asked for only when there is a report. */
static int report(struct cli *c, const struct work *w, const struct distill_run *r, struct err *e) {
    cJSON *to = cli_report(c);
    if (cli_given(c, "report") && distill_put_speed(to, w->trainer, r, price, e)) return e->code;
    bool ok = distill_put_run(to, w->trainer, r) && distill_put_settings(cli_settings(c), w->trainer);
    return ok ? 0 : err_nomem(e, "report");
}

/* --schedule, as often as it is given. */
static int resolve_plan(struct err *e) {
    bool named = false;
    for (size_t i = 0; i < schedules.n; i++) {
        bool before = named;
        if (train_plan_parse(schedules.items[i], &o.plan, &named, e)) return e->code;
        if (named && !before) now_named = schedules.items[i];
    }
    return 0;
}

static int open_teacher(struct cli *c, struct work *w, struct err *e) {
    struct session_teacher_options teaching = {.layerwise = !strcmp(teacher_weights, "stream"), .batch_tokens = 1};
    if (!teacher_how.model) return 0;
    if (session_teacher_open(&w->teacher, c, &teacher_how, &teaching, e)) return e->code;
    session_teacher_parts(w->teacher, &o.teacher.model, &o.teacher.layerwise);
    return 0;
}

/* What lib/train is told. */
static int resolve_training(struct err *e) {
    struct train_options *t = &o.train;
    t->state = dtype_by_name(optimizer_state)->dtype;
    if (train_optimizer_parse(optimizer, t, e) || (lora && train_lora_parse(lora, &t->lora, e))) return e->code;
    if (group_texts.n > TRAIN_MAX_GROUPS) return err_set(e, ERR_USAGE, "--group: at most %d", TRAIN_MAX_GROUPS);
    for (size_t i = 0; i < group_texts.n; i++)
        if (train_group_parse(group_texts.items[i], &groups[i], e)) return e->code;
    t->groups = groups;
    t->n_groups = group_texts.n;
    t->frozen = frozen.items;
    t->n_frozen = frozen.n;
    return resolve_plan(e);
}

/* Everything that can be wrong is found out before the first step. */
static int prepare(struct cli *c, struct work *w, struct err *e) {
    o.precision = session_precision(&how);
    for (size_t i = 0; i < losses.n; i++)
        if (loss_list_add(&o.losses, losses.items[i], e)) return e->code;
    if (resolve_training(e) || (exits && distill_exits_parse(exits, &o, e))) return e->code;
    if (session_load_model(c, &how, WEIGHTS_F32, &w->student, NULL, e) ||
        session_open_data(c, cli_input_path(c, 0), "data", STREAM_ANY, w->student, &w->data, e) ||
        open_teacher(c, w, e) || resolve_steps(c, w, e) ||
        trainer_new(&w->trainer, w->student, &o, &w->data.format, e) || start(c, w, e))
        return e->code;
    return resume(c, w, e);
}

/* With a checkpoint to keep, signals are wishes from here on. */
static void catch_signals(void) {
    if (!checkpoint_path) return;
    cli_catch_stop();
    cli_catch_usr1();
}

static int train(struct cli *c, struct work *w, struct err *e) {
    char memory[DISTILL_TEXT];
    struct distill_progress p;
    struct distill_run training = {.epochs = epochs,
                                   .format = w->data.format,
                                   .open = open_data,
                                   .log = log_path,
                                   .save = checkpoint_path ? save_checkpoint : NULL,
                                   .save_every = checkpoint_every,
                                   .save_wanted = save_wanted,
                                   .stop_wanted = stop_wanted,
                                   .stepped = show_step,
                                   .ctx = w};
    catch_signals();
    cli_progress_begin(c, "step", schedule->steps);
    if (distill_run(w->trainer, &training, e)) return e->code;
    cli_progress_end(c);
    if (cli_verbose(c)) cli_say(c, "%s", distill_memory_text(w->trainer, memory));
    trainer_progress(w->trainer, &p);
    if (training.stopped)
        return err_set(e, ERR_IO, "stopped (%s) after step %llu of %llu: --resume %s goes on",
                       strsignal(cli_stop_requested()), (unsigned long long)p.step, (unsigned long long)schedule->steps,
                       checkpoint_path);
    if (p.step < schedule->steps)
        cli_say(c, "the data ended after %llu of %llu steps", (unsigned long long)p.step,
                (unsigned long long)schedule->steps);
    if (!p.step) return err_set(e, ERR_DATA, "%s holds no sequences", stream_reader_name(w->data.stream));
    return report(c, w, &training, e);
}

/* --plan: a line of JSON instead of a model. */
static int predict(struct cli *c, struct work *w, struct err *e) {
    struct distill_run training = {.epochs = epochs, .format = w->data.format, .open = open_data, .ctx = w};
    struct distill_forecast f;
    FILE *out;
    if (cli_text(c, &out, e) || distill_predict(w->trainer, &training, &w->extent, &f, e)) return e->code;
    cJSON *line = cJSON_CreateObject();
    bool ok = line && distill_put_forecast(line, &f, price);
    int rc = ok ? cli_result(c, line, e) : err_nomem(e, "plan");
    cJSON_Delete(line);
    return rc;
}

static int distill(struct cli *c, struct work *w, struct err *e) {
    struct stream_writer *writer;
    if (prepare(c, w, e)) return e->code;
    if (plan_only) return predict(c, w, e);
    if (cli_open_output(c, &writer, e) || train(c, w, e) || trainer_finish(w->trainer, e)) return e->code;
    return model_save(w->student, writer, 0, e) ? e->code : cli_close_output(c, e);
}

static int run(struct cli *c, struct err *e) {
    struct work w = {.c = c};
    int rc = distill(c, &w, e);
    trainer_free(w.trainer);
    session_teacher_free(w.teacher);
    model_free(w.student);
    session_data_release(&w.data);
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

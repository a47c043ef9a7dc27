/* rill distill: trains a student on what a teacher says. */
#include "lib/distill/distill.h"
#include "lib/run/run.h"

static struct run_options how;
static const char *optimizer_state, *log_path, *checkpoint_path, *resume_path;
static struct cli_list losses;
static uint64_t epochs, checkpoint_every;
static struct distill_options o;

static const struct cli_option options[] = {
    RUN_MODEL(how, "STUDENT", true, "the student to begin with, a model stream"),
    {.name = "loss",
     .type = CLI_LIST,
     .to = &losses,
     .arg = "LOSS",
     .help = "kl:weight=W,temperature=T (against the teacher, times T^2) or ce:weight=W (against the tokens); may be "
             "repeated, the losses are added. Default: kl, at the knowledge's temperature; ce for plain tokens"},
    {.name = "lr",
     .type = CLI_F64,
     .to = &o.lr,
     .arg = "RATE",
     .fallback = "1e-4",
     .min = 0,
     .max = 10,
     .help = "peak learning rate"},
    {.name = "lr-min",
     .type = CLI_F64,
     .to = &o.lr_min,
     .arg = "RATE",
     .min = 0,
     .max = 10,
     .help = "learning rate of the last step (default: a tenth of --lr)"},
    {.name = "warmup",
     .type = CLI_U64,
     .to = &o.warmup,
     .arg = "STEPS",
     .help = "steps of linear warmup (default: a tenth of the steps, at most 100)"},
    {.name = "steps",
     .type = CLI_U64,
     .to = &o.steps,
     .arg = "N",
     .min = 1,
     .help = "optimizer steps of the schedule; then it stops (default: as many as the data has, which must be a file "
             "then)"},
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
    RUN_TRAINING_PRECISION(how),
    {.name = "recompute",
     .type = CLI_FLAG,
     .to = &o.recompute,
     .transient = true,
     .help = "keep only the inputs of layers and run their forward pass again in backward: a third more time for a "
             "fraction of the memory; the result is the same to the bit"},
    {.name = "weight-decay",
     .type = CLI_F64,
     .to = &o.weight_decay,
     .arg = "W",
     .fallback = "0.1",
     .min = 0,
     .max = 1,
     .help = "AdamW's, on matrices but for the embedding"},
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
     .to = &o.beta1,
     .arg = "B",
     .fallback = "0.9",
     .min = 0,
     .max = 0.999999,
     .help = "AdamW's"},
    {.name = "beta2",
     .type = CLI_F64,
     .to = &o.beta2,
     .arg = "B",
     .fallback = "0.95",
     .min = 0,
     .max = 0.999999,
     .help = "AdamW's"},
    {.name = "eps",
     .type = CLI_F64,
     .to = &o.eps,
     .arg = "E",
     .fallback = "1e-8",
     .min = 1e-30,
     .max = 1,
     .help = "AdamW's"},
    {.name = "optimizer-state",
     .type = CLI_CHOICE,
     .to = &optimizer_state,
     .choices = "f32|bf16",
     .fallback = "f32",
     .help = "of AdamW's two moments; bf16, rounded up or down at random, takes half their memory"},
    {.name = "log",
     .type = CLI_STRING,
     .to = &log_path,
     .arg = "FILE",
     .completes_files = true,
     .transient = true,
     .help = "a line for each step: step, kl, ce, lr, gradient norm, tokens; --resume appends to it"},
    {.name = "checkpoint",
     .type = CLI_STRING,
     .to = &checkpoint_path,
     .arg = "FILE",
     .completes_files = true,
     .transient = true,
     .help = "keep the state of the run here"},
    {.name = "checkpoint-every",
     .type = CLI_U64,
     .to = &checkpoint_every,
     .arg = "STEPS",
     .fallback = "100",
     .min = 1,
     .transient = true,
     .help = "so often"},
    {.name = "resume",
     .type = CLI_STRING,
     .to = &resume_path,
     .arg = "FILE",
     .completes_files = true,
     .transient = true,
     .help = "go on from a checkpoint, with the same model, data and options; the result is the same to the bit"},
    {0},
};

struct work {
    struct cli *c;
    struct model *student;
    struct trainer *trainer;
    struct run_data data;
    bool begun; /* the data: an epoch after the first one needs it anew */
};

/* Without --steps: as many as the data makes. */
static int settle_steps(struct cli *c, struct work *w, struct err *e) {
    struct stream_reader *r;
    if (epochs > 1 && !w->data.file.is_file)
        return err_set(e, ERR_USAGE, "--epochs %llu: a pipe can be read once", (unsigned long long)epochs);
    if (!cli_given(c, "steps")) {
        if (!w->data.file.is_file)
            return err_set(e, ERR_USAGE, "how many steps? The data comes through a pipe: give --steps");
        if (run_file_again(&w->data.file, STREAM_ANY, &r, e) || distill_count(r, o.batch_tokens, epochs, &o.steps, e))
            return e->code;
    }
    if (!cli_given(c, "warmup")) o.warmup = distill_default_warmup(o.steps);
    if (!cli_given(c, "lr-min")) o.lr_min = distill_default_lr_min(o.lr);
    return 0;
}

static int open_data(void *ctx, struct stream_reader **r, struct err *e) {
    struct work *w = ctx;
    *r = w->data.stream;
    if (w->begun) return run_file_again(&w->data.file, STREAM_ANY, r, e);
    w->begun = true;
    return 0;
}

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

static void show_step(void *ctx, const struct distill_progress *p, double tokens_per_second) {
    cli_progress(((struct work *)ctx)->c, p->step, "loss %.4f, %.0f tokens/s", p->loss, tokens_per_second);
}

static void say_memory(struct cli *c, const struct trainer *t) {
    struct distill_memory m;
    trainer_memory(t, &m);
    cli_say(c,
            "memory in MB: weights %.4g, gradients %.4g, optimizer %.4g, activations %.4g, their gradients %.4g, "
            "operands and logits %.4g",
            m.weights / 1e6, m.gradients / 1e6, m.optimizer / 1e6, m.values / 1e6, m.value_gradients / 1e6,
            m.scratch / 1e6);
}

static int report(struct cli *c, const struct distill_progress *p, double tokens_per_second, struct err *e) {
    cJSON *to = cli_report(c), *settings = cli_settings(c);
    bool ok = json_put_u64(to, "steps", p->step) && json_put_u64(to, "positions", p->positions) &&
              json_put_f64(to, "kl", p->kl) && json_put_f64(to, "ce", p->ce) && json_put_f64(to, "loss", p->loss) &&
              json_put_f64(to, "tokens_per_second", tokens_per_second) && json_put_u64(settings, "steps", o.steps) &&
              json_put_u64(settings, "warmup", o.warmup) && json_put_f64(settings, "lr-min", o.lr_min) &&
              json_put_f64(settings, "kl-weight", o.loss.kl_weight) &&
              json_put_f64(settings, "ce-weight", o.loss.ce_weight) &&
              json_put_f64(settings, "temperature", o.loss.temperature);
    return ok ? 0 : err_nomem(e, "report");
}

/* Everything that can be wrong is found out before the first step. */
static int prepare(struct cli *c, struct work *w, struct err *e) {
    struct stream_reader *r;
    o.precision = run_precision(&how);
    o.state = dtype_by_name(optimizer_state)->dtype;
    if (cli_given(c, "checkpoint-every") && !checkpoint_path)
        return err_set(e, ERR_USAGE, "--checkpoint-every is for --checkpoint");
    for (size_t i = 0; i < losses.n; i++)
        if (distill_loss_parse(losses.items[i], &o.loss, e)) return e->code;
    if (run_load_model(c, &how, HOLD_F32, &w->student, NULL, e) ||
        run_open_data(c, cli_input_path(c, 0), "data", STREAM_ANY, w->student, &w->data, e) ||
        distill_loss_settle(&o.loss, &w->data.format, e) || settle_steps(c, w, e) ||
        trainer_new(&w->trainer, w->student, &o, &w->data.format, e))
        return e->code;
    if (!resume_path) return 0;
    if (cli_open_stream(c, resume_path, "checkpoint", STREAM_CHECKPOINT, &r, e) || trainer_restore(w->trainer, r, e))
        return e->code;
    return 0;
}

static int train(struct cli *c, struct work *w, struct err *e) {
    struct distill_progress p;
    struct distill_run training = {.epochs = epochs,
                                   .format = w->data.format,
                                   .open = open_data,
                                   .log = log_path,
                                   .save_every = checkpoint_every,
                                   .save = checkpoint_path ? save_checkpoint : NULL,
                                   .stepped = show_step,
                                   .ctx = w};
    cli_progress_begin(c, "step", o.steps);
    if (distill_run(w->trainer, &training, e)) return e->code;
    cli_progress_end(c);
    if (cli_verbose(c)) say_memory(c, w->trainer);
    trainer_progress(w->trainer, &p);
    if (p.step < o.steps)
        cli_say(c, "the data ended after %llu of %llu steps", (unsigned long long)p.step, (unsigned long long)o.steps);
    if (!p.step) return err_set(e, ERR_DATA, "%s holds no sequences", stream_reader_name(w->data.stream));
    return report(c, &p, training.tokens_per_second, e);
}

static int distill(struct cli *c, struct work *w, struct err *e) {
    struct stream_writer *writer;
    if (prepare(c, w, e) || cli_open_output(c, &writer, e) || train(c, w, e)) return e->code;
    return model_save(w->student, writer, 0, e) ? e->code : cli_close_output(c, e);
}

static int run(struct cli *c, struct err *e) {
    struct work w = {.c = c};
    int rc = distill(c, &w, e);
    trainer_free(w.trainer);
    model_free(w.student);
    run_data_release(&w.data);
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
        .threaded = true,
        .description =
            "Trains the student on a knowledge stream (or on plain tokens) and writes it: AdamW, linear warmup, "
            "cosine decay, clipping by the gradient's norm. The result depends on the data's sequences and the "
            "options, not on how the stream is cut into batches, nor on -j.\n\n"
            "Losses are means over the positions that have a next token. Student and knowledge must name the same "
            "vocabulary, and knowledge that logit-dump has encoded serves its own temperature only. A loss that is no "
            "longer a number ends the program; nothing is written then.",
        .examples = "rill distill -m student.rill < corpus.kd.rill > trained.rill\n"
                    "    one pass over the knowledge\n"
                    "rill distill -m student.rill --loss kl --loss ce:weight=0.1 corpus.kd.rill -o trained.rill\n"
                    "    with a little cross-entropy on the tokens themselves\n"
                    "rill distill -m student.rill --epochs 3 --checkpoint run.rill < corpus.kd.rill > trained.rill\n"
                    "    a state to resume from every 100 steps\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}

/* Makes a plan from options without quantizing: for distill, which quantizes in training, and for sizes of shapes. */
#include "lib/compress/compress_internal.h"

int compress_make_plan(struct quant_plan *out, struct cli *c, const struct compress_quantize_options *o,
                       const struct model_config *config, struct err *e) {
    struct compress k = {.c = c, .o = o};
    int rc = compress_read_settings(&k, e);
    if (!rc) rc = quant_plan_make(out, config, &k.how, e);
    compress_release(&k);
    return rc;
}

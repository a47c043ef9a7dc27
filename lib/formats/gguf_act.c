/* Reads and writes the activation in a GGUF header, for architectures that allow several. */
#include "lib/formats/arch_internal.h"

int gguf_read_act(struct model_config *c, const struct gguf_file *g, const char *prefix, struct arena *a,
                  struct err *e) {
    char key[128];
    const char *name = NULL;
    snprintf(key, sizeof key, "%s.hidden_activation", prefix);
    int rc = gguf_opt_str(g, key, a, &name, e);
    if (rc || !name || !hf_act_of_name(name, &c->act)) return rc;
    return err_set(e, ERR_DATA, "key '%s': '%.64s' is not supported", key, name);
}

void gguf_put_act(struct gguf_header *h, const struct model_config *c, uint32_t usual) {
    if (c->act != usual) gguf_key_string(h, ".hidden_activation", hf_act_name(c->act));
}

/* Private to lib/arch: parts of the configuration. */
#ifndef RILL_ARCH_INTERNAL_H
#define RILL_ARCH_INTERNAL_H

#include "lib/arch/arch.h"

/* Index of the string o[key] in a list that ends with NULL. ERR_DATA: it is not in the list. */
int config_get_name(const cJSON *o, const char *key, const char *const *names, uint32_t *out, struct err *e) MUST_CHECK;
/* A rotation as an object in META, and back; factors are allocated from `a`. False: out of memory. */
bool rope_to_json(cJSON *o, const char *key, const struct model_rope *rope);
int rope_from_json(struct model_rope *rope, const cJSON *r, struct arena *a, struct err *e) MUST_CHECK;
int rope_copy(struct model_rope *to, const struct model_rope *from, struct arena *a, struct err *e) MUST_CHECK;
int rope_check(const struct model_config *c, const struct model_rope *r, struct err *e) MUST_CHECK;

#endif

/* Access to the values of a loss's keys. */
#include <string.h>

#include "lib/losses/losses_internal.h"

int loss_key_index(const struct loss_type *t, const char *key) {
    for (int i = 0; t->keys[i].name; i++)
        if (!strcmp(t->keys[i].name, key)) return i;
    return -1;
}

static const struct loss_value *value_of(const struct loss *l, const char *key) {
    return &l->values[loss_key_index(l->type, key)];
}

double loss_number(const struct loss *l, const char *key) {
    return value_of(l, key)->number;
}

const char *loss_words(const struct loss *l, const char *key) {
    return value_of(l, key)->text;
}

bool loss_given(const struct loss *l, const char *key) {
    return value_of(l, key)->given;
}

double loss_temperature(const struct loss *l) {
    return loss_key_index(l->type, "temperature") < 0 ? 1 : loss_number(l, "temperature");
}

int loss_square_temperature(struct loss *l, const struct loss_setting *s, struct param_set *own, struct err *e) {
    (void)s, (void)own, (void)e;
    l->factor = loss_temperature(l) * loss_temperature(l);
    return 0;
}

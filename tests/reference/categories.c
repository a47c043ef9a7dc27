/* Prints what lib/text thinks of every code point, for compare_categories.py:
 * gcc -I. -D_GNU_SOURCE tests/reference/categories.c build/obj-.../librill.a -lutf8proc ... -o categories */
#include <stdio.h>

#include "lib/text/text_internal.h"

int main(void) {
    for (int32_t c = 0; c < 0x110000; c++) {
        int32_t lower[2];
        size_t n = char_lowercase(c, lower);
        if (c >= 0xd800 && c < 0xe000) continue;
        printf("%x %d %d %d %d %d %d %d %x %x\n", (unsigned)c, char_is_mark(c), char_is_nonspacing(c), char_is_other(c),
               char_is_punctuation(c), char_is_number(c), char_is_space(c), char_is_word(c), (unsigned)lower[0],
               n > 1 ? (unsigned)lower[1] : 0);
    }
    return 0;
}

/*
 * Tests the AMX micro-kernel of lib/kernel on a machine without an operating system, which an emulator runs fastest:
 * requests tiles, multiplies blocks of every height and compares every bit with the sums in the order of the Intel SDM
 * (volume 2, TDPBF16PS). The result goes to the serial port, a line that begins with "ok" or "not ok".
 */
#include "lib/kernel/gemm_amx.c"

/* ---- the part of a C library that this needs ---- */

void *memset(void *to, int value, size_t n) {
    for (unsigned char *p = to; n--;) *p++ = (unsigned char)value;
    return to;
}

void *memcpy(void *to, const void *from, size_t n) {
    unsigned char *p = to;
    for (const unsigned char *q = from; n--;) *p++ = *q++;
    return to;
}

/* There is no operating system: only checks that the request was the right one. */
static bool asked;
long syscall(long number, ...) {
    __builtin_va_list list;
    __builtin_va_start(list, number);
    int what = __builtin_va_arg(list, int), which = __builtin_va_arg(list, int);
    __builtin_va_end(list);
    asked = number == 158 && what == 0x1023 && which == 18; /* arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) */
    return 0;
}

/* ---- the serial port: 8 bits, no parity, polled ---- */

enum { COM1 = 0x3f8, LINE_CONTROL = COM1 + 3, LINE_STATUS = COM1 + 5, ROOM = 0x20 };

static void port_out(uint16_t port, uint8_t byte) {
    __asm__ volatile("outb %0, %1" ::"a"(byte), "Nd"(port));
}

static uint8_t port_in(uint16_t port) {
    uint8_t byte;
    __asm__ volatile("inb %1, %0" : "=a"(byte) : "Nd"(port));
    return byte;
}

static void say(const char *text) {
    for (; *text; text++) {
        while (!(port_in(LINE_STATUS) & ROOM)) {
        }
        port_out(COM1, (uint8_t)*text);
    }
}

static void say_number(uint64_t n) {
    char digits[24], *p = digits + sizeof digits - 1;
    *p = 0;
    do *--p = (char)('0' + n % 10);
    while (n /= 10);
    say(p);
}

/* ---- blocks ---- */

enum { MOST_K = 640, LDA = MOST_K + 8, N_PANELS = 3, LDC = N_PANELS * PANEL + 3 };

static uint16_t a[(AMX_BLOCK + 1) * LDA], b[N_PANELS * PANEL * MOST_K];
static float c[(AMX_BLOCK + 1) * LDC], want[(AMX_BLOCK + 1) * LDC];
static uint64_t state = 88172645463325252u;

static uint32_t random_bits(void) { /* xorshift, Marsaglia 2003 */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}

/* From 2^-7 to 2^5, so that the sum of a product and an f32 is exact in f64, and rounding it equals a fused
 * multiply-add. */
static void fill(uint16_t *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = (uint16_t)((random_bits() & 0x807f) | (120 + random_bits() % 12) << 7);
}

static float widened(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static float add_product(float sum, uint16_t x, uint16_t y) {
    return (float)((double)sum + (double)widened(x) * (double)widened(y));
}

static void multiply_plain(const struct block_bf16 *t) {
    for (size_t i = 0; i < t->rows; i++)
        for (size_t n = 0; n < t->n_panels * PANEL; n++) {
            const uint16_t *row = t->a + i * t->lda, *column = t->b + n / PANEL * t->stride + n % PANEL * 2;
            float *sum = want + i * t->ldc + n;
            if (!t->accumulate) *sum = 0;
            for (size_t step = 0; step < t->k; step += AMX_STEP) {
                float even = 0, odd = 0;
                for (size_t p = step; p < step + AMX_STEP; p += 2) {
                    even = add_product(even, row[p], column[p * PANEL]);
                    odd = add_product(odd, row[p + 1], column[p * PANEL + 1]);
                }
                *sum += even + odd;
            }
        }
}

/* Counts elements of c that differ in their bits from the plain product, or that should not have been written. */
static size_t check_block(size_t rows, size_t k, size_t n_panels, bool accumulate) {
    const struct block_bf16 t = {rows, k, n_panels, a, LDA, b, PANEL * MOST_K, accumulate, c, LDC};
    size_t wrong = 0;
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) c[i] = want[i] = (float)(random_bits() % 1000) * 0.37f;
    multiply_plain(&t);
    bf16_amx.multiply(&t);
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        uint32_t got, wanted;
        memcpy(&got, &c[i], sizeof got);
        memcpy(&wanted, &want[i], sizeof wanted);
        wrong += got != wanted;
    }
    return wrong;
}

int main(void) {
    uint64_t blocks = 0, wrong = 0;
    port_out(LINE_CONTROL, 3);
    if (!amx_available() || !asked) {
        say("not ok: amx_available() finds no AMX\r\n");
        return 1;
    }
    fill(a, sizeof a / sizeof *a);
    fill(b, sizeof b / sizeof *b);
    bf16_amx.begin();
    for (size_t rows = 1; rows <= AMX_BLOCK; rows++)
        for (size_t k = AMX_STEP; k <= MOST_K; k += k < 96 ? AMX_STEP : 272)
            for (int accumulate = 0; accumulate < 2; accumulate++, blocks++)
                wrong += check_block(rows, k, 1 + rows % N_PANELS, accumulate);
    bf16_amx.end();
    say(wrong ? "not ok: " : "ok: ");
    say_number(blocks);
    say(" blocks, elements with other bits: ");
    say_number(wrong);
    say("\r\n");
    return wrong != 0;
}

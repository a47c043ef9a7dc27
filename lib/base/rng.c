/* The random number generator Philox4x32-10 and a sequence on top of it. Salmon, Moraes, Dror, Shaw: "Parallel random
 * numbers: as easy as 1, 2, 3", SC 2011, section 4.3; constants from table 2 of Random123. */
#include <math.h>

#include "lib/base/base.h"

#define MULTIPLIER_0 UINT64_C(0xD2511F53)
#define MULTIPLIER_1 UINT64_C(0xCD9E8D57)
#define WEYL_0       0x9E3779B9u /* golden ratio */
#define WEYL_1       0xBB67AE85u /* sqrt(3) - 1 */

void philox(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t out[4]) {
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    uint32_t c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32);
    uint32_t c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
    for (int round = 0; round < 10; round++, key0 += WEYL_0, key1 += WEYL_1) {
        uint64_t product0 = MULTIPLIER_0 * c0, product1 = MULTIPLIER_1 * c2;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ key0;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ key1;
        c1 = (uint32_t)product1;
        c3 = (uint32_t)product0;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

static uint64_t u64_of(uint32_t low, uint32_t high) {
    return low | (uint64_t)high << 32;
}

double philox_f64(const uint32_t words[2]) {
    return (double)(u64_of(words[0], words[1]) >> 11) * 0x1p-53;
}

struct rng rng_init(uint64_t seed, uint64_t stream) {
    return (struct rng){.seed = seed, .stream = stream};
}

uint32_t rng_u32(struct rng *r) {
    if (r->left == 0) {
        philox(r->seed, r->stream, r->counter++, r->buffer);
        r->left = 4;
    }
    return r->buffer[4 - r->left--];
}

static uint64_t next_u64(struct rng *r) {
    uint32_t low = rng_u32(r);
    return u64_of(low, rng_u32(r));
}

/* The high word of n * u64 is nearly uniform; rejecting low words below 2^64 mod n makes it exactly so (Lemire, "Fast
 * random integer generation in an interval", 2019). */
uint64_t rng_below(struct rng *r, uint64_t n) {
    unsigned __int128 m = (unsigned __int128)next_u64(r) * n;
    if ((uint64_t)m < n)
        for (uint64_t reject = (0 - n) % n; (uint64_t)m < reject;) m = (unsigned __int128)next_u64(r) * n;
    return (uint64_t)(m >> 64);
}

double rng_f64(struct rng *r) {
    uint32_t low = rng_u32(r), words[2] = {low, rng_u32(r)};
    return philox_f64(words);
}

/* Box and Muller, 1958. Uses the cosine half only, so that the generator need not store a second value. */
double rng_normal(struct rng *r) {
    double u = 1.0 - rng_f64(r); /* (0, 1]: log never sees 0 */
    double angle = 6.283185307179586476925 * rng_f64(r);
    return sqrt(-2.0 * log(u)) * cos(angle);
}

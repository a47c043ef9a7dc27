/*
 * replay MUTATIONS PATH...: a main() for fuzz targets without libFuzzer. Feeds every file of the paths (folders one
 * level deep) to the target, then MUTATIONS seeded mutations of each: a flipped byte, a byte set to an extreme, a cut,
 * a range copied elsewhere. The same files give the same mutations every time.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>

#include "lib/base/base.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t n_files;

static void mutate(struct rng *r, uint8_t *data, size_t *size) {
    static const uint8_t extreme[] = {0, 1, 0x7F, 0x80, 0xFF, 0x40};
    if (*size == 0) return;
    size_t at = rng_below(r, *size), n = 1 + rng_below(r, 8);
    if (n > *size - at) n = *size - at;
    switch (rng_below(r, 5)) {
    case 0: data[at] ^= (uint8_t)(1u << rng_below(r, 8)); break;
    case 1: memset(data + at, extreme[rng_below(r, sizeof extreme)], n); break;
    case 2: *size = at; break;
    case 3: data[at] = (uint8_t)rng_u32(r); break;
    default: memmove(data + at, data + rng_below(r, *size - n + 1), n); break;
    }
}

/* Copies to an allocation of exactly the right size, so that AddressSanitizer catches a read past the end. */
static int feed(const uint8_t *data, size_t size) {
    uint8_t *copy = malloc(size ? size : 1);
    if (!copy) return -1;
    if (size) memcpy(copy, data, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
    return 0;
}

static int replay_bytes(uint8_t *data, size_t size, uint64_t mutations) {
    uint8_t *work = malloc(size ? size : 1);
    struct rng r = rng_init(1, size);
    if (!work) return -1;
    int rc = feed(data, size);
    for (uint64_t i = 0; !rc && i < mutations; i++) {
        size_t n = size;
        if (size) memcpy(work, data, size);
        for (uint64_t k = 1 + rng_below(&r, 4); k > 0; k--) mutate(&r, work, &n);
        rc = feed(work, n);
    }
    free(work);
    return rc;
}

static int replay_file(const char *path, uint64_t mutations) {
    struct stat st;
    FILE *f = fopen(path, "rb");
    int rc = -1;
    uint8_t *data = NULL;
    if (f && fstat(fileno(f), &st) == 0) {
        size_t size = (size_t)st.st_size;
        data = malloc(size ? size : 1);
        if (data && fread(data, 1, size, f) == size) rc = replay_bytes(data, size, mutations);
        n_files++;
    }
    if (rc) fprintf(stderr, "%s: cannot be replayed\n", path);
    if (f) fclose(f);
    free(data);
    return rc;
}

static int replay_path(const char *path, uint64_t mutations) {
    struct dirent **found;
    char file[4096];
    int n = scandir(path, &found, NULL, alphasort), rc = 0;
    if (n < 0 && errno == ENOTDIR) return replay_file(path, mutations);
    if (n < 0) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return -1;
    }
    for (int i = 0; i < n; i++) {
        snprintf(file, sizeof file, "%s/%s", path, found[i]->d_name);
        if (found[i]->d_name[0] != '.') rc |= replay_file(file, mutations);
        free(found[i]);
    }
    free(found);
    return rc;
}

int main(int argc, char **argv) {
    uint64_t mutations = 0;
    int rc = 0;
    if (argc < 3 || !parse_u64(argv[1], &mutations)) {
        fprintf(stderr, "usage: %s MUTATIONS PATH...\n", argv[0]);
        return 2;
    }
    for (int i = 2; i < argc; i++) rc |= replay_path(argv[i], mutations);
    printf("%zu files replayed, %llu mutations of each\n", n_files, (unsigned long long)mutations);
    return rc || n_files == 0;
}

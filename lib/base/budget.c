/* How much memory this process may use: what the machine, the control group and the process limit leave. */
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "lib/base/base_internal.h"

static atomic_uint_fast64_t chosen; /* by mem_set_limit; 0: no limit */
static atomic_uint_fast64_t in_use;

void budget_take(uint64_t bytes) {
    atomic_fetch_add_explicit(&in_use, bytes, memory_order_relaxed);
}
void budget_give(uint64_t bytes) {
    atomic_fetch_sub_explicit(&in_use, bytes, memory_order_relaxed);
}
uint64_t mem_in_use(void) {
    return atomic_load_explicit(&in_use, memory_order_relaxed);
}

/* Reads the number after `key` from a file of "key: number" lines, or the number at its start if key is NULL. Returns
 * false if there is none. */
static bool number_in(const char *path, const char *key, uint64_t *out) {
    char line[256];
    bool found = false;
    FILE *f = fopen(path, "re");
    if (!f) return false;
    while (!found && fgets(line, sizeof line, f)) {
        size_t n = key ? strlen(key) : 0;
        if (key && strncmp(line, key, n) != 0) continue;
        char *end;
        *out = strtoull(line + n, &end, 10);
        found = end != line + n;
        if (!key) break;
    }
    fclose(f);
    return found;
}

/* Memory that can be allocated without reclaiming more than file caches, plus free swap. */
static uint64_t available(void) {
    uint64_t kib, swap = 0;
    if (number_in("/proc/meminfo", "MemAvailable:", &kib)) {
        if (!number_in("/proc/meminfo", "SwapFree:", &swap)) swap = 0;
        return (kib + swap) * 1024;
    }
    struct sysinfo s;
    return sysinfo(&s) == 0 ? (uint64_t)s.freeram * s.mem_unit : UINT64_MAX;
}

/* What the control group `dir` leaves: its limit less its usage, not counting file caches, which can be dropped. */
static uint64_t group_leaves(const char *dir, const char *limit_name, const char *use_name, const char *cache) {
    char path[4096 + 64];
    uint64_t limit, use = 0, dropped = 0;
    snprintf(path, sizeof path, "%s/%s", dir, limit_name);
    if (!number_in(path, NULL, &limit)) return UINT64_MAX; /* "max", or no such file */
    snprintf(path, sizeof path, "%s/%s", dir, use_name);
    if (!number_in(path, NULL, &use)) use = 0;
    snprintf(path, sizeof path, "%s/memory.stat", dir);
    if (number_in(path, cache, &dropped)) use = use > dropped ? use - dropped : 0;
    return limit > use ? limit - use : 0;
}

/* The minimum over the group and its ancestors. `root` is the mount point of the hierarchy. */
static uint64_t groups_leave(const char *root, const char *group, bool v2) {
    char dir[4096];
    uint64_t least = UINT64_MAX;
    snprintf(dir, sizeof dir, "%s%s", root, group);
    for (size_t n = strlen(dir), end = strlen(root); n >= end;) {
        uint64_t here = v2 ? group_leaves(dir, "memory.max", "memory.current", "inactive_file")
                           : group_leaves(dir, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file");
        if (here < least) least = here;
        while (n > 0 && dir[n - 1] != '/') n--;
        if (n > 0) n--;
        dir[n] = 0;
    }
    return least;
}

/* Parses /proc/self/cgroup: "0::/GROUP" is a version 2 line, "N:memory:/GROUP" one of version 1. */
static uint64_t control_group(void) {
    char line[4096];
    uint64_t least = UINT64_MAX;
    FILE *f = fopen("/proc/self/cgroup", "re");
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        char *names = strchr(line, ':'), *group = names ? strchr(names + 1, ':') : NULL;
        if (!group) continue;
        *group++ = 0;
        bool v2 = names[1] == 0;
        if (!v2 && strcmp(names + 1, "memory") != 0) continue;
        uint64_t here = groups_leave(v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory", group, v2);
        if (here < least) least = here;
    }
    if (f) fclose(f);
    return least;
}

uint64_t mem_address_space(void) {
    struct rlimit limit;
    uint64_t pages = 0;
    if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return UINT64_MAX;
    if (!number_in("/proc/self/statm", NULL, &pages)) pages = 0;
    uint64_t use = pages * (uint64_t)sysconf(_SC_PAGESIZE);
    return limit.rlim_cur > use ? limit.rlim_cur - use : 0;
}

void mem_set_limit(uint64_t bytes) {
    atomic_store(&chosen, bytes);
}

bool mem_limit_is_set(void) {
    return atomic_load_explicit(&chosen, memory_order_relaxed) != 0;
}

uint64_t mem_left(void) {
    uint64_t set = atomic_load_explicit(&chosen, memory_order_relaxed), used = mem_in_use();
    if (set) return set > used ? set - used : 0;
    uint64_t least = available(), group = control_group(), space = mem_address_space();
    if (group < least) least = group;
    return space < least ? space : least;
}

int mem_check(uint64_t bytes, struct err *e) {
    uint64_t left;
    if ((!mem_limit_is_set() && bytes < MEM_LARGE) || bytes <= (left = mem_left())) return 0;
    return err_set(e, ERR_IO, "%.1f MB of memory are needed and %.1f MB are left%s", (double)bytes / 1e6,
                   (double)left / 1e6, mem_limit_is_set() ? " of --max-memory" : " (--max-memory allows more)");
}

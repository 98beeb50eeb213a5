/* Counts how often QEMU runs each block of instructions, for `cargo xtask count`. Whenever the program is about to read its standard
 * input, a line `ADDRESS INSTRUCTIONS RUNS` is written for each block that ran since the last time, then where files lie in memory
 * (`map`), then `end`. Addresses are the host's. Blocks count as run to their end, which only a signal makes untrue. */

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What is used of QEMU's plugin interface, which Debian has no header of. */
typedef uint64_t qemu_plugin_id_t;
struct qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *), int flags, void *);
extern void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t,
                                                 void (*)(qemu_plugin_id_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                                                          uint64_t, uint64_t, uint64_t, uint64_t));
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern void *qemu_plugin_insn_haddr(const struct qemu_plugin_insn *);

int qemu_plugin_version = INTERFACE;

/* aarch64's number of `read`. */
enum { READ = 63 };

struct block {
    struct block *next;
    uintptr_t at;
    size_t instructions;
    uint64_t runs, told;
};

static struct block *blocks;
static FILE *out;

static void ran(unsigned cpu, void *block) {
    (void)cpu;
    ((struct block *)block)->runs++;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
    (void)id;
    struct block *block = calloc(1, sizeof *block);
    if (!block) abort();
    block->at = (uintptr_t)qemu_plugin_insn_haddr(qemu_plugin_tb_get_insn(tb, 0));
    block->instructions = qemu_plugin_tb_n_insns(tb);
    block->next = blocks;
    blocks = block;
    qemu_plugin_register_vcpu_tb_exec_cb(tb, ran, 0, block);
}

static void called(qemu_plugin_id_t id, unsigned cpu, int64_t number, uint64_t file, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
                   uint64_t f, uint64_t g, uint64_t h) {
    (void)id, (void)cpu, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    if (number != READ || file != 0) return;
    for (struct block *block = blocks; block; block = block->next) {
        if (block->runs == block->told) continue;
        fprintf(out, "%" PRIxPTR " %zu %" PRIu64 "\n", block->at, block->instructions, block->runs - block->told);
        block->told = block->runs;
    }
    FILE *maps = fopen("/proc/self/maps", "r");
    if (!maps) abort();
    char line[8192];
    while (fgets(line, sizeof line, maps)) {
        if (strchr(line, '/')) fprintf(out, "map %s", line);
    }
    fclose(maps);
    fputs("end\n", out);
    fflush(out);
}

int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info, int argc, char **argv) {
    (void)info;
    /* `out=FILE` */
    if (argc != 1 || strncmp(argv[0], "out=", 4) != 0 || !(out = fopen(argv[0] + 4, "w"))) return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}

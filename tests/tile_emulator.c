/* AMX's tile instructions on processors that lack them: each raises SIGILL, and the handler computes it.

       gcc -O3 -march=native -shared -fPIC tile_emulator.c -o tile_emulator.so
       LD_PRELOAD=./tile_emulator.so program

   The program's own machine code runs, unlike on the stand-in of tile_registers.py, and each thread has its registers.
   Only what our kernels use: palette 1, tiles of 16 lines of 64 bytes. Anything else ends the process, as SIGILL does.
   Arithmetic as in Intel's manual (TDPBF16PS): the even and the odd numbers of the pairs are summed apart, in float32,
   subnormal numbers are zeros, and both sums are added to the tile. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <immintrin.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

typedef struct { uint8_t line[16][64]; } tile;

static __thread tile tiles[8];
static __thread int configured;

static const int ORDER[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                              REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

static float of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static void multiply_add(tile *sums, const tile *a, const tile *b) {
    unsigned mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040);                       /* subnormal numbers are zeros, in and out */
    for (int m = 0; m < 16; m++) {
        float even[16] = {0}, odd[16] = {0};
        const uint32_t *pairs = (const uint32_t *)a->line[m];
        for (int k = 0; k < 16; k++) {
            const uint32_t *line = (const uint32_t *)b->line[k];
            float a0 = of(pairs[k] << 16), a1 = of(pairs[k] & 0xFFFF0000u);
            for (int n = 0; n < 16; n++) {
                even[n] = __builtin_fmaf(a0, of(line[n] << 16), even[n]);
                odd[n] = __builtin_fmaf(a1, of(line[n] & 0xFFFF0000u), odd[n]);
            }
        }
        float *sum = (float *)sums->line[m];
        for (int n = 0; n < 16; n++) sum[n] += even[n] + odd[n];
    }
    _mm_setcsr(mode);
}

static struct sigaction others;                      /* what the program wants done with SIGILL that is none of ours */
static int (*set_action)(int, const struct sigaction *, struct sigaction *);

/* In place of the C library's: the program (faulthandler does so) cannot take SIGILL from us. */
int sigaction(int number, const struct sigaction *new, struct sigaction *old) {
    if (!set_action) *(void **)&set_action = dlsym(RTLD_NEXT, "sigaction");
    if (number != SIGILL) return set_action(number, new, old);
    if (old) *old = others;
    if (new) others = *new;
    return 0;
}

/* One instruction C4 RXB.00010 W.vvvv.0.pp opcode ModRM [SIB] [disp]. Returns its length, 0 if it is none of ours. */
static int run(const uint8_t *code, greg_t *registers) {
    if (code[0] != 0xC4 || (code[1] & 0x1F) != 2 || (code[2] & 0x84) != 0) return 0;
    int pp = code[2] & 3, vvvv = ~(code[2] >> 3) & 15, opcode = code[3], modrm = code[4];
    int mod = modrm >> 6, reg = modrm >> 3 & 7, rm = modrm & 7, length = 5;
    if (mod == 3) {
        if (opcode == 0x49 && pp == 0) { configured = 0; return length; }                              /* tilerelease */
        if (!configured) return 0;
        if (opcode == 0x49 && pp == 3) { memset(&tiles[reg], 0, sizeof(tile)); return length; }          /* tilezero */
        if (opcode == 0x5C && pp == 2) { multiply_add(&tiles[reg], &tiles[rm], &tiles[vvvv]); return length; }
        return 0;
    }
    int extended_b = code[1] & 0x20 ? 0 : 8, extended_x = code[1] & 0x40 ? 0 : 8;
    uint64_t base = 0, index = 0;
    int has_base = 1, base_number = rm;
    if (rm == 4) {
        int sib = code[length++], number = (sib >> 3 & 7) + extended_x;
        base_number = sib & 7;
        if (number != 4) index = (uint64_t)registers[ORDER[number]] << (sib >> 6);
        if (base_number == 5 && mod == 0) has_base = 0;
    } else if (rm == 5 && mod == 0) {                /* relative to the next instruction */
        int32_t distance;
        memcpy(&distance, code + length, 4);
        length += 4;
        base = (uint64_t)(uintptr_t)(code + length) + (int64_t)distance;
        has_base = 0;
        mod = 0;
    }
    if (has_base) base = registers[ORDER[base_number + extended_b]];
    int32_t distance = 0;
    if (mod == 1) distance = (int8_t)code[length++];
    if (mod == 2 || (rm == 4 && !has_base)) {
        memcpy(&distance, code + length, 4);
        length += 4;
    }
    uint8_t *at = (uint8_t *)(uintptr_t)(base + (int64_t)distance);
    if (opcode == 0x49 && pp == 0) {                                                                     /* ldtilecfg */
        at += index;
        if (at[0] != 1 || at[1] != 0) return 0;
        for (int i = 0; i < 8; i++)
            if (((uint16_t *)(at + 16))[i] != 64 || at[48 + i] != 16) return 0;
        memset(tiles, 0, sizeof tiles);
        configured = 1;
        return length;
    }
    if (opcode != 0x4B || !configured || rm != 4) return 0;
    for (int r = 0; r < 16; r++) {
        if (pp == 3) memcpy(tiles[reg].line[r], at + r * index, 64);                                     /* tileloadd */
        else if (pp == 2) memcpy(at + r * index, tiles[reg].line[r], 64);                              /* tilestored */
        else return 0;
    }
    return length;
}

static void handler(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    int length = run((const uint8_t *)registers[REG_RIP], registers);
    (void)info;
    if (length) registers[REG_RIP] += length;
    else set_action(number, &others, NULL);          /* not ours: the instruction raises it once more */
}

__attribute__((constructor)) static void install(void) {
    struct sigaction action = {0};
    action.sa_sigaction = handler;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigaction(0, NULL, NULL);                        /* finds the C library's */
    set_action(SIGILL, &action, &others);
}

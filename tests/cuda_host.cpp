// Runs the kernels that cuda_host.h has made plain functions: the fibers, and the checks of their accesses to memory.
//
// Order of accesses, as CUDA promises it: two accesses of one block are ordered if a __syncthreads() is between them,
// two of one warp also by a __syncwarp(), two of one thread always; those of different blocks never. Two accesses to
// one byte that are not ordered, and of which one is a write, are a race, whatever order they happened to have here.
//
// The products of a warpgroup read shared memory through another path ("async proxy") than loads and stores: what a
// thread has written is there for them if this thread called fence.proxy.async behind the write and before the barrier.
#include "cuda_host.h"
#undef memcpy
#undef memset

#include <dlfcn.h>
#include <link.h>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>
#ifndef __x86_64__
#include <ucontext.h>
#endif
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

namespace {

const size_t STACK = 256 << 10;
const unsigned ALL = 0xffffffffu;
enum State { RUNS, AT_BARRIER, AT_WARP, IN_EXCHANGE, AT_GROUP, DONE };   // AT_WARP: in __syncwarp, which orders

struct Access { int block = -1, thread = 0, epoch = 0, warp_epoch = 0; bool atomic = false; };
struct Cell { int launch = -1, fences = 0; Access write, reads[2]; };   // of `unit` bytes; fences: of the writer
struct Range { uintptr_t start, end; Cell* cells; bool shared; std::vector<bool> gaps = {}; };   // gaps: of views

struct Fiber {
    void* sp = nullptr;
    char* stack = nullptr;
    State state = DONE;
    const void* where = nullptr;                                  // the barrier at which it waits
    int epoch = 0;
    unsigned mask = ALL;
    std::vector<int> fences;                                      // the epoch of each fence.proxy.async
    alignas(16) char value[64];                                   // what it brings to an exchange
#ifndef __x86_64__
    ucontext_t context;
#endif
};

std::vector<Fiber> fibers;
std::vector<int> warp_epochs;
std::vector<Range> ranges;                                        // arrays of the launch, then shared memory
std::string message;                                              // what has failed
dim3 grid, block_size, block, thread;
std::vector<uint64_t> shared_variables;                           // their places in the library, and sizes
int current, block_number, launch_number, n_threads, unit;
long blocks_begun;
bool failed, checks;
void (*body)(void**);
void** arguments;
char* dynamic_shared;
size_t dynamic_size;
Fiber scheduler;
size_t n_accesses;

// -- fibers -----------------------------------------------------------------------------------------------------------

#ifdef __x86_64__
extern "C" void cuda_host_switch(void** save, void* load);
asm(R"(
.text
.type cuda_host_switch, @function
cuda_host_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
void resume(Fiber& from, Fiber& to) { cuda_host_switch(&from.sp, to.sp); }
#else
void resume(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }
#endif

void run_thread() {
    body(arguments);
    fibers[current].state = DONE;
    resume(fibers[current], scheduler);
    abort();
}

void begin(Fiber& fiber) {
    if (!fiber.stack) fiber.stack = (char*)malloc(STACK);
    fiber.state = RUNS;
    fiber.epoch = 0;
    fiber.fences.clear();
#ifdef __x86_64__
    void** top = (void**)((uintptr_t)(fiber.stack + STACK) & ~(uintptr_t)15);
    *--top = nullptr;                                             // a function's stack begins 8 off a multiple of 16
    *--top = (void*)run_thread;
    fiber.sp = top - 6;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = STACK;
    makecontext(&fiber.context, run_thread, 0);
#endif
}

dim3 thread_of(int i) { return {i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y)}; }

void wait(State state) {
    fibers[current].state = state;
    resume(fibers[current], scheduler);
}

std::string line_of(const void* pc) {                             // "file+0x12": cuda_host.py finds the line
    Dl_info info;
    if (!pc || !dladdr(pc, &info)) return "?";
    char text[32];
    snprintf(text, sizeof text, "@%zx@", (size_t)((char*)pc - (char*)info.dli_fbase - 1));
    return text;
}

std::string name_of(int block_number, int thread) {
    dim3 t = thread_of(thread);
    std::string text = "thread " + std::to_string(t.x);
    if (block_size.y * block_size.z > 1) text += "," + std::to_string(t.y) + "," + std::to_string(t.z);
    return text + " of block " + std::to_string(block_number);
}

void fail(const std::string& what) {
    message = what;
    failed = true;
}

void report(const std::string& what) {                            // called by a thread, which ends here
    fail(what);
    resume(fibers[current], scheduler);                           // never to come back
}

void no_memory(int) {                                             // SIGSEGV, on the stack of the thread
    report(name_of(block_number, current) + " accesses an address where there is no memory");
}

void run_block(bool reverse) {
    blocks_begun++;
    int n_warps = (n_threads + 31) / 32;
    warp_epochs.assign(n_warps, 0);
    for (int i = 0; i < n_threads; i++) begin(fibers[i]);
    for (;;) {
        bool ran = false;
        for (int k = 0; k < n_threads && !failed; k++) {
            current = reverse ? n_threads - 1 - k : k;
            if (fibers[current].state != RUNS) continue;
            ran = true;
            thread = thread_of(current);
            resume(scheduler, fibers[current]);
        }
        if (failed) return;
        for (int warp = 0; warp < n_warps; warp++) {              // lanes that have all arrived go on
            int first = 32 * warp, last = first + 32 < n_threads ? first + 32 : n_threads, alike = 0;
            State state = fibers[first].state;
            for (int i = first; i < last; i++) alike += fibers[i].state == state;
            if (alike == last - first && (state == AT_WARP || state == IN_EXCHANGE)) {
                warp_epochs[warp] += state == AT_WARP;
                for (int i = first; i < last; i++) fibers[i].state = RUNS;
                ran = true;
            }
        }
        for (int first = 0; first + 128 <= n_threads; first += 128) {   // warpgroups, too
            int arrived = 0;
            for (int i = first; i < first + 128; i++) arrived += fibers[i].state == AT_GROUP;
            if (arrived < 128) continue;
            for (int i = first; i < first + 128; i++) fibers[i].state = RUNS;
            ran = true;
        }
        int done = 0, at_barrier = 0;
        for (int i = 0; i < n_threads; i++) {
            done += fibers[i].state == DONE;
            at_barrier += fibers[i].state == AT_BARRIER;
        }
        if (done == n_threads) return;
        if (at_barrier == n_threads) {
            for (int i = 1; checks && i < n_threads; i++)         // without checks -O2 may double a call
                if (fibers[i].where != fibers[0].where) {
                    std::string one = line_of(fibers[0].where), other = line_of(fibers[i].where);
                    return fail("two barriers at once: " + one + " and " + other);
                }
            for (int i = 0; i < n_threads; i++) {
                fibers[i].state = RUNS;
                fibers[i].epoch++;
            }
            continue;
        }
        if (ran) continue;
        int stuck = 0;
        while (fibers[stuck].state == DONE) stuck++;
        State state = fibers[stuck].state;
        std::string where = state == AT_GROUP ? "for its warpgroup" : "for its warp";
        if (state == AT_BARRIER) where = "at a barrier " + line_of(fibers[stuck].where);
        return fail(name_of(block_number, stuck) + " waits " + where + " that not all threads reach ("
                    + std::to_string(done) + " of " + std::to_string(n_threads) + " have ended)");
    }
}

// -- checks -----------------------------------------------------------------------------------------------------------

Range* find(uintptr_t address) {
    static size_t last = 0;
    if (last < ranges.size() && address >= ranges[last].start && address < ranges[last].end) return &ranges[last];
    for (size_t i = 0; i < ranges.size(); i++)
        if (address >= ranges[i].start && address < ranges[i].end) return &ranges[last = i];
    return nullptr;
}

bool on_stack_of(int i, uintptr_t address) {
    uintptr_t stack = (uintptr_t)fibers[i].stack;
    return address >= stack && address < stack + STACK;
}

std::vector<Range> read_only;

bool ordered(const Access& before, const Access& now) {
    if (before.block != now.block) return false;
    if (before.thread == now.thread || before.epoch < now.epoch) return true;
    return before.thread / 32 == now.thread / 32 && before.warp_epoch < now.warp_epoch;
}

bool conflict(const Access& before, const Access& now) {
    return before.block >= 0 && !ordered(before, now) && !(before.atomic && now.atomic);
}

void race(const char* what, const Access& before, const Access& now, const Range& range, size_t byte, const void* pc) {
    report(std::string("race in ") + (range.shared ? "shared memory" : "an array") + " at byte " + std::to_string(byte)
           + ": " + name_of(now.block, now.thread) + " " + what + " " + name_of(before.block, before.thread)
           + (range.shared ? ", with no barrier between " : " ") + line_of(pc));
}

void outside(uintptr_t address, int size, bool is_write, const void* pc) {
    for (int i = 0; i < n_threads; i++)
        if (on_stack_of(i, address))
            return report(name_of(block_number, current) + " accesses a variable of " + name_of(block_number, i) + " "
                          + line_of(pc));
    for (auto& r : read_only)
        if (address >= r.start && address + size <= r.end && !is_write) return;
    report(name_of(block_number, current) + (is_write ? " writes " : " reads ") + std::to_string(size)
           + " bytes outside of all arrays " + line_of(pc));
}

void check(uintptr_t address, int size, bool is_write, bool is_atomic, const void* pc) {
    if (!checks || on_stack_of(current, address)) return;
    n_accesses++;
    Range* range = find(address);
    if (!range) return outside(address, size, is_write, pc);
    auto refuse = [&](const char* what) {
        report(name_of(block_number, current) + (is_write ? " writes " : " reads ") + what + " " + line_of(pc));
    };
    if (address + size > range->end) return refuse("beyond the end of an array");
    if (address % size) return refuse((std::to_string(size) + " bytes at what is no multiple of it").c_str());
    if (size < unit) return refuse("fewer bytes than the smallest element of an array has: this is not followed");
    size_t first = address - range->start;
    for (int i = 0; i < size && !range->gaps.empty(); i++)
        if (range->gaps[first + i]) return refuse("outside of all arrays, between the rows of one");
    Access now;
    now.block = block_number, now.thread = current, now.epoch = fibers[current].epoch;
    now.warp_epoch = warp_epochs[current / 32], now.atomic = is_atomic;
    for (size_t i = first / unit; i * unit < first + size; i++) {
        Cell& cell = range->cells[i];
        if (cell.launch != launch_number || (range->shared && cell.write.block != block_number)) {
            if (range->shared && !is_write)
                return refuse(("shared memory that nothing has written, byte " + std::to_string(i * unit)).c_str());
            cell = Cell();
            cell.launch = launch_number;
        }
        if (conflict(cell.write, now)) {
            const char* what = is_write ? "writes what was written by" : "reads what was written by";
            return race(what, cell.write, now, *range, i * unit, pc);
        }
        if (is_write) {
            for (auto& read : cell.reads)
                if (conflict(read, now)) return race("writes what was read by", read, now, *range, i * unit, pc);
            cell.write = now;
            cell.fences = (int)fibers[current].fences.size();
            cell.reads[0] = cell.reads[1] = Access();
        } else {                                                  // two readers that are not ordered, of two warps
            Access &a = cell.reads[0], &b = cell.reads[1];        // if possible
            if (a.block < 0 || ordered(a, now)) a = now;
            else if (b.block < 0 || ordered(b, now) || b.thread / 32 == a.thread / 32) b = now;
        }
    }
}

// What memcpy and its relatives access: any address, any number of bytes; in the largest parts that are aligned.
void check_range(uintptr_t address, size_t size, bool is_write, const void* pc) {
    int part = 16;
    while (address % part || size % part) part /= 2;
    for (size_t i = 0; i < size; i += part) check(address + i, part, is_write, false, pc);
}

// A product of a warpgroup reads shared memory.
void check_product(uintptr_t address, int size, const void* pc) {
    check(address, size, false, false, pc);
    Range* range = checks ? find(address) : nullptr;
    size_t first = range ? address - range->start : 0;
    for (size_t i = first / unit; range && i * unit < first + size; i++) {
        const Cell& cell = range->cells[i];
        auto& fences = fibers[cell.write.thread].fences;
        bool fenced = cell.fences < (int)fences.size();
        if (fenced && (cell.write.thread == current || fences[cell.fences] < fibers[current].epoch)) continue;
        return report("a product reads shared memory that " + name_of(block_number, cell.write.thread)
                      + " has written, with no fence.proxy.async between write and barrier " + line_of(pc));
    }
}

int add_constants(dl_phdr_info* info, size_t, void* inside) {     // what the kernel's library has that is read only
    for (int i = 0; i < info->dlpi_phnum; i++) {
        auto& p = info->dlpi_phdr[i];
        uintptr_t start = info->dlpi_addr + p.p_vaddr, end = start + p.p_memsz;
        if (p.p_type != PT_LOAD || p.p_flags & PF_W) continue;
        bool ours = false;
        for (int j = 0; j < info->dlpi_phnum; j++) {
            auto& q = info->dlpi_phdr[j];
            uintptr_t s = info->dlpi_addr + q.p_vaddr;
            ours |= q.p_type == PT_LOAD && (uintptr_t)inside >= s && (uintptr_t)inside < s + q.p_memsz;
        }
        if (ours) read_only.push_back({start, end, nullptr, false});
    }
    return 0;
}

void add_range(uintptr_t start, uintptr_t size, bool shared) {
    if (size) ranges.push_back({start, start + size, (Cell*)calloc((size + unit - 1) / unit, sizeof(Cell)), shared});
}

// Arrays that overlap, as x and out of a kernel that works in place, are one range: a byte has one history.
void add_arrays(const uint64_t* arrays, int n_arrays) {
    struct Part { uintptr_t start, end; const unsigned char* belongs; };   // belongs: a byte for each, or null for all
    std::vector<Part> parts;
    for (int i = 0; i < n_arrays; i++, arrays += 3)
        if (arrays[1]) parts.push_back({arrays[0], arrays[0] + arrays[1], (const unsigned char*)arrays[2]});
    std::sort(parts.begin(), parts.end(), [](const Part& a, const Part& b) { return a.start < b.start; });
    for (size_t i = 0, first; i < parts.size();) {
        uintptr_t start = parts[i].start, end = parts[i].end;
        bool dense = true;
        for (first = i; i < parts.size() && parts[i].start < end; i++) {
            end = std::max(end, parts[i].end);
            dense = dense && !parts[i].belongs;
        }
        add_range(start, end - start, false);
        if (dense) continue;
        auto& gaps = ranges.back().gaps;
        gaps.assign(end - start, true);
        for (; first < i; first++)
            for (uintptr_t b = parts[first].start; b < parts[first].end; b++)
                if (!parts[first].belongs || parts[first].belongs[b - parts[first].start]) gaps[b - start] = false;
    }
}

}  // namespace

// -- called by kernels ------------------------------------------------------------------------------------------------

extern "C" {
dim3 cuda_host_thread() { return thread; }
dim3 cuda_host_block() { return block; }
dim3 cuda_host_block_size() { return block_size; }
dim3 cuda_host_grid_size() { return grid; }
void* cuda_host_dynamic_shared() { return dynamic_shared; }
void cuda_host_fail(const char* what) { report(what); }
long cuda_host_blocks_begun() { return blocks_begun; }
void cuda_host_check(const void* where, int size, int is_write, int is_atomic) {
    check((uintptr_t)where, size, is_write, is_atomic, __builtin_return_address(0));
}

void cuda_host_check_copy(void* to, const void* from, size_t size, const void* called_from) {
    if (from) check_range((uintptr_t)from, size, false, called_from);
    check_range((uintptr_t)to, size, true, called_from);
}

void cuda_host_barrier(const void* where) {
    fibers[current].where = where;
    wait(AT_BARRIER);
}

void cuda_host_warp_barrier(unsigned mask) {
    if (mask != ALL) report("a part of a warp is synchronized: use the mask of all lanes");
    if (n_threads % 32) report("a block whose threads are no multiple of 32 uses its warps");
    wait(AT_WARP);
}

void cuda_host_exchange(unsigned mask, const void* value, void* result, int size, int source) {
    if (mask != ALL) report("a part of a warp exchanges values: use the mask of all lanes");
    if (n_threads % 32) report("a block whose threads are no multiple of 32 exchanges values");
    memcpy(fibers[current].value, value, size);
    wait(IN_EXCHANGE);
    memcpy(result, fibers[(current & ~31) | source].value, size);
    wait(IN_EXCHANGE);
}

void cuda_host_group_barrier() {
    if (n_threads % 128) report("a block whose threads are no multiple of 128 uses its warpgroups");
    wait(AT_GROUP);
}

void cuda_host_proxy_fence() { fibers[current].fences.push_back(fibers[current].epoch); }
void cuda_host_check_product(const void* where, int size) {
    check_product((uintptr_t)where, size, __builtin_return_address(0));
}

// Calls that -fsanitize=thread puts before each access.
#define CALLED_FROM __builtin_return_address(0)
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_read1(void* p) { check((uintptr_t)p, 1, false, false, CALLED_FROM); }
void __tsan_read2(void* p) { check((uintptr_t)p, 2, false, false, CALLED_FROM); }
void __tsan_read4(void* p) { check((uintptr_t)p, 4, false, false, CALLED_FROM); }
void __tsan_read8(void* p) { check((uintptr_t)p, 8, false, false, CALLED_FROM); }
void __tsan_read16(void* p) { check((uintptr_t)p, 16, false, false, CALLED_FROM); }
void __tsan_write1(void* p) { check((uintptr_t)p, 1, true, false, CALLED_FROM); }
void __tsan_write2(void* p) { check((uintptr_t)p, 2, true, false, CALLED_FROM); }
void __tsan_write4(void* p) { check((uintptr_t)p, 4, true, false, CALLED_FROM); }
void __tsan_write8(void* p) { check((uintptr_t)p, 8, true, false, CALLED_FROM); }
void __tsan_write16(void* p) { check((uintptr_t)p, 16, true, false, CALLED_FROM); }
#define UNALIGNED(n) \
    void __tsan_unaligned_read##n(void* p) { check((uintptr_t)p, n, false, false, CALLED_FROM); } \
    void __tsan_unaligned_write##n(void* p) { check((uintptr_t)p, n, true, false, CALLED_FROM); } \
    void __tsan_volatile_read##n(void* p) { check((uintptr_t)p, n, false, false, CALLED_FROM); } \
    void __tsan_volatile_write##n(void* p) { check((uintptr_t)p, n, true, false, CALLED_FROM); }
UNALIGNED(1) UNALIGNED(2) UNALIGNED(4) UNALIGNED(8) UNALIGNED(16)
void __tsan_read_range(void* p, size_t n) { check_range((uintptr_t)p, n, false, CALLED_FROM); }
void __tsan_write_range(void* p, size_t n) { check_range((uintptr_t)p, n, true, CALLED_FROM); }

// Called by -fsanitize=bounds for an index outside of an array whose length the compiler knows, shared or of a thread.
struct Indexed { const char* file; unsigned line, column; };
void __ubsan_handle_out_of_bounds(const Indexed* where, unsigned long index) {
    std::string file = where->file;
    report(name_of(block_number, current) + " has index " + std::to_string((long)index) + " outside of an array ("
           + file.substr(file.rfind('/') + 1) + ":" + std::to_string(where->line) + ")");
}

// -- called by cuda_host.py -------------------------------------------------------------------------------------------

// Tells where the shared variables are that have a name: n pairs (offset in the library, bytes).
void cuda_host_shared(const uint64_t* variables, int n) { shared_variables.assign(variables, variables + 2 * n); }

// Runs `kernel` for all blocks, one after the other. `arrays` are n_arrays times (address, bytes, null or which of them
// belong to the array): what it may access, by no fewer than `smallest` bytes at a time. Of the blocks only the first
// and the last `ends` run. Returns 0, or 1 after an error, of which `error` gets the message.
int cuda_host_launch(void (*kernel)(void**), void** args, const unsigned* sizes, size_t shared, const uint64_t* arrays,
                     int n_arrays, int smallest, int check_accesses, int reverse, unsigned ends, char* error,
                     size_t room, size_t* accesses) {
    grid = {sizes[0], sizes[1], sizes[2]};
    block_size = {sizes[3], sizes[4], sizes[5]};
    body = kernel, arguments = args, checks = check_accesses, failed = false, n_accesses = 0, unit = smallest;
    n_threads = block_size.x * block_size.y * block_size.z;
    launch_number++;
    ranges.clear(), read_only.clear();
    if ((int)fibers.size() < n_threads) fibers.resize(n_threads);
    dynamic_shared = (char*)aligned_alloc(128, (shared + 127) / 128 * 128 + 128);
    dynamic_size = shared;
    if (checks) {
        Dl_info info;
        dladdr((void*)kernel, &info);
        add_arrays(arrays, n_arrays);
        add_range((uintptr_t)dynamic_shared, shared, true);
        for (size_t i = 0; i < shared_variables.size(); i += 2)
            add_range((uintptr_t)info.dli_fbase + shared_variables[i], shared_variables[i + 1], true);
        dl_iterate_phdr(add_constants, (void*)kernel);
    }
    struct sigaction ours = {}, before;
    ours.sa_handler = no_memory, ours.sa_flags = SA_NODEFER;
    sigaction(SIGSEGV, &ours, &before);
    size_t n_blocks = (size_t)grid.x * grid.y * grid.z;
    for (size_t k = 0; k < n_blocks && !failed; k++) {
        if (k == ends && n_blocks - k > ends) k = n_blocks - ends;
        size_t b = reverse ? n_blocks - 1 - k : k;
        block = {(unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y), (unsigned)(b / grid.x / grid.y)};
        block_number = (int)b;
        memset(dynamic_shared, 0xff, shared);
        run_block(reverse);
    }
    sigaction(SIGSEGV, &before, nullptr);
    for (auto& range : ranges) free(range.cells);
    ranges.clear();
    free(dynamic_shared);
    if (failed) snprintf(error, room, "%s", message.c_str());
    *accesses = n_accesses;
    return failed;
}
}

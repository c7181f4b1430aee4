/* Preloaded into a process on Linux, hides AVX-512 from all that asks the processor what it can do.

   Libraries ask with the instruction CPUID. Linux can make it fault for a thread and those that it starts
   (arch_prctl(2), ARCH_SET_CPUID, where /proc/cpuinfo has the flag cpuid_fault); the handler answers in its place,
   without the bits of AVX-512, AMX, and what VEX-encoded instructions have of AVX-512's. Bits: Intel, Software
   Developer's Manual, volume 2A, CPUID, leaf 7. */

#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(n) (1u << (n))

static void let_cpuid(int is_allowed) { syscall(SYS_arch_prctl, ARCH_SET_CPUID, is_allowed); }

static void answer(int signal_number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *code = (const uint8_t *)registers[REG_RIP];
    if (code[0] != 0x0f || code[1] != 0xa2) {  /* a fault of another kind: it comes again, and ends the process */
        signal(SIGSEGV, SIG_DFL);
        return;
    }
    uint32_t a = registers[REG_RAX], b, c = registers[REG_RCX], d, leaf = a, part = c;
    let_cpuid(1);
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    let_cpuid(0);
    if (leaf == 7 && part == 0) {
        b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31));
        c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));
        d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25));
    }
    if (leaf == 7 && part == 1) a &= ~(BIT(4) | BIT(5) | BIT(21));
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void begin(void) {
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &action, 0);
    let_cpuid(0);
}

// Asks what time it is and makes a call that its filter forbids (mkdirat), with the time as the sixth argument: no kernel looks
// at that one, and a report of the call has all six. With any argument it writes the time to stdout first, for who gets no
// report. No libc, so that nothing but this is forbidden.

#if defined(__x86_64__)
enum { WRITE = 1, EXIT = 60, CLOCK_GETTIME = 228, MKDIRAT = 258 };
#else
enum { WRITE = 64, EXIT = 93, CLOCK_GETTIME = 113, MKDIRAT = 34 };
#endif

enum { AT_FDCWD = -100, CLOCK_MONOTONIC = 1 };

static long call6(long number, long a, long b, long c, long f) {
#if defined(__x86_64__)
  long result;
  register long r10 __asm__("r10") = 0;
  register long r8 __asm__("r8") = 0;
  register long r9 __asm__("r9") = f;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
#elif defined(__aarch64__)
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = 0;
  register long x4 __asm__("x4") = 0;
  register long x5 __asm__("x5") = f;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
  return x0;
#else
#error "no system call for this machine yet"
#endif
}

/** What the kernel puts on the stack is below the frame pointer's place: argc is the first word. */
__attribute__((used, noreturn)) static void begin(const long *stack) {
  long time[2];
  call6(CLOCK_GETTIME, CLOCK_MONOTONIC, (long)time, 0, 0);
  long stamp = time[0] * 1000000000 + time[1];
  if (stack[0] > 1) call6(WRITE, 1, (long)&stamp, sizeof stamp, 0);
  call6(MKDIRAT, AT_FDCWD, (long)"/tmp/forbidden", 0700, stamp);
  // It was let through.
  call6(EXIT, 1, 0, 0, 0);
  __builtin_unreachable();
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n  mov %rsp, %rdi\n  and $-16, %rsp\n  call begin\n");
#else
__asm__(".globl _start\n_start:\n  mov x0, sp\n  bl begin\n");
#endif

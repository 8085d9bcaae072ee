// Makes system calls and prints what they answer. No C library: what its start needs would have to be allowed.
//
//   each FROM TO SKIP...      every number but those, with zeros: one line for each answer but -51 (EL2HLT), then "done"
//   x32 FROM TO               the same with the bit that marks the x32 ABI
//   i386 FROM TO              each number in a child, by int 0x80: one line for each child that ended, and how
//   call NUMBER ARG...        one call: its answer
//   born                      what the register of the sixth argument held when the program began
//   spin                      uses the processor for ever
//   fault                     writes to address 16
//   exec PATH HOW ...         execve (HOW 0) or execveat (HOW 1) of PATH, with a sixth argument of all ones
//
// Numbers are decimal or, after 0x, hexadecimal.

typedef unsigned long word;

#if defined(__x86_64__)
enum { WRITE = 1, EXIT_GROUP = 231, WAIT4 = 61, CLONE = 56, EXECVE = 59, EXECVEAT = 322 };

static long syscall6(word number, word a, word b, word c, word d, word e, word f) {
  register word r10 __asm__("r10") = d;
  register word r8 __asm__("r8") = e;
  register word r9 __asm__("r9") = f;
  long answer;
  __asm__ volatile("syscall"
                   : "=a"(answer)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return answer;
}

static int int80(int number) {
  int answer;
  __asm__ volatile("int $0x80"
                   : "=a"(answer)
                   : "a"(number), "b"(0), "c"(0), "d"(0), "S"(0), "D"(0)
                   : "r8", "r9", "r10", "r11", "memory");
  return answer;
}

__asm__(".globl _start\n_start:\n  xor %ebp, %ebp\n  mov %rsp, %rdi\n  mov %r9, %rsi\n  and $-16, %rsp\n  call start\n");
#elif defined(__aarch64__)
enum { WRITE = 64, EXIT_GROUP = 94, WAIT4 = 260, CLONE = 220, EXECVE = 221, EXECVEAT = 281 };

static long syscall6(word number, word a, word b, word c, word d, word e, word f) {
  register word x8 __asm__("x8") = number;
  register word x0 __asm__("x0") = a;
  register word x1 __asm__("x1") = b;
  register word x2 __asm__("x2") = c;
  register word x3 __asm__("x3") = d;
  register word x4 __asm__("x4") = e;
  register word x5 __asm__("x5") = f;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
  return (long)x0;
}

static int int80(int number) { return number; }

__asm__(".globl _start\n_start:\n  mov x0, sp\n  mov x1, x5\n  bl start\n");
#endif

static void finish(int status) {
  for (;;) syscall6(EXIT_GROUP, (word)status, 0, 0, 0, 0, 0);
}

static void print(const char *text) {
  word length = 0;
  while (text[length]) length++;
  syscall6(WRITE, 1, (word)text, length, 0, 0, 0);
}

static void print_number(long number) {
  char text[24], *at = text + sizeof text - 1;
  word rest = number < 0 ? -(word)number : (word)number;
  *at = 0;
  do *--at = (char)('0' + rest % 10);
  while (rest /= 10);
  if (number < 0) *--at = '-';
  print(at);
}

static word number_of(const char *text) {
  word number = 0, base = 10;
  if (text[0] == '0' && text[1] == 'x') text += 2, base = 16;
  for (; *text; text++) {
    word digit = (word)(*text <= '9' ? *text - '0' : *text - 'a' + 10);
    number = number * base + digit;
  }
  return number;
}

static int same(const char *a, const char *b) {
  while (*a && *a == *b) a++, b++;
  return *a == *b;
}

static void line(long number, const char *between, long answer) {
  print_number(number);
  print(between);
  print_number(answer);
  print("\n");
}

static void each(word from, word to, word bit, char **skip) {
  for (word number = from; number <= to; number++) {
    int skipped = 0;
    for (char **at = skip; *at; at++) skipped |= number_of(*at) == number;
    if (skipped) continue;
    long answer = syscall6(number | bit, 0, 0, 0, 0, 0, 0);
    if (answer != -51) line((long)number, " ", answer);
  }
  print("done\n");
}

static void i386(int from, int to) {
  for (int number = from; number <= to; number++) {
    int status = 0;
    long child = syscall6(CLONE, 17, 0, 0, 0, 0, 0);
    if (child == 0) {
      int80(number);
      finish(0);
    }
    syscall6(WAIT4, (word)child, (word)&status, 0, 0, 0, 0);
    line(number, status & 0x7f ? " signal " : " exit ", status & 0x7f ? status & 0x7f : status >> 8);
  }
}

__attribute__((used)) void start(word *stack, word sixth) {
  int count = (int)stack[0];
  char **args = (char **)(stack + 1);
  if (count < 2) finish(0);
  if (same(args[1], "each")) each(number_of(args[2]), number_of(args[3]), 0, args + 4);
  if (same(args[1], "x32")) each(number_of(args[2]), number_of(args[3]), 0x40000000, args + 4);
  if (same(args[1], "i386")) i386((int)number_of(args[2]), (int)number_of(args[3]));
  if (same(args[1], "born")) {
    print_number((long)sixth);
    print("\n");
  }
  if (same(args[1], "call")) {
    word a[6] = {0};
    for (int n = 3; n < count && n < 9; n++) a[n - 3] = number_of(args[n]);
    print_number(syscall6(number_of(args[2]), a[0], a[1], a[2], a[3], a[4], a[5]));
    print("\n");
  }
  if (same(args[1], "spin"))
    for (;;) __asm__ volatile("" ::: "memory");
  if (same(args[1], "fault")) *(volatile char *)16 = 1;
  if (same(args[1], "exec")) {
    char *argv[] = {args[2], 0};
    word ones = ~0UL;
    long answer = args[3][0] == '0' ? syscall6(EXECVE, (word)args[2], (word)argv, 0, 0, 0, ones)
                                    : syscall6(EXECVEAT, (word)-100, (word)args[2], (word)argv, 0, 0, ones);
    print_number(answer);
    print("\n");
  }
  finish(0);
}

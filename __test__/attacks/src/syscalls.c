// Makes every system call there could be, by an ABI, with arguments of one shape, each in a child of its own. Prints for
// each number `NUMBER OUTCOME`: `done`, the errno, the signal it ended with, or `blocked`.

#include "attack.h"

#define X32_BIT 0x40000000L

enum shape { ZERO, ONES, MINUS, POINTERS, GARBAGE };

static char memory[65536] __attribute__((aligned(4096)));

static void arguments_of(enum shape shape, long number, long *arguments) {
  unsigned long state = number * 2654435761UL + 12345;
  for (int index = 0; index < 6; index++) {
    state = state * 6364136223846793005UL + 1442695040888963407UL;
    switch (shape) {
      case ZERO: arguments[index] = 0; break;
      case ONES: arguments[index] = 1; break;
      case MINUS: arguments[index] = -1; break;
      case POINTERS: arguments[index] = (long)(memory + 4096 * index); break;
      case GARBAGE: arguments[index] = (long)(state >> (state >> 59)); break;
    }
  }
}

#ifdef __x86_64__
/** The 32-bit ABI, from 64-bit code. Arguments are cut to 32 bits; `memory` is below that in a static program. */
static long call32(long number, const long *a) {
  long result;
  __asm__ volatile(
      "push %%rbp\n\tmov %[six], %%ebp\n\tint $0x80\n\tpop %%rbp"
      : "=a"(result)
      : "a"(number), "b"(a[0]), "c"(a[1]), "d"(a[2]), "S"(a[3]), "D"(a[4]), [six] "r"((int)a[5])
      : "memory", "cc", "r8", "r9", "r10", "r11");
  return (int)result;
}
#else
static long call32(long number, const long *a) {
  (void)number;
  (void)a;
  return -ENOSYS;
}
#endif

static long call(const char *abi, long number, const long *a) {
  if (strcmp(abi, "int80") == 0) {
    long result = call32(number, a);
    if (result < 0 && result > -4096) {
      errno = -result;
      return -1;
    }
    return 0;
  }
  if (strcmp(abi, "x32") == 0) number |= X32_BIT;
  // The kernel looks at the lower half of the register only.
  if (strcmp(abi, "high") == 0) number |= 0x1234567800000000L;
  return syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]) == -1 ? -1 : 0;
}

/** It sleeps, and does not just wait for a processor. */
static int sleeps(pid_t pid) {
  char path[64], stat[256] = "";
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t length = read(fd, stat, sizeof stat - 1);
  close(fd);
  const char *end = length > 0 ? strrchr(stat, ')') : NULL;
  return end != NULL && end[2] == 'S';
}

static void attempt(const char *abi, enum shape shape, long number) {
  long arguments[6];
  arguments_of(shape, number, arguments);
  int answer[2];
  if (pipe2(answer, O_CLOEXEC | O_NONBLOCK) != 0) return;
  pid_t child = fork();
  if (child == 0) {
    // Where nobody minds what it does to its group, and with the answer where numbers that are made up do not lead.
    setpgid(0, 0);
    int to = fcntl(answer[1], F_DUPFD_CLOEXEC, 900);
    close_range(3, 899, 0);
    dup2(open("/dev/null", O_RDWR), 0);
    dup2(0, 1);
    dup2(0, 2);
    errno = 0;
    // Variables live on; a call that unmaps or forks takes what it needs along in registers.
    long result = call(abi, number, arguments);
    int outcome = result < 0 ? errno : 0;
    if (write(to, &outcome, sizeof outcome) != sizeof outcome) _exit(1);
    _exit(0);
  }
  close(answer[1]);
  int status = 0, blocked = 0;
  for (int waited = 0; waitpid(child, &status, WNOHANG | WUNTRACED) == 0; waited++) {
    usleep(waited < 20 ? 50 : 1000);
    if (waited > 2000 || (waited >= 35 && waited % 5 == 0 && sleeps(child))) {
      kill(child, SIGKILL);
      blocked = 1;
    }
  }
  if (WIFSTOPPED(status)) {
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
  }
  int outcome = 0;
  ssize_t answered = read(answer[0], &outcome, sizeof outcome);
  close(answer[0]);
  if (answered == sizeof outcome) {
    const char *name = outcome == 0 ? "done" : strerrorname_np(outcome);
    dprintf(1, "%ld %s\n", number, name == NULL ? "unknown" : name);
  } else if (blocked) dprintf(1, "%ld blocked\n", number);
  else if (WIFSIGNALED(status)) dprintf(1, "%ld SIG%s\n", number, sigabbrev_np(WTERMSIG(status)));
  else dprintf(1, "%ld ended\n", number);
}

int syscalls(int argc, char **argv) {
  static const char *const shapes[] = {"zero", "ones", "minus", "pointers", "garbage"};
  if (argc < 4) return 64;
  enum shape shape = ZERO;
  for (int index = 0; index < 5; index++) if (strcmp(argv[1], shapes[index]) == 0) shape = index;
  for (long number = atol(argv[2]); number < atol(argv[3]); number++) attempt(argv[0], shape, number);
  // To the end, whatever the calls did.
  dprintf(1, "end\n");
  return 0;
}

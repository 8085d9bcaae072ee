// Attacks on the kernel's privileged corners: the machine's state, namespaces, mounts, control groups, privileges. What
// would change the machine is asked for with arguments that are wrong: the kernel checks privileges first, so that any
// other answer than EPERM says that it would have done it.

#include "attack.h"

#include <dirent.h>
#include <ftw.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <linux/perf_event.h>
#include <linux/securebits.h>
#include <sys/fanotify.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <termios.h>

/** Counts any answer but a refusal as a success: the rest of the arguments is wrong on purpose. */
static long past_the_check(long result) {
  if (result >= 0) return result;
  return errno == EPERM || errno == EACCES || errno == ENOSYS ? -1 : 0;
}

static long set_clock(void) {
  struct timex wrong = {.modes = ADJ_TICK, .tick = 1};
  return past_the_check(adjtimex(&wrong));
}

/** The time zone to what it is. */
static long set_zone(void) {
  struct timezone zone;
  if (syscall(SYS_gettimeofday, NULL, &zone) != 0) return -1;
  return syscall(SYS_settimeofday, NULL, &zone);
}

static long load_program(void) {
  static const unsigned long long code[] = {0x00000000000000b7, 0x0000000000000095};
  union bpf_attr attributes = {.prog_type = BPF_PROG_TYPE_SOCKET_FILTER,
                               .insn_cnt = 2,
                               .insns = (unsigned long)code,
                               .license = (unsigned long)"GPL"};
  return syscall(SYS_bpf, BPF_PROG_LOAD, &attributes, sizeof attributes);
}

static long count_cycles(void) {
  struct perf_event_attr attributes = {.type = PERF_TYPE_SOFTWARE, .size = sizeof attributes};
  attributes.config = PERF_COUNT_SW_CPU_CLOCK;
  return syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0);
}

static long ring(void) {
  unsigned parameters[30] = {0};
  return syscall(SYS_io_uring_setup, 4, parameters);
}

static long open_handle(void) {
  struct {
    struct file_handle handle;
    char bytes[64];
  } found = {.handle = {.handle_bytes = sizeof found.bytes}};
  int mount, root = open("/", O_RDONLY | O_DIRECTORY);
  if (name_to_handle_at(AT_FDCWD, "/usr", &found.handle, &mount, 0) != 0) return -1;
  return past_the_check(open_by_handle_at(root, &found.handle, O_RDONLY));
}

static long tell_terminal(unsigned long request) {
  int fd = open("/dev/ptmx", O_RDWR | O_NOCTTY);
  char argument[16] = {'x'};
  if (fd < 0) return -1;
  return syscall(SYS_ioctl, fd, request, argument);
}

/** Types into a terminal of one's own, the controlling one. */
static long type(unsigned long request) {
  char name[64];
  int master = open("/dev/ptmx", O_RDWR | O_NOCTTY), unlock = 0, number;
  if (master < 0 || ioctl(master, TIOCSPTLCK, &unlock) != 0 || ioctl(master, TIOCGPTN, &number) != 0) return -1;
  snprintf(name, sizeof name, "/dev/pts/%d", number);
  setsid();
  int fd = open(name, O_RDWR);
  if (fd < 0 || ioctl(fd, TIOCSCTTY, 0) != 0) return -1;
  return syscall(SYS_ioctl, fd, request, "x");
}

static long share(void) {
  char text[32];
  snprintf(text, sizeof text, "%d", getpid());
  return syscall(SYS_add_key, "user", text, "x", 1, KEY_SPEC_USER_KEYRING);
}

/** What only the machine's administrator may do. */
static void machine(void) {
  TRY("clock", set_clock());
  TRY("time-zone", set_zone());
  TRY("reboot", past_the_check(syscall(SYS_reboot, 0, 0, 0, NULL)));
  TRY("module", past_the_check(syscall(SYS_init_module, NULL, 0, "")));
  TRY("module-fd", past_the_check(syscall(SYS_finit_module, -1, "", 0)));
  TRY("module-remove", past_the_check(syscall(SYS_delete_module, "nestbox_no_such_module", O_NONBLOCK)));
  TRY("kexec", past_the_check(syscall(SYS_kexec_load, 0, 0, NULL, 0xff00)));
  TRY("swap-on", past_the_check(swapon("/nonexistent/swap", 0)));
  TRY("swap-off", past_the_check(swapoff("/nonexistent/swap")));
  TRY("accounting", past_the_check(acct("/nonexistent/acct")));
  TRY("ports", iopl(3));
  TRY("port", ioperm(0x80, 1, 1));
  TRY("log", syscall(SYS_syslog, 3, (char[64]){0}, 64));
  TRY("quota", past_the_check(syscall(SYS_quotactl, 0x80000100, "/dev/nonexistent", 0, NULL)));
  TRY("nice", setpriority(PRIO_PROCESS, 0, -20));
  TRY("real-time", sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){1}));
  TRY("lock-memory", setrlimit(RLIMIT_MEMLOCK, &(struct rlimit){RLIM_INFINITY, RLIM_INFINITY}));
  TRY("oom", put("/proc/self/oom_score_adj", "-1000"));
  TRY("handle", open_handle());
}

/** Large interfaces, open to everybody on many machines. */
static void interfaces(void) {
  TRY("bpf", load_program());
  TRY("perf", count_cycles());
  TRY("userfaultfd", syscall(SYS_userfaultfd, 1));
  TRY("io-uring", ring());
  TRY("add-key", share());
  TRY("keyring", syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_USER_KEYRING, 1));
  TRY("persistent-keyring", syscall(SYS_keyctl, KEYCTL_GET_PERSISTENT, -1, KEY_SPEC_PROCESS_KEYRING));
  TRY("fanotify", syscall(SYS_fanotify_init, FAN_CLASS_NOTIF | FAN_REPORT_FID, 0));
  TRY("ldt", syscall(SYS_modify_ldt, 0, (char[64]){0}, 64));
  TRY("personality", personality(ADDR_COMPAT_LAYOUT | READ_IMPLIES_EXEC));
  TRY("memory-policy", syscall(SYS_set_mempolicy, 0, NULL, 0));
  TRY("TIOCSETD", tell_terminal(TIOCSETD));
  TRY("TIOCSTI", type(TIOCSTI));
  TRY("TIOCSTI-high", type(0xdeadbeef00000000 | TIOCSTI));
  TRY("TIOCLINUX", tell_terminal(TIOCLINUX));
  TRY("TIOCLINUX-high", tell_terminal(0xdeadbeef00000000 | TIOCLINUX));
}

static long clone_with(unsigned long flags) {
  long child = syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, NULL);
  if (child == 0) _exit(0);
  return child;
}

static long clone3_with(unsigned long long flags) {
  unsigned long long arguments[8] = {flags, 0, 0, 0, SIGCHLD};
  long child = syscall(SYS_clone3, arguments, sizeof arguments);
  if (child == 0) _exit(0);
  return child;
}

/** A namespace of each kind, by each of the calls that make one, alone and with a user namespace to be root in. */
static void namespaces(void) {
  static const struct {
    const char *name;
    unsigned flag;
  } kinds[] = {
      {"user", CLONE_NEWUSER}, {"mnt", CLONE_NEWNS},   {"pid", CLONE_NEWPID},       {"net", CLONE_NEWNET},
      {"ipc", CLONE_NEWIPC},   {"uts", CLONE_NEWUTS},  {"cgroup", CLONE_NEWCGROUP}, {"time", 0x80},
  };
  char name[64];
  for (size_t index = 0; index < sizeof kinds / sizeof kinds[0]; index++) {
    unsigned flag = kinds[index].flag;
    snprintf(name, sizeof name, "unshare-%s", kinds[index].name);
    TRY(name, unshare(flag));
    snprintf(name, sizeof name, "clone-%s", kinds[index].name);
    if (flag != 0x80) TRY(name, clone_with(flag));
    snprintf(name, sizeof name, "clone3-%s", kinds[index].name);
    TRY(name, clone3_with(flag));
    snprintf(name, sizeof name, "user-and-%s", kinds[index].name);
    if (flag != CLONE_NEWUSER) TRY(name, unshare(CLONE_NEWUSER | flag));
  }
  TRY("clone3-nothing", clone3_with(0));
}

/** The first process in namespaces of its own, with all the power that there is in them; answers in it. */
static void into_namespaces(int more) {
  tell("unshare", become_root_inside(more));
  pid_t child = fork();
  if (child > 0) {
    waitpid(child, NULL, 0);
    _exit(0);
  }
}

/** Control groups: found, mounted, and made to run a program of ours when they are empty (CVE-2022-0492). */
static void cgroups(void) {
  char line[4096];
  FILE *mounts = fopen("/proc/self/mountinfo", "re");
  while (mounts != NULL && fgets(line, sizeof line, mounts) != NULL) {
    char point[512], *dash = strstr(line, " - ");
    if (dash == NULL || strncmp(dash + 3, "cgroup", 6) != 0) continue;
    if (sscanf(line, "%*s %*s %*s %*s %511s", point) == 1) dprintf(1, "mounted-%s done\n", point);
  }
  // What a namespace of its own lets it mount is at most what its own part of the hierarchy is; and there it must not
  // be able to write. Nothing is written, so that nothing happens outside. Each attempt starts anew.
  if (begin("cgroup2")) {
    into_namespaces(CLONE_NEWCGROUP);
    mkdir("/tmp/cgroup", 0755);
    tell("mount-cgroup2", mount("none", "/tmp/cgroup", "cgroup2", 0, NULL));
    tell("procs", can_open("/tmp/cgroup/cgroup.procs", O_WRONLY));
    tell("subtree", can_open("/tmp/cgroup/cgroup.subtree_control", O_WRONLY));
    tell("make", access("/tmp/cgroup", W_OK));
    _exit(0);
  }
  static const char *const controllers[] = {"memory", "devices", "cpu", "rdma"};
  for (size_t index = 0; index < sizeof controllers / sizeof controllers[0]; index++) {
    if (begin("cgroup1")) {
      into_namespaces(CLONE_NEWCGROUP);
      mkdir("/tmp/cgroup", 0755);
      tell("mount-cgroup1", mount("none", "/tmp/cgroup", "cgroup", 0, controllers[index]));
      tell("release-agent", can_open("/tmp/cgroup/release_agent", O_WRONLY));
      tell("notify", can_open("/tmp/cgroup/notify_on_release", O_WRONLY));
      _exit(0);
    }
  }
}

static long raise_ambient(void) { return prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SYS_ADMIN, 0, 0); }

static long set_capabilities(void) {
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct all[2] = {{~0U, ~0U, ~0U}, {0x1ff, 0x1ff, 0x1ff}};
  return syscall(SYS_capset, &header, all);
}

/** More than one has. */
static void privileges(void) {
  TRY("setuid-0", setuid(0));
  TRY("setgid-0", setgid(0));
  TRY("setresuid-nobody", setresuid(65534, 65534, 65534));
  TRY("setfsuid-0", syscall(SYS_setfsuid, 0) >= 0 && syscall(SYS_setfsuid, -1) == 0 ? 0 : (errno = EPERM, -1));
  TRY("setgroups", syscall(SYS_setgroups, 1, (gid_t[]){0}));
  TRY("capset", set_capabilities());
  TRY("ambient", raise_ambient());
  TRY("securebits", prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0));
  TRY("new-privileges", prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0));
  TRY("unfilter", prctl(PR_SET_SECCOMP, 0, 0, 0, 0));
  TRY("raise-processes", setrlimit(RLIMIT_NPROC, &(struct rlimit){100000, 100000}));
  TRY("raise-files", setrlimit(RLIMIT_NOFILE, &(struct rlimit){100000, 100000}));
  TRY("raise-size", setrlimit(RLIMIT_FSIZE, &(struct rlimit){RLIM_INFINITY, RLIM_INFINITY}));
  TRY("raise-core", setrlimit(RLIMIT_CORE, &(struct rlimit){RLIM_INFINITY, RLIM_INFINITY}));
}

static int count_writable, count_files;

static int try_to_write(const char *path, const struct stat *status, int kind, struct FTW *walk) {
  (void)status;
  (void)walk;
  if (kind == FTW_D || kind == FTW_DNR) return 0;
  // Opening is what is checked; nothing is written, so nothing happens outside either.
  count_files++;
  int fd = open(path, O_WRONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) return 0;
  close(fd);
  count_writable++;
  dprintf(1, "write-%s done\n", path);
  return 0;
}

/** Every file below a directory that can be opened for writing. */
static void writable(const char *directory) {
  nftw(directory, try_to_write, 16, FTW_PHYS | FTW_MOUNT);
  dprintf(1, "files %d\nwritable %d\n", count_files, count_writable);
}

/** What of init's in proc can be opened for writing, written. */
static void tune_init(void) {
  TRY("attr-current", put("/proc/1/attr/current", "attack"));
  TRY("attr-exec", put("/proc/1/attr/exec", "attack"));
  TRY("attr-keycreate", put("/proc/1/attr/keycreate", "attack"));
  TRY("slack", put("/proc/1/timerslack_ns", "1000000000"));
  TRY("oom", put("/proc/1/oom_score_adj", "1000"));
  TRY("filter", put("/proc/1/coredump_filter", "0"));
  TRY("clear-refs", put("/proc/1/clear_refs", "1"));
  TRY("uid-map", put("/proc/1/uid_map", "0 0 1"));
  TRY("autogroup", put("/proc/1/autogroup", "19"));
  TRY("comm", put("/proc/1/comm", "attack"));
}

/** As many bytes as are read of what the kernel tells about the machine. */
static void secrets(void) {
  static const char *const names[] = {"/proc/kcore",     "/proc/keys",       "/proc/timer_list", "/proc/kmsg",
                                      "/proc/kpagecount", "/proc/kpageflags", "/proc/slabinfo",   "/proc/vmallocinfo",
                                      "/proc/key-users",  "/proc/sched_debug", "/dev/mem",         "/dev/kmsg",
                                      "/proc/latency_stats", "/sys/firmware",  "/sys/kernel/debug"};
  char name[64], content[64];
  for (size_t index = 0; index < sizeof names / sizeof names[0]; index++) {
    int fd = open(names[index], O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, content, sizeof content);
    snprintf(name, sizeof name, "read-%s", names[index]);
    if (length == 0) errno = ENODATA;
    tell(name, length > 0 ? 0 : -1);
    if (fd >= 0) close(fd);
  }
}

/** Dies with a core file, as large as may be. */
static void crash(void) {
  struct rlimit limit;
  getrlimit(RLIMIT_CORE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_CORE, &limit);
  prctl(PR_SET_DUMPABLE, 1);
  tell("pattern", can_open("/proc/sys/kernel/core_pattern", O_WRONLY));
  abort();
}

int kernel(int argc, char **argv) {
  const char *what = argv[0];
  if (strcmp(what, "machine") == 0) machine();
  else if (strcmp(what, "interfaces") == 0) interfaces();
  else if (strcmp(what, "namespaces") == 0) namespaces();
  else if (strcmp(what, "cgroups") == 0) cgroups();
  else if (strcmp(what, "privileges") == 0) privileges();
  else if (strcmp(what, "writable") == 0 && argc > 1) writable(argv[1]);
  else if (strcmp(what, "secrets") == 0) secrets();
  else if (strcmp(what, "tune-init") == 0) tune_init();
  else if (strcmp(what, "crash") == 0) crash();
  else return 64;
  return 0;
}

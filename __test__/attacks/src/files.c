// Attacks by way of files: paths and descriptors that lead out, programs that run while they are written to, devices,
// set-user-ID programs, locks and watches.

#include "attack.h"
#include "reach.h"

#include <dirent.h>
#include <linux/capability.h>
#include <linux/openat2.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

/** Every way that is known for a path to lead out of a root, to a file of the host with a token in it. */
static void paths(const char *target, const char *token) {
  static const char *const prefixes[] = {
      "",
      "/" UP,
      UP,
      "/proc/self/root",
      "/proc/self/root/" UP,
      "/proc/self/cwd/" UP,
      "/proc/thread-self/root/" UP,
      "/proc/1/root",
      "/proc/1/cwd",
      "/proc/1/root/" UP,
      "/proc/2/root",
      "/proc/1/task/1/root",
      "/proc/1/root/realroot",
      "/realroot",
      "/oldroot",
      "/old_root",
      "/put_old",
      "/staging",
      "/dev/fd/" UP,
      "/dev/pts/" UP,
      "/dev/shm/" UP,
      "/tmp/" UP,
      "/proc/sys/" UP,
      "/proc/1/map_files/" UP,
      "/proc/self/ns/mnt/" UP,
  };
  char path[4096], name[128];
  for (size_t index = 0; index < sizeof prefixes / sizeof prefixes[0]; index++) {
    snprintf(path, sizeof path, "%s%s", prefixes[index], target);
    snprintf(name, sizeof name, "path-%s", prefixes[index]);
    TRY(name, reads(AT_FDCWD, path, token));
  }
  from_descriptors(target, token);
  for (int process = 1; process < 4; process++) {
    for (int fd = 0; fd < 64; fd++) {
      snprintf(path, sizeof path, "/proc/%d/fd/%d/" UP "%s", process, fd, target);
      if (reads(AT_FDCWD, path, token) == 0) dprintf(1, "process-%d-fd-%d done\n", process, fd);
    }
  }
}

/** What magic links give that names do not: everything that is mapped or open, of oneself and of init. */
static void magic(void) {
  static const char *const directories[] = {"/proc/1/fd", "/proc/1/map_files", "/proc/1/task/1/fd", "/proc/1/ns"};
  char path[512];
  for (size_t index = 0; index < sizeof directories / sizeof directories[0]; index++) {
    DIR *directory = opendir(directories[index]);
    tell(directories[index], directory == NULL ? -1 : 0);
    if (directory == NULL) continue;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
      if (entry->d_name[0] == '.') continue;
      snprintf(path, sizeof path, "%s/%.200s", directories[index], entry->d_name);
      if (can_open(path, O_RDONLY) == 0) dprintf(1, "%s done\n", path);
    }
    closedir(directory);
  }
}

/** Writing to a program that runs: the one at `exe`, a process' magic link or a path. It would also get a new name. */
static void overwrite(const char *exe, const char *new_name) {
  char link[64];
  struct open_how how = {.flags = O_PATH | O_CLOEXEC};
  TRY("write", can_open(exe, O_WRONLY));
  TRY("truncate", can_open(exe, O_WRONLY | O_TRUNC));
  TRY("append", can_open(exe, O_WRONLY | O_APPEND));
  TRY("chmod", chmod(exe, 0777));
  int program = syscall(SYS_openat2, AT_FDCWD, exe, &how, sizeof how);
  tell("path", program);
  if (program < 0) return;
  // The way of CVE-2019-5736: hold it, and open it for writing as soon as nobody runs it.
  snprintf(link, sizeof link, "/proc/self/fd/%d", program);
  TRY("reopen", can_open(link, O_WRONLY));
  TRY("resize", truncate(link, 0));
  TRY("link", linkat(AT_FDCWD, link, AT_FDCWD, new_name, AT_SYMLINK_FOLLOW));
  TRY("link-fd", linkat(program, "", AT_FDCWD, new_name, AT_EMPTY_PATH));
}

static long make_device(const char *path, mode_t kind, unsigned major, unsigned minor) {
  unlink(path);
  if (mknod(path, kind | 0666, makedev(major, minor)) != 0) return -1;
  long result = can_open(path, O_RDONLY);
  int failed = errno;
  unlink(path);
  errno = failed;
  return result;
}

/** Device nodes: made where one may write, and opened. `directory` is such a place. */
static void devices(const char *directory) {
  char path[512];
  snprintf(path, sizeof path, "%s/attack-device", directory);
  TRY("zero", make_device(path, S_IFCHR, 1, 5));
  TRY("mem", make_device(path, S_IFCHR, 1, 1));
  TRY("kmsg", make_device(path, S_IFCHR, 1, 11));
  TRY("disk", make_device(path, S_IFBLK, 254, 0));
  TRY("loop", make_device(path, S_IFBLK, 7, 0));
}

/** Who one is, and what one may: to be run from a file with the set-user-ID bit. */
static void ids(void) {
  static char status[8192];
  int fd = open("/proc/self/status", O_RDONLY);
  ssize_t length = fd < 0 ? 0 : read(fd, status, sizeof status - 1);
  status[length < 0 ? 0 : length] = 0;
  const char *effective = strstr(status, "CapEff:\t");
  dprintf(1, "euid %u\negid %u\ncapabilities %.16s\n", geteuid(), getegid(), effective == NULL ? "" : effective + 8);
}

enum way { CHMOD, FCHMOD, FCHMODAT, FCHMODAT2, CREAT, MKNOD, MKNODAT, OPEN, OPENAT, OPENAT2, TMPFILE, MKDIR };

/** A file of this mode, made so or changed; 0 or -1. It stays where it is. */
static long with_mode(const char *directory, const char *name, enum way way, mode_t mode) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  struct open_how how = {.flags = O_CREAT | O_RDWR, .mode = mode};
  int fd = -1;
  umask(0);
  if (way <= FCHMODAT2 && (fd = open(path, O_CREAT | O_RDWR, 0600)) < 0) return -1;
  long result = -1;
  switch (way) {
#ifdef SYS_chmod
    case CHMOD: result = syscall(SYS_chmod, path, mode); break;
    case CREAT: result = fd = syscall(SYS_creat, path, mode); break;
    case MKNOD: result = syscall(SYS_mknod, path, S_IFREG | mode, 0); break;
    case OPEN: result = fd = syscall(SYS_open, path, O_CREAT | O_RDWR, mode); break;
#else
    case CHMOD: case CREAT: case MKNOD: case OPEN: errno = ENOSYS; break;
#endif
    case FCHMOD: result = syscall(SYS_fchmod, fd, mode); break;
    case FCHMODAT: result = syscall(SYS_fchmodat, AT_FDCWD, path, mode); break;
    case FCHMODAT2: result = syscall(452, AT_FDCWD, path, mode, 0); break;
    case MKNODAT: result = syscall(SYS_mknodat, AT_FDCWD, path, S_IFREG | mode, 0); break;
    case OPENAT: result = fd = syscall(SYS_openat, AT_FDCWD, path, O_CREAT | O_RDWR, mode); break;
    case OPENAT2: result = fd = syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how); break;
    case TMPFILE: result = fd = syscall(SYS_openat, AT_FDCWD, directory, O_TMPFILE | O_RDWR, mode); break;
    case MKDIR: result = syscall(SYS_mkdirat, AT_FDCWD, path, mode); break;
  }
  struct stat found;
  if (result < 0 || (fd < 0 ? stat(path, &found) : fstat(fd, &found)) != 0) return -1;
  errno = ENODATA;
  return (found.st_mode & 07777) == mode ? 0 : -1;
}

/** By every call that has a mode. */
static void modes(const char *directory, mode_t mode) {
  static const char *const names[] = {[CHMOD] = "chmod",     [FCHMOD] = "fchmod",   [FCHMODAT] = "fchmodat",
                                      [FCHMODAT2] = "fchmodat2", [CREAT] = "creat",   [MKNOD] = "mknod",
                                      [MKNODAT] = "mknodat", [OPEN] = "open",       [OPENAT] = "openat",
                                      [OPENAT2] = "openat2", [TMPFILE] = "tmpfile", [MKDIR] = "mkdir"};
  for (enum way way = CHMOD; way <= MKDIR; way += 1) TRY(names[way], with_mode(directory, names[way], way, mode));
}

/** Gives a program file a capability (of changing owners), as setcap(8) does. */
static long endow(const char *path) {
  unsigned value[5] = {VFS_CAP_REVISION_2 | VFS_CAP_FLAGS_EFFECTIVE, 1 << CAP_CHOWN, 0, 0, 0};
  return setxattr(path, "security.capability", value, sizeof value, 0);
}

/** Swaps two names over and over, until it is killed. */
static void flip(const char *one, const char *other) {
  tell("flip", renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE));
  for (int round = 0;; round++) {
    renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE);
    // Each name is there for a while, too, and others want the processor.
    if (round % 3 == 0) usleep(30);
  }
}

static long lease(const char *path, int kind) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  return fd < 0 ? -1 : fcntl(fd, F_SETLEASE, kind);
}

static long lock(const char *path, int exclusive) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  return fd < 0 ? -1 : flock(fd, (exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB);
}

/** Holds a lock on a file that others see, until it is killed. */
static void hold(const char *path) {
  int fd = open(path, O_RDONLY);
  tell("lock", flock(fd, LOCK_EX | LOCK_NB));
  for (int second = 0; second < 60; second++) usleep(1000000);
}

/** Holds a lease on it. */
static void hold_lease(const char *path) {
  int fd = open(path, O_RDONLY);
  // Breaking it raises SIGIO, which would end us.
  signal(SIGIO, SIG_IGN);
  tell("lease", fcntl(fd, F_SETLEASE, F_RDLCK));
  for (int second = 0; second < 60; second++) usleep(1000000);
}

/** Tells what is done to a file by others, until it has been opened and read once. */
static void watch(const char *path) {
  int fd = inotify_init1(IN_CLOEXEC);
  tell("watch", inotify_add_watch(fd, path, IN_OPEN | IN_MODIFY | IN_ATTRIB));
  char event[4096];
  alarm(20);
  if (read(fd, event, sizeof event) > 0) dprintf(1, "event done\n");
}

/** Opened, so that its seals are all there is between it and whoever has it. */
static long change(const char *path, int how) {
  int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return -1;
  if (how == 0) return pwrite(fd, "changed", 7, 0);
  if (how == 1) return ftruncate(fd, 1);
  if (how == 2) return fallocate(fd, 0, 0, 1 << 24);
  if (how == 3) return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096);
  if (how == 4) return fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK);
  char *bytes = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (bytes == MAP_FAILED) return -1;
  bytes[0] = 'x';
  return 0;
}

/** Everything that changes a memfd that nobody runs; the attempts that leave least of it last. */
static void rewrite(const char *path) {
  char own[64];
  if (strcmp(path, "own") == 0) {
    int fd = memfd_create("own", MFD_ALLOW_SEALING);
    if (ftruncate(fd, 1 << 20) != 0) return;
    snprintf(own, sizeof own, "/proc/self/fd/%d", fd);
    path = own;
  }
  TRY("write", change(path, 0));
  TRY("map", change(path, 5));
  TRY("punch", change(path, 3));
  TRY("grow", change(path, 2));
  TRY("shrink", change(path, 1));
  TRY("seal", change(path, 4));
}

int files(int argc, char **argv) {
  const char *what = argv[0];
  if (strcmp(what, "paths") == 0 && argc > 2) paths(argv[1], argv[2]);
  else if (strcmp(what, "magic") == 0) magic();
  else if (strcmp(what, "descriptors") == 0 && argc > 2) from_descriptors(argv[1], argv[2]);
  else if (strcmp(what, "rewrite") == 0 && argc > 1) rewrite(argv[1]);
  else if (strcmp(what, "overwrite") == 0 && argc > 2) overwrite(argv[1], argv[2]);
  else if (strcmp(what, "devices") == 0 && argc > 1) devices(argv[1]);
  else if (strcmp(what, "open") == 0 && argc > 1) TRY("open", can_open(argv[1], O_RDONLY));
  else if (strcmp(what, "ids") == 0) ids();
  else if (strcmp(what, "modes") == 0 && argc > 2) modes(argv[1], strtoul(argv[2], NULL, 8));
  else if (strcmp(what, "syncs") == 0) {
    // Of nothing that is open: whoever does not look does not say so.
    TRY("syncfs", syncfs(-1));
    TRY("fsync", fsync(-1));
    TRY("fdatasync", fdatasync(-1));
  }
  else if (strcmp(what, "locks") == 0 && argc > 1) {
    TRY("flock-shared", lock(argv[1], 0));
    TRY("flock", lock(argv[1], 1));
    TRY("lease-read", lease(argv[1], F_RDLCK));
    TRY("lease-write", lease(argv[1], F_WRLCK));
  } else if (strcmp(what, "hold") == 0 && argc > 1) hold(argv[1]);
  else if (strcmp(what, "endow") == 0 && argc > 1) tell("endow", endow(argv[1]));
  else if (strcmp(what, "flip") == 0 && argc > 2) flip(argv[1], argv[2]);
  else if (strcmp(what, "hold-lease") == 0 && argc > 1) hold_lease(argv[1]);
  else if (strcmp(what, "watch") == 0 && argc > 1) watch(argv[1]);
  else if (strcmp(what, "seals") == 0 && argc > 1) {
    int fd = open(argv[1], O_RDONLY);
    dprintf(1, "seals %d\n", fd < 0 ? -1 : fcntl(fd, F_GET_SEALS));
  } else return 64;
  return 0;
}

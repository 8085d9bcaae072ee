// The program of the attack suite: tries what a sandboxee must not be able to do. `attack FAMILY ATTACK [ARGUMENTS]`.
// Each attempt is one line on stdout: its name, then `done`, the errno, or the signal that ended it. It says what
// happened and judges nothing: whether an attempt has to succeed (outside) or to fail (inside) is for the tests to say.

#include "attack.h"

void tell(const char *what, long result) {
  if (result >= 0) dprintf(1, "%s done\n", what);
  else dprintf(1, "%s %s\n", what, strerrorname_np(errno) != NULL ? strerrorname_np(errno) : "unknown");
}

int begin(const char *what) {
  pid_t child = fork();
  if (child < 0) {
    tell(what, -1);
    return 0;
  }
  if (child == 0) {
    alarm(5);
    return 1;
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
  if (WIFSIGNALED(status)) dprintf(1, "%s SIG%s\n", what, sigabbrev_np(WTERMSIG(status)));
  return 0;
}

void finish(const char *what, long result) {
  tell(what, result);
  _exit(0);
}

int put(const char *path, const char *text) {
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  int result = write(fd, text, strlen(text)) < 0 ? -1 : 0;
  int failed = errno;
  close(fd);
  errno = failed;
  return result;
}

long can_open(const char *path, int flags) {
  int fd = open(path, flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) return -1;
  close(fd);
  return 0;
}

int become_root_inside(int more) {
  char map[64];
  unsigned uid = geteuid(), gid = getegid();
  if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | more) != 0) return -1;
  put("/proc/self/setgroups", "deny");
  snprintf(map, sizeof map, "0 %u 1", uid);
  if (put("/proc/self/uid_map", map) != 0) return -1;
  snprintf(map, sizeof map, "0 %u 1", gid);
  return put("/proc/self/gid_map", map);
}

int main(int argc, char **argv) {
  static const struct {
    const char *name;
    int (*run)(int, char **);
  } families[] = {
      {"processes", processes}, {"files", files},     {"kernel", kernel},
      {"sockets", sockets},     {"exhaust", exhaust}, {"syscalls", syscalls},
  };
  for (size_t index = 0; argc > 2 && index < sizeof families / sizeof families[0]; index++) {
    if (strcmp(argv[1], families[index].name) == 0) return families[index].run(argc - 2, argv + 2);
  }
  dprintf(2, "attack FAMILY ATTACK [ARGUMENTS]\n");
  return 64;
}

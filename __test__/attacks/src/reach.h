// Ways to a file of the host from whatever is open. In a header of its own, for a zygote tries them as well, whose sandboxees
// execute nothing (`fixtures/zygote.c`).

#ifndef REACH_H
#define REACH_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define UP "../../../../../../../../../../../../../../../../../../../.."

/** The file has the token in it. */
static int holds(int fd, const char *token) {
  static char content[4096];
  if (fd < 0) return 0;
  ssize_t length = read(fd, content, sizeof content - 1);
  close(fd);
  if (length < 0) return 0;
  content[length] = 0;
  return strstr(content, token) != NULL;
}

static long reads(int directory, const char *path, const char *token) {
  struct open_how how = {.flags = O_RDONLY | O_NONBLOCK | O_CLOEXEC};
  int fd = openat(directory, path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (holds(fd, token)) return 0;
  fd = syscall(SYS_openat2, directory, path, &how, sizeof how);
  if (holds(fd, token)) return 0;
  if (errno == 0) errno = ENOENT;
  return -1;
}

static void tell_of(int fd, const char *way, long result) {
  dprintf(1, "fd-%d-%s %s\n", fd, way, result >= 0 ? "done" : strerrorname_np(errno));
}

/** From whatever descriptor is open, as a directory and by its magic link. */
static void from_descriptors(const char *target, const char *token) {
  char up[4096], magic[4096];
  snprintf(up, sizeof up, UP "%s", target);
  for (int fd = 0; fd < 2048; fd++) {
    if (fcntl(fd, F_GETFD) < 0) continue;
    snprintf(magic, sizeof magic, "/proc/self/fd/%d/" UP "%s", fd, target);
    tell_of(fd, "relative", reads(fd, up, token));
    tell_of(fd, "magic", reads(AT_FDCWD, magic, token));
    tell_of(fd, "chdir", fchdir(fd) != 0 ? -1 : reads(AT_FDCWD, up, token));
  }
}

#endif

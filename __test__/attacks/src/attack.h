// What the families of attacks share: how an attempt is made and told. See main.c.

#ifndef ATTACK_H
#define ATTACK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

/** One line: what was tried, then `done` or the errno. */
void tell(const char *what, long result);

/** Starts an attempt in a child of its own, with five seconds; answers 1 there. Here it waits, and tells of a death. */
int begin(const char *what);

/** Ends it: tells how it went. */
void finish(const char *what, long result) __attribute__((noreturn));

/** An attempt. Whatever it does to its process is gone afterwards. */
#define TRY(what, expression)                          \
  do {                                                 \
    if (begin(what)) {                                 \
      errno = 0;                                       \
      finish(what, (long)(expression));                \
    }                                                  \
  } while (0)

/** Writes text to a file that is there; 0 or -1. */
int put(const char *path, const char *text);

/** Opens, and closes again; 0 or -1. */
long can_open(const char *path, int flags);

/** User, mount, pid and further namespaces of one's own, and root in them; 0 or -1. Only a child is in the new pid one. */
int become_root_inside(int more);

int processes(int argc, char **argv);
int files(int argc, char **argv);
int kernel(int argc, char **argv);
int sockets(int argc, char **argv);
int exhaust(int argc, char **argv);
int syscalls(int argc, char **argv);

#endif

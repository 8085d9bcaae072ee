// Calls that a filter asks about, made in all the ways that the tests want. Prints what came of them, and nothing else.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static long open_how(const void *path) {
  struct open_how how = {.flags = O_RDONLY};
  return syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how, 0L, 0xfeedf00ddeadbeefL);
}

static void *violate(void *unused) {
  (void)unused;
  // -1: it was interrupted before it was looked at.
  if (syscall(SYS_getppid) >= 0) puts("let through");
  fflush(stdout);
  return 0;
}

static void *violate_for_ever(void *unused) {
  for (;;) violate(unused);
  return 0;
}

static void nothing(int signal) { (void)signal; }

static pthread_t start(void *(*body)(void *), void *argument) {
  pthread_t thread;
  if (pthread_create(&thread, 0, body, argument)) abort();
  return thread;
}

static void *storm(void *target) {
  for (;;) pthread_kill(*(pthread_t *)target, SIGUSR1);
  return 0;
}

static int flood(const char *how) {
  if (!strcmp(how, "threads")) {
    for (int i = 0; i < 100; i++) start(violate_for_ever, 0);
  } else if (!strcmp(how, "forks")) {
    for (int i = 0; i < 6; i++) fork();
    violate_for_ever(0);
  } else if (!strcmp(how, "signals")) {
    // Interrupted again and again while it is looked at.
    struct sigaction action = {.sa_handler = nothing};
    sigaction(SIGUSR1, &action, 0);
    static pthread_t main_thread;
    main_thread = pthread_self();
    start(storm, &main_thread);
    start(storm, &main_thread);
    usleep(10000);
    violate_for_ever(0);
  } else {
    // Dead as soon as it has called.
    for (int i = 0; i < 50; i++) {
      pid_t pid = fork();
      if (pid == 0) {
        start(violate_for_ever, 0);
        syscall(SYS_exit_group, 0);
      }
    }
    for (;;) start(violate, 0);
  }
  for (;;) pause();
}

static int pointer(const char *how) {
  if (!strcmp(how, "null")) open_how(0);
  if (!strcmp(how, "wild")) open_how((void *)0x123456789);
  if (!strcmp(how, "kernel")) open_how((void *)0xffffffff81000000);
  char *pages = mmap(0, 4096 * 4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memset(pages, 'x', 4096 * 4);
  munmap(pages + 4096 * 3, 4096);
  if (!strcmp(how, "edge")) open_how(pages + 4096 * 3 - 3);
  if (!strcmp(how, "endless")) open_how(pages);
  return 0;
}

static void tell(long answer) {
  if (answer < 0) {
    const char *name = strerrorname_np(errno);
    if (name) puts(name);
    else printf("%d\n", errno);
  } else {
    printf("%ld\n", answer);
  }
}

static int asks(void) {
  for (int i = 0; i < 6; i++) {
    char path[8];
    snprintf(path, sizeof path, "/%d", i);
    long answer = open_how(path);
    if (i == 4 && answer >= 0) {
      char text[32] = "";
      if (read((int)answer, text, sizeof text - 1) < 0) perror("read");
      printf("%s %s\n", text, fcntl((int)answer, F_GETFD) & FD_CLOEXEC ? "cloexec" : "");
    } else {
      tell(answer);
    }
  }
  return 0;
}

static int answered, rounds;

static void *ask(void *unused) {
  for (int i = 0; i < rounds; i++) {
    if (open_how("/x") == 1) __atomic_add_fetch(&answered, 1, __ATOMIC_SEQ_CST);
  }
  return unused;
}

static int many(int threads) {
  pthread_t all[100];
  for (int i = 0; i < threads; i++) all[i] = start(ask, 0);
  for (int i = 0; i < threads; i++) pthread_join(all[i], 0);
  printf("%d answered\n", answered);
  return 0;
}

// Asks while it is interrupted all the time; each answer counts once.
static int stormed(int wanted) {
  struct sigaction action = {.sa_handler = nothing};
  sigaction(SIGUSR1, &action, 0);
  static pthread_t main_thread;
  main_thread = pthread_self();
  start(storm, &main_thread);
  int got = 0;
  while (got < wanted) {
    if (open_how("/x") == 1) got++;
    else if (errno != EINTR) tell(-1);
  }
  printf("%d answered\n", got);
  return 0;
}

// Processes that die while their question is open.
static int dying(int wanted) {
  for (int i = 0; i < wanted; i++) {
    pid_t pid = fork();
    if (pid == 0) {
      rounds = 1;
      start(ask, 0);
      usleep(3000);
      _exit(0);
    }
    waitpid(pid, 0, 0);
  }
  puts("all died");
  return 0;
}

int main(int count, char **args) {
  const char *what = count > 1 ? args[1] : "";
  if (!strcmp(what, "good")) return 3;
  if (!strcmp(what, "open")) {
    puts("before");
    fflush(stdout);
    open_how("/etc/a path that the policy does not like");
  } else if (!strcmp(what, "connect")) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(80)};
    inet_pton(AF_INET, "192.0.2.1", &to.sin_addr);
    connect(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&to, sizeof to);
  } else if (!strcmp(what, "plain")) {
    violate(0);
  } else if (!strcmp(what, "thread")) {
    pthread_join(start(violate, 0), 0);
  } else if (!strcmp(what, "grandchild")) {
    if (fork() == 0 && fork() == 0) pthread_join(start(violate, 0), 0);
    pause();
  } else if (!strcmp(what, "pointer")) {
    return pointer(args[2]);
  } else if (!strcmp(what, "flood")) {
    return flood(args[2]);
  } else if (!strcmp(what, "asks")) {
    return asks();
  } else if (!strcmp(what, "many")) {
    rounds = atoi(args[3]);
    return many(atoi(args[2]));
  } else if (!strcmp(what, "storm")) {
    return stormed(atoi(args[2]));
  } else if (!strcmp(what, "dying")) {
    return dying(atoi(args[2]));
  } else if (!strcmp(what, "learn")) {
    socket(AF_UNIX, SOCK_STREAM, 0);
    socket(AF_UNIX, SOCK_DGRAM, 0);
    socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
    for (int i = 0; i < 100; i++) syscall(SYS_getppid);
    puts("learnt");
    return 0;
  }
  puts("let through");
  return 0;
}

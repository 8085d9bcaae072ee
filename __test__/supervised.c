// Calls for a supervisor to look at. Each sub-command makes some and prints what came of them.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *text) {
  if (write(1, text, strlen(text)) < 0) _exit(9);
}

static void tell(long answer) {
  char text[64];
  const char *name = answer < 0 ? strerrorname_np(errno) : 0;
  if (name) snprintf(text, sizeof text, "%s\n", name);
  else snprintf(text, sizeof text, "%ld\n", answer);
  say(text);
}

static void *make(void *unused) {
  if (mkdir("/tmp/made", 0700) >= 0) say("made\n");
  return unused;
}

static void *rename_in_thread(void *unused) {
  rename("/a", "/b");
  return unused;
}

static void *make_for_ever(void *unused) {
  for (;;) make(unused);
  return 0;
}

static void nothing(int signal) { (void)signal; }

static pthread_t begin(void *(*body)(void *)) {
  pthread_t thread;
  if (pthread_create(&thread, 0, body, 0)) abort();
  return thread;
}

static pthread_t target;

static void *storm(void *unused) {
  for (;;) pthread_kill(target, SIGUSR1);
  return unused;
}

static void flood(const char *how) {
  if (!strcmp(how, "threads")) {
    for (int i = 0; i < 60; i++) begin(make_for_ever);
  } else if (!strcmp(how, "forks")) {
    for (int i = 0; i < 6; i++) fork();
    make_for_ever(0);
  } else {
    struct sigaction action = {.sa_handler = nothing};
    sigaction(SIGUSR1, &action, 0);
    target = pthread_self();
    begin(storm);
    make_for_ever(0);
  }
  for (;;) pause();
}

static volatile int stop;
static char path[16] = "/tmp/a";

static void *swap(void *unused) {
  while (!stop) {
    path[5] = 'b';
    path[5] = 'a';
  }
  return unused;
}

static int rounds, count;

static void *ask(void *unused) {
  for (int i = 0; i < rounds; i++)
    if (mkdir("/x", 0700) == 7) __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
  return unused;
}

int main(int argc, char **argv) {
  const char *what = argc > 1 ? argv[1] : "";
  if (!strcmp(what, "make")) {
    make(0);
  } else if (!strcmp(what, "rename")) {
    tell(rename("/tmp/from here", "/tmp/to there"));
  } else if (!strcmp(what, "connect")) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(443)};
    inet_pton(AF_INET, argv[2], &to.sin_addr);
    tell(connect(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&to, sizeof to));
  } else if (!strcmp(what, "connect6")) {
    struct sockaddr_in6 to = {.sin6_family = AF_INET6, .sin6_port = htons(53)};
    inet_pton(AF_INET6, argv[2], &to.sin6_addr);
    tell(connect(socket(AF_INET6, SOCK_DGRAM, 0), (struct sockaddr *)&to, sizeof to));
  } else if (!strcmp(what, "connect-unix")) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    strcpy(to.sun_path, argv[2]);
    tell(connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&to, sizeof to));
  } else if (!strcmp(what, "thread")) {
    pthread_join(begin(make), 0);
  } else if (!strcmp(what, "child")) {
    if (fork() == 0) make(0);
    wait(0);
  } else if (!strcmp(what, "orphan")) {
    // Its parent is gone: the program has exited before it calls.
    if (fork() == 0) {
      usleep(200000);
      make(0);
    }
    return 0;
  } else if (!strcmp(what, "late")) {
    usleep(100000);
    make(0);
  } else if (!strcmp(what, "flood")) {
    flood(argv[2]);
  } else if (!strcmp(what, "each")) {
    // As many calls as are asked for, each with its own path.
    for (int i = 0; i < atoi(argv[2]); i++) {
      char text[32];
      snprintf(text, sizeof text, "/call/%d", i);
      tell(mkdir(text, 0700));
    }
  } else if (!strcmp(what, "send")) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9)};
    inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
    tell(sendto(socket(AF_INET, SOCK_DGRAM, 0), "hello", 5, 0, (struct sockaddr *)&to, sizeof to));
  } else if (!strcmp(what, "open")) {
    long fd = open(argv[2], O_RDONLY);
    if (fd < 0) return tell(fd), 0;
    char text[64] = "";
    if (read((int)fd, text, sizeof text - 1) < 0) return tell(-1), 0;
    say(text);
    say(fcntl((int)fd, F_GETFD) & FD_CLOEXEC ? " cloexec\n" : " kept\n");
  } else if (!strcmp(what, "swap")) {
    begin(swap);
    for (int i = 0; i < atoi(argv[2]); i++) mkdir(path, 0700);
    stop = 1;
    say("done\n");
  } else if (!strcmp(what, "many")) {
    pthread_t all[64];
    rounds = atoi(argv[3]);
    for (int i = 0; i < atoi(argv[2]); i++) all[i] = begin(ask);
    for (int i = 0; i < atoi(argv[2]); i++) pthread_join(all[i], 0);
    tell(count);
  } else if (!strcmp(what, "trap")) {
    // What looks up the thread in here waits for ever.
    umask(0);
    if (mkdir("/proc/3", 0777) < 0 || mkfifo("/proc/3/status", 0666) < 0 || mkfifo("/proc/3/stat", 0666) < 0)
      return tell(-1), 0;
    pthread_join(begin(rename_in_thread), 0);
    for (;;) pause();
  } else if (!strcmp(what, "variety")) {
    struct winsize size;
    ioctl(1, TIOCGWINSZ, &size);
    socket(AF_INET, SOCK_DGRAM, 0);
    socket(AF_INET6, SOCK_DGRAM, 0);
    fcntl(1, F_GETFL);
    // No threads: whether one waits for another is up to the scheduler, and would be learned.
    make(0);
    if (fork() == 0) _exit(0);
    wait(0);
    say("varied\n");
  }
  return 0;
}

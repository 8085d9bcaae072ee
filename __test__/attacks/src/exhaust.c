// Takes as much as it can get of one thing, and says how much that was: `name COUNT ERRNO`. With a second argument it
// stays, holding it, until it is killed. It never takes more than the cap that it is given, so it is safe outside.

#include "attack.h"

#include <mqueue.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/sem.h>
#include <time.h>

/** One more of it; negative when there is no more. */
static long one_more(const char *what, long number) {
  char name[64];
  int pair[2];
  if (strcmp(what, "descriptors") == 0) return open("/", O_PATH);
  if (strcmp(what, "pipes") == 0) return pipe(pair);
  if (strcmp(what, "eventfds") == 0) return eventfd(0, 0);
  if (strcmp(what, "epolls") == 0) return epoll_create1(0);
  if (strcmp(what, "inotify") == 0) return inotify_init1(0);
  if (strcmp(what, "timers") == 0) {
    timer_t timer;
    return timer_create(CLOCK_MONOTONIC, NULL, &timer);
  }
  if (strcmp(what, "terminals") == 0) return open("/dev/ptmx", O_RDWR | O_NOCTTY);
  if (strcmp(what, "queues") == 0) {
    struct mq_attr attributes = {.mq_maxmsg = 10, .mq_msgsize = 8192};
    snprintf(name, sizeof name, "/attack-%ld", number);
    int queue = mq_open(name, O_CREAT | O_RDWR, 0600, &attributes);
    // Its bytes count until it is closed, and nothing is left behind.
    if (queue >= 0) mq_unlink(name);
    return queue;
  }
  if (strcmp(what, "aio") == 0) {
    unsigned long context = 0;
    return syscall(SYS_io_setup, 1024, &context);
  }
  if (strcmp(what, "semaphores") == 0 || strcmp(what, "few-semaphores") == 0) {
    // Sets that are walked, all of each, when this process ends.
    int set = semget(IPC_PRIVATE, *what == 'f' ? 250 : 32000, 0600);
    struct sembuf up = {.sem_num = 7, .sem_op = 1, .sem_flg = SEM_UNDO};
    return set < 0 ? -1 : semop(set, &up, 1);
  }
  if (strcmp(what, "memory") == 0) {
    // A mebibyte at a time, touched.
    char *block = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) return -1;
    for (int page = 0; page < 256; page++) block[page * 4096] = 1;
    return 0;
  }
  if (strcmp(what, "files") == 0) {
    snprintf(name, sizeof name, "/tmp/attack-%ld", number);
    int fd = open(name, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    if (fd >= 0) close(fd);
    return fd;
  }
  errno = EINVAL;
  return -1;
}

int exhaust(int argc, char **argv) {
  const char *what = argv[0];
  long cap = argc > 1 ? atol(argv[1]) : 100, count = 0;
  errno = 0;
  while (count < cap && one_more(what, count) >= 0) count++;
  dprintf(1, "%s %ld %s\n", what, count, count == cap ? "cap" : strerrorname_np(errno));
  if (argc > 2) for (int second = 0; second < 30; second++) usleep(1000000);
  return 0;
}

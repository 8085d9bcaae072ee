// Fills the machine with sleeping threads: argv[1] of them, in processes of at most 5,000. Says "ready" when all sleep. All
// end when its stdin does, so that they cannot outlive the benchmark.

#define _GNU_SOURCE
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { PER_PROCESS = 5000 };

static void *sleeper(void *nothing) {
  for (;;) pause();
  return nothing;
}

static void fill(long threads, int ready) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, PTHREAD_STACK_MIN);
  pthread_attr_setguardsize(&attributes, 0);
  // One of them is the process's first.
  for (long i = 1; i < threads; i++) {
    pthread_t thread;
    int error = pthread_create(&thread, &attributes, sleeper, NULL);
    if (error != 0) {
      fprintf(stderr, "sleepers: thread %ld: %s\n", i, strerror(error));
      _exit(1);
    }
  }
  if (write(ready, "r", 1) != 1) _exit(1);
  close(ready);
  sleeper(NULL);
}

int main(int argc, char **argv) {
  long wanted = argc > 1 ? atol(argv[1]) : 0;
  int ready[2];
  if (pipe(ready) != 0) return 1;
  int processes = 0;
  for (; wanted > 0; wanted -= PER_PROCESS, processes++) {
    pid_t pid = fork();
    if (pid < 0) return perror("sleepers: fork"), 1;
    if (pid == 0) {
      close(ready[0]);
      fill(wanted < PER_PROCESS ? wanted : PER_PROCESS, ready[1]);
    }
  }
  close(ready[1]);
  char byte;
  for (; processes > 0; processes--)
    if (read(ready[0], &byte, 1) != 1) return fprintf(stderr, "sleepers: not all threads could be made\n"), 1;
  if (write(1, "ready\n", 6) != 6) return 1;
  while (read(0, &byte, 1) > 0) continue;
  return 0;
}

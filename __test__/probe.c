// A program for the tests to launch: it looks or tries one thing, and prints what it found. Linked statically, so that a
// policy can show it alone. Errors are printed by the name of their errno; nothing is judged here.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/keyctl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static const char *name(int number) {
  const char *found = strerrorname_np(number);
  return found ? found : "unknown";
}

// Prints "ok" or the errno's name.
static int tell(int answer) {
  puts(answer < 0 ? name(errno) : "ok");
  return 0;
}

static int fail(const char *what) {
  printf("%s: %s\n", what, name(errno));
  fflush(stdout);
  return 1;
}

static struct sockaddr_in local(int port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

// Listens on 127.0.0.1, prints the port, answers one connection with "pong".
static int serve(int also_connect) {
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in address = local(0);
  socklen_t length = sizeof address;
  if (listener < 0) return fail("socket");
  if (bind(listener, (struct sockaddr *)&address, length) < 0) return fail("bind");
  if (listen(listener, 1) < 0) return fail("listen");
  getsockname(listener, (struct sockaddr *)&address, &length);
  if (also_connect) {
    int client = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(client, (struct sockaddr *)&address, length) < 0) return fail("connect");
    int server = accept(listener, NULL, NULL);
    if (server < 0) return fail("accept");
    char text[8] = "";
    if (write(client, "pong", 4) != 4 || read(server, text, 4) != 4) return fail("transfer");
    puts(text);
    return 0;
  }
  printf("%d\n", ntohs(address.sin_port));
  fflush(stdout);
  int server = accept(listener, NULL, NULL);
  if (server < 0) return fail("accept");
  return write(server, "pong", 4) == 4 ? 0 : fail("write");
}

static int call(int port) {
  int client = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in address = local(port);
  char text[8] = "";
  if (client < 0) return fail("socket");
  if (connect(client, (struct sockaddr *)&address, sizeof address) < 0) return tell(-1);
  if (read(client, text, 4) != 4) return fail("read");
  puts(text);
  return 0;
}

// Every path below a directory, with a letter for its type. Proc is named, not entered.
static void list(const char *path) {
  struct stat status;
  if (lstat(path, &status) < 0) {
    printf("? %s %s\n", path, name(errno));
    return;
  }
  int mode = status.st_mode & S_IFMT;
  char letter = mode == S_IFDIR ? 'd' : mode == S_IFREG ? '-' : mode == S_IFLNK ? 'l' : mode == S_IFCHR ? 'c' : '?';
  printf("%c %s\n", letter, path);
  if (letter != 'd' || strcmp(path, "/proc") == 0) return;
  DIR *directory = opendir(path);
  if (!directory) return;
  for (struct dirent *entry; (entry = readdir(directory));) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    char below[4096];
    snprintf(below, sizeof below, "%s/%s", strcmp(path, "/") == 0 ? "" : path, entry->d_name);
    list(below);
  }
  closedir(directory);
}

// Uses the processor in `count` processes at once, for ever.
static int burn(int count) {
  for (int index = 1; index < count; index++)
    if (fork() == 0) break;
  for (volatile unsigned long turn = 0; turn < ULONG_MAX; turn++) {
  }
  return 0;
}

// Forks until it fails or there are `most`; prints how many there were and why no more.
static int forks(int most) {
  int made = 0;
  while (made < most) {
    pid_t child = fork();
    if (child < 0) break;
    if (child == 0) {
      pause();
      _exit(0);
    }
    made++;
  }
  printf("%d %s\n", made, made == most ? "ok" : name(errno));
  return 0;
}

static void *idle(void *nothing) {
  pause();
  return nothing;
}

static int threads(int most) {
  int made = 0, error = 0;
  pthread_t thread;
  while (made < most && (error = pthread_create(&thread, NULL, idle, NULL)) == 0) made++;
  printf("%d %s\n", made, error ? name(error) : "ok");
  fflush(stdout);
  _exit(0);
}

// Opens files until it fails; prints the highest number.
static int fds(int most) {
  int last = -1, fd;
  while (last + 1 < most && (fd = open("/", O_RDONLY | O_DIRECTORY)) >= 0) last = fd;
  printf("%d %s\n", last, name(errno));
  return 0;
}

static int open_fds(void) {
  const char *separator = "";
  for (int fd = 0; fd < 4096; fd++) {
    if (fcntl(fd, F_GETFD) < 0) continue;
    printf("%s%d", separator, fd);
    separator = ",";
  }
  puts("");
  return 0;
}

static int keyrings(void) {
  const int special[] = {KEY_SPEC_SESSION_KEYRING, KEY_SPEC_USER_KEYRING, KEY_SPEC_USER_SESSION_KEYRING};
  for (int index = 0; index < 3; index++) {
    long id = syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, special[index], 1);
    if (id < 0) puts(name(errno));
    else printf("%ld\n", id);
  }
  return 0;
}

// Writes `count` bytes of `letter` to a descriptor; prints nothing.
static int flood(int fd, long count, char letter) {
  char buffer[65536];
  memset(buffer, letter, sizeof buffer);
  while (count > 0) {
    ssize_t written = write(fd, buffer, count < (long)sizeof buffer ? (size_t)count : sizeof buffer);
    if (written < 0) return 1;
    count -= written;
  }
  return 0;
}

// Mounts a tmpfs with one file below a directory, then becomes another program without the power to do so.
static int with_submount(const char *directory, char **command) {
  umask(0);
  if (mount("tmpfs", directory, "tmpfs", 0, "mode=0777") < 0) return fail("mount");
  char path[4096];
  snprintf(path, sizeof path, "%s/file", directory);
  int fd = open(path, O_WRONLY | O_CREAT, 0666);
  if (fd < 0 || write(fd, "below\n", 6) != 6) return fail("file");
  close(fd);
  prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  execvp(command[0], command);
  return fail("exec");
}

// Copies a file to stdout.
static int cat(const char *path) {
  char buffer[65536];
  int fd = open(path, O_RDONLY);
  if (fd < 0) return tell(-1);
  for (ssize_t length; (length = read(fd, buffer, sizeof buffer)) > 0;)
    if (write(1, buffer, (size_t)length) != length) return 1;
  return 0;
}

static int is(const char *given, const char *wanted) { return strcmp(given, wanted) == 0; }

int main(int count, char **args) {
  const char *what = count > 1 ? args[1] : "";
  const char *first = count > 2 ? args[2] : "";
  int number = atoi(first);
  if (is(what, "args")) {
    for (int index = 0; index < count; index++) fwrite(args[index], 1, strlen(args[index]) + 1, stdout);
    return 0;
  }
  if (is(what, "env")) {
    for (char **entry = environ; *entry; entry++) fwrite(*entry, 1, strlen(*entry) + 1, stdout);
    return 0;
  }
  if (is(what, "exit")) return number;
  if (is(what, "cat")) return cat(first);
  if (is(what, "loopback")) return serve(1);
  if (is(what, "serve")) return serve(0);
  if (is(what, "call")) return call(number);
  if (is(what, "list")) return list(first), 0;
  if (is(what, "burn")) return burn(number);
  if (is(what, "forks")) return forks(number);
  if (is(what, "threads")) return threads(number);
  if (is(what, "fds")) return fds(number);
  if (is(what, "open-fds")) return open_fds();
  if (is(what, "keyrings")) return keyrings();
  if (is(what, "flood")) return flood(number, atol(args[3]), args[4][0]);
  if (is(what, "with-submount")) return with_submount(first, args + 3);
  if (is(what, "mknod")) return tell(mknod(first, S_IFCHR | 0666, makedev(1, 3)));
  if (is(what, "write")) return tell(open(first, O_WRONLY));
  if (is(what, "create")) return tell(open(first, O_WRONLY | O_CREAT, 0666));
  if (is(what, "read")) return tell(open(first, O_RDONLY));
  if (is(what, "unix")) return tell(socket(AF_UNIX, SOCK_STREAM, 0));
  if (is(what, "map")) {
    void *memory = mmap(NULL, strtoul(first, NULL, 10), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return tell(memory == MAP_FAILED ? -1 : 0);
  }
  if (is(what, "touch-memory")) {
    size_t length = strtoul(first, NULL, 10);
    char *memory = malloc(length);
    if (!memory) return tell(-1);
    memset(memory, 1, length);
    return tell(memory[length / 2]);
  }
  fprintf(stderr, "probe: no such thing: %s\n", what);
  return 99;
}

// Attacks by way of sockets: to servers of the host, by every family and protocol, and by what a descriptor that was
// passed is good for.

#include "attack.h"

#include <arpa/inet.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

static socklen_t address_of(struct sockaddr_un *address, const char *name) {
  memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  size_t length = strlen(name);
  // `@name` is an abstract one, as ss(8) writes them.
  memcpy(address->sun_path, name, length);
  if (name[0] == '@') address->sun_path[0] = 0;
  return offsetof(struct sockaddr_un, sun_path) + length + (name[0] != '@');
}

static long connect_to(const char *name, int kind) {
  struct sockaddr_un address;
  socklen_t length = address_of(&address, name);
  int fd = socket(AF_UNIX, kind | SOCK_CLOEXEC, 0);
  return fd < 0 ? -1 : connect(fd, (struct sockaddr *)&address, length);
}

/** A server, of a name that Node can't listen on; tells of each call. */
static void serve(const char *name) {
  struct sockaddr_un address;
  socklen_t length = address_of(&address, name);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  tell("listen", bind(fd, (struct sockaddr *)&address, length) != 0 ? -1 : listen(fd, 8));
  alarm(60);
  for (int call; (call = accept(fd, NULL, NULL)) >= 0; close(call)) dprintf(1, "call done\n");
}

/** Without socket(2): one end of a pair, told to go elsewhere. */
static long reconnect(const char *name, int kind) {
  struct sockaddr_un address;
  socklen_t length = address_of(&address, name);
  int pair[2];
  if (socketpair(AF_UNIX, kind | SOCK_CLOEXEC, 0, pair) != 0) return -1;
  return connect(pair[0], (struct sockaddr *)&address, length);
}

static long pair_sends(const char *name) {
  struct sockaddr_un address;
  socklen_t length = address_of(&address, name);
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair) != 0) return -1;
  struct sockaddr none = {.sa_family = AF_UNSPEC};
  connect(pair[0], &none, sizeof none);
  return sendto(pair[0], "x", 1, 0, (struct sockaddr *)&address, length);
}

static void unix_sockets(const char *name) {
  TRY("stream", connect_to(name, SOCK_STREAM));
  TRY("datagram", connect_to(name, SOCK_DGRAM));
  TRY("packets", connect_to(name, SOCK_SEQPACKET));
  TRY("pair-stream", reconnect(name, SOCK_STREAM));
  TRY("pair-datagram", reconnect(name, SOCK_DGRAM));
  TRY("pair-packets", reconnect(name, SOCK_SEQPACKET));
  TRY("pair-raw", reconnect(name, SOCK_RAW));
  TRY("pair-sends", pair_sends(name));
}

static long send_to(const char *host, int port, int type, int protocol) {
  struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
  struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(port)};
  int is_six = inet_pton(AF_INET6, host, &six.sin6_addr) == 1;
  if (!is_six) inet_pton(AF_INET, host, &four.sin_addr);
  const struct sockaddr *address = is_six ? (struct sockaddr *)&six : (struct sockaddr *)&four;
  socklen_t length = is_six ? sizeof six : sizeof four;
  int family = address->sa_family;
  int fd = socket(family, type | SOCK_CLOEXEC, protocol);
  if (fd < 0) return -1;
  if (type == SOCK_STREAM) return connect(fd, address, length);
  return sendto(fd, "nestbox-attack", 14, 0, address, length);
}

/** Everything that could reach a server at an address, or be seen on a wire. */
static void internet(const char *host, int port) {
  char name[64];
  const char *hosts[] = {host, "127.0.0.1", "0.0.0.0", "::1", "::ffff:127.0.0.1", "169.254.169.254", "224.0.0.1"};
  for (size_t index = 0; index < sizeof hosts / sizeof hosts[0]; index++) {
    snprintf(name, sizeof name, "tcp-%s", hosts[index]);
    TRY(name, send_to(hosts[index], port, SOCK_STREAM, 0));
  }
  // Those on loopback leave as well, to nobody.
  TRY("udp-link", send_to("169.254.169.254", port, SOCK_DGRAM, 0));
  TRY("udp-host", send_to("10.255.255.254", port, SOCK_DGRAM, 0));
  TRY("udp6", send_to("2001:db8::1", port, SOCK_DGRAM, 0));
  TRY("ping", send_to("127.0.0.1", 0, SOCK_DGRAM, IPPROTO_ICMP));
  TRY("raw", send_to("127.0.0.1", 0, SOCK_RAW, IPPROTO_ICMP));
}

/** An address in any of the forms that programs take for one: in parts, in octal, as one number, as version 6. */
static long connect_as(const char *form, int port) {
  struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
  struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(port)};
  int is_six = inet_pton(AF_INET6, form, &six.sin6_addr) == 1;
  if (!is_six && inet_aton(form, &four.sin_addr) == 0) return errno = EINVAL, -1;
  int fd = socket(is_six ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  return is_six ? connect(fd, (struct sockaddr *)&six, sizeof six) : connect(fd, (struct sockaddr *)&four, sizeof four);
}

/** Every family there could be a socket of. */
static void families(void) {
  char name[64];
  static const struct {
    const char *name;
    int type;
  } types[] = {{"stream", SOCK_STREAM}, {"datagram", SOCK_DGRAM}, {"raw", SOCK_RAW}, {"packets", SOCK_SEQPACKET}};
  for (int family = 0; family < 64; family++) {
    for (size_t index = 0; index < sizeof types / sizeof types[0]; index++) {
      int fd = socket(family, types[index].type, 0);
      if (fd < 0) continue;
      close(fd);
      dprintf(1, "family-%d-%s done\n", family, types[index].name);
    }
  }
  for (int protocol = 0; protocol < 32; protocol++) {
    int fd = socket(AF_NETLINK, SOCK_RAW, protocol);
    snprintf(name, sizeof name, "netlink-%d", protocol);
    if (fd >= 0) tell(name, 0);
    close(fd);
  }
  // The kernel takes 32 bits of these; whoever compares 64 is fooled by the rest.
  TRY("unix-high", syscall(SYS_socket, 0xdeadbeef00000000 | AF_UNIX, SOCK_STREAM, 0));
  TRY("packet-high", syscall(SYS_socket, 0xdeadbeef00000000 | AF_PACKET, SOCK_RAW, 0));
}

/** Sends descriptors to itself until it must not any more, or has sent so many; keeps them in flight. Prints how many. */
static void in_flight(int cap) {
  int sent = 0, pairs = 0;
  for (; pairs < 8 && sent < cap; pairs++) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) break;
    fcntl(pair[0], F_SETFL, O_NONBLOCK);
    while (sent < cap) {
      char control[CMSG_SPACE(sizeof(int) * 250)] = {0};
      struct iovec data = {"x", 1};
      struct msghdr message = {
          .msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
      struct cmsghdr *header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(sizeof(int) * 250);
      for (int index = 0; index < 250; index++) ((int *)CMSG_DATA(header))[index] = pair[1];
      if (sendmsg(pair[0], &message, MSG_NOSIGNAL) < 0) break;
      sent += 250;
    }
    if (errno == ETOOMANYREFS) break;
  }
  dprintf(1, "sent %d\n", sent);
  tell("last", -1);
}

/** Hands on what shows the traffic of this network namespace, to whoever watches there. */
static long hand_on(const char *name) {
  struct sockaddr_un address;
  socklen_t length = address_of(&address, name);
  int file = open("/proc/self/net/dev", O_RDONLY);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (file < 0 || fd < 0 || connect(fd, (struct sockaddr *)&address, length) != 0) return -1;
  char control[CMSG_SPACE(sizeof file)] = {0};
  struct iovec data = {"x", 1};
  struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof file);
  memcpy(CMSG_DATA(header), &file, sizeof file);
  if (sendmsg(fd, &message, MSG_NOSIGNAL) != 1) return -1;
  // Not before it has arrived: what is in flight goes with the sender's end.
  return read(fd, &(char){0}, 1) == 1 ? 0 : -1;
}

/** Receives such a file, and says once a line what it shows of the loopback: the bytes that came. */
static void watch(const char *name) {
  struct sockaddr_un address;
  socklen_t length = address_of(&address, name);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  tell("listen", bind(fd, (struct sockaddr *)&address, length) != 0 ? -1 : listen(fd, 8));
  int call = accept(fd, NULL, NULL);
  char control[CMSG_SPACE(sizeof(int))], text[4096];
  struct iovec data = {text, 1};
  struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  recvmsg(call, &message, 0);
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  if (header == NULL) return;
  int file;
  memcpy(&file, CMSG_DATA(header), sizeof file);
  if (write(call, "x", 1) != 1) return;
  // It belongs to the caller's namespace, where it would be seen.
  close(call);
  while (read(0, &(char){0}, 1) == 1) {
    ssize_t size = pread(file, text, sizeof text - 1, 0);
    if (size < 0) return;
    text[size] = 0;
    char *loopback = strstr(text, "lo:");
    dprintf(1, "bytes %ld\n", loopback == NULL ? -1 : atol(loopback + 3));
  }
}

int sockets(int argc, char **argv) {
  const char *what = argv[0];
  if (strcmp(what, "unix") == 0 && argc > 1) unix_sockets(argv[1]);
  else if (strcmp(what, "internet") == 0 && argc > 2) internet(argv[1], atoi(argv[2]));
  else if (strcmp(what, "forms") == 0 && argc > 1) {
    for (int index = 2; index < argc; index++) TRY(argv[index], connect_as(argv[index], atoi(argv[1])));
  } else if (strcmp(what, "serve") == 0 && argc > 1) serve(argv[1]);
  else if (strcmp(what, "hand-on") == 0 && argc > 1) TRY("hand-on", hand_on(argv[1]));
  else if (strcmp(what, "watch") == 0 && argc > 1) watch(argv[1]);
  else if (strcmp(what, "families") == 0) families();
  else if (strcmp(what, "in-flight") == 0 && argc > 1) {
    in_flight(atoi(argv[1]));
    dprintf(1, "ready done\n");
    // Until whoever started this has looked.
    if (argc > 2) for (int second = 0; second < 20; second++) usleep(1000000);
  } else return 64;
  return 0;
}

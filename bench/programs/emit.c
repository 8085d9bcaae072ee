// Writes as many bytes as argv[1] says to stdout, as fast as they are taken.

#include <stdlib.h>
#include <unistd.h>

static char block[65536];

int main(int argc, char **argv) {
  long left = argc > 1 ? atol(argv[1]) : 0;
  for (int i = 0; i < (int)sizeof block; i++) block[i] = i % 64 == 63 ? '\n' : 'a' + i % 26;
  while (left > 0) {
    ssize_t written = write(1, block, left < (long)sizeof block ? (size_t)left : sizeof block);
    if (written <= 0) return 1;
    left -= written;
  }
  return 0;
}

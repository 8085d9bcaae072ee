#include <cstdio>

int main() {
  volatile unsigned long long rounds = 0;
  for (;;) rounds = rounds + 1;
}

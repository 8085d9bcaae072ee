#include <cstdio>

int main() {
  int n;
  if (std::scanf("%d", &n) != 1) return 1;
  long long sum = 0;
  for (int x; n > 0 && std::scanf("%d", &x) == 1; n--) sum += x;
  std::printf("%lld\n", sum);
}

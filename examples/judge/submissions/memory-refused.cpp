// Asks for too much at once, and does not get it.
#include <vector>

int main() {
  std::vector<char> all(1000 << 20);
  return all[5];
}

// Looks for the answers, for other processes, and for a way out. Finds nothing, and so has no answer.
#include <cstdio>
#include <cstdlib>
#include <dirent.h>
#include <unistd.h>

int main() {
  int found = 0;
  DIR *root = opendir("/");
  if (root == nullptr) return 1;
  while (dirent *entry = readdir(root)) {
    if (entry->d_name[0] == '.') continue;
    found++;
    std::printf("%s\n", entry->d_name);
  }
  if (fork() >= 0) std::printf("forked\n");
  if (std::fopen("/answer", "w") != nullptr) std::printf("wrote\n");
  return 0;
}

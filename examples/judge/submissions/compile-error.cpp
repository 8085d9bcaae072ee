int main() {
  return "not a number";
}

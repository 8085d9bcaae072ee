//! Has the linker put the code of a launch together: see `launch.ld`.

fn main() {
    let script = "launch.ld";
    println!("cargo::rerun-if-changed={script}");
    println!("cargo::rustc-link-arg-bins=-T");
    println!("cargo::rustc-link-arg-bins={}/{script}", env!("CARGO_MANIFEST_DIR"));
}

//! Generates the message types from `proto/`. protox parses the files, so no `protoc` has to be installed.

const FILES: [&str; 5] = [
    "../../proto/error.proto",
    "../../proto/doctor.proto",
    "../../proto/launch.proto",
    "../../proto/plan.proto",
    "../../proto/forkserver.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=../../proto");
    let descriptors = protox::compile(FILES, ["../../proto"])?;
    prost_build::Config::new()
        .btree_map(["."])
        // Up to 2 MiB of them: they are parts of one piece of memory, and no copies of its parts.
        .bytes([".nestbox.Launch.args", ".nestbox.Launch.envs"])
        .compile_fds(descriptors)?;
    Ok(())
}

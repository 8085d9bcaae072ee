//! Embeds the fork server and the symboliser: `scripts/build.mjs` builds them first and names them in the environment. Without
//! that (clippy, rust-analyzer, `cargo test`) the addon has none, and asks at run time for a fork server in
//! `NESTBOX_FORKSERVER`.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    napi_build::setup();
    for (variable, name) in
        [("NESTBOX_FORKSERVER_IMAGE", "forkserver"), ("NESTBOX_SYMBOLIZER_IMAGE", "symbolizer")]
    {
        println!("cargo::rerun-if-env-changed={variable}");
        let target = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join(name);
        match env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from) {
            Some(image) => {
                println!("cargo::rerun-if-changed={}", image.display());
                if let Err(error) = fs::copy(&image, &target) {
                    println!("cargo::error={variable}={}: {error}", image.display());
                }
            }
            None => fs::write(&target, b"").expect("OUT_DIR is writable"),
        }
    }
}

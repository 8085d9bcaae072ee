//! Embeds the fork server: `scripts/build.mjs` builds it first and names it in `NESTBOX_FORKSERVER_IMAGE`. Without that
//! (clippy, rust-analyzer, `cargo test`) the addon has none, and asks at run time for one in `NESTBOX_FORKSERVER`.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    napi_build::setup();
    println!("cargo::rerun-if-env-changed=NESTBOX_FORKSERVER_IMAGE");
    let target = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("forkserver");
    match env::var_os("NESTBOX_FORKSERVER_IMAGE").filter(|path| !path.is_empty()).map(PathBuf::from) {
        Some(image) => {
            println!("cargo::rerun-if-changed={}", image.display());
            if let Err(error) = fs::copy(&image, &target) {
                println!("cargo::error=NESTBOX_FORKSERVER_IMAGE={}: {error}", image.display());
            }
        }
        None => fs::write(&target, b"").expect("OUT_DIR is writable"),
    }
}

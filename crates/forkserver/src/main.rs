//! The fork server.
fn main() {}

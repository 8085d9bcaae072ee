//! That what `launch.ld` names is there. A function that was renamed would only make launches slower, which no other test sees.

/// The parts of a pattern that are not `*`, `nestbox_forkserver4init` for example; without the names of the linker's sections.
fn names(script: &str) -> Vec<&str> {
    let patterns = script.split(|byte: char| byte.is_whitespace() || "()".contains(byte));
    patterns
        .filter(|pattern| pattern.starts_with(".text.*"))
        .flat_map(|pattern| pattern.trim_start_matches(".text.").split('*'))
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn all_functions_exist() {
    let names = names(include_str!("../launch.ld"));
    assert!(names.len() > 10, "{names:?}");
    let program = std::fs::read(env!("CARGO_BIN_EXE_nestbox-forkserver")).expect("the program");
    // This build has its symbols, and next to nothing was inlined in it.
    let program = String::from_utf8_lossy(&program);
    assert!(program.contains("nestbox_forkserver"), "it was stripped");
    let missing: Vec<&str> = names.into_iter().filter(|name| !program.contains(name)).collect();
    assert!(missing.is_empty(), "launch.ld names what is not there: {missing:?}");
}

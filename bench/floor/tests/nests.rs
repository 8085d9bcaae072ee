//! The floor makes the nests that it is there to be compared with: a program in one looks around.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Ends with the number of the first thing that is not as it is in a nest of nestbox.
const LOOK_AROUND: &str = r#"#!/bin/sh
status() { sed -n "s/^$1:[[:space:]]*//p" /proc/self/status; }
[ "$$" = 2 ] || exit 11
[ "$(id -u) $(id -g)" = '1000 1000' ] || exit 12
[ "$(cat /proc/sys/kernel/hostname)" = nestbox ] || exit 13
[ "$(status CapBnd)" = 0000000000000000 ] && [ "$(status CapEff)" = 0000000000000000 ] || exit 14
[ "$(status NoNewPrivs) $(status Seccomp)" = '1 2' ] || exit 15
[ "$(ulimit -n) $(ulimit -c)" = '1024 0' ] || exit 16
[ "$(ls /proc/self/fd | wc -l)" -le 4 ] || exit 17
[ "$(grep -c : /proc/net/dev)" = 1 ] || exit 18
[ -z "$(ls -A /tmp)" ] && echo x > /tmp/x || exit 19
echo x > /x && exit 20
grep -q ' /proc/sys ro,' /proc/self/mountinfo || exit 21
grep -q ' /dev/pts ' /proc/self/mountinfo || exit 22
[ "$(pwd)" = /tmp ] || exit 23
"#;

/// `policy('host-system')` as `build()` gives it, with a program.
fn policy(program: &Path) -> String {
    format!(
        r#"{{"version": 1, "base": "host-system", "proc": "fresh", "dev": "minimal", "rootWritable": false,
        "mounts": [{{"type": "bind", "source": "{}", "path": "/program", "writable": false, "exec": true, "optional": false}}],
        "hostname": "nestbox", "user": {{"uid": 1000, "gid": 1000}}, "env": {{}}, "network": "none",
        "unixSockets": "none", "syscalls": "default", "require": [],
        "limits": {{"wallTime": 60000, "cpuTime": null, "processes": 128, "output": 10485760, "disk": 67108864,
        "fileSize": 1073741824, "openFiles": 1024, "addressSpacePerProcess": null, "stack": null, "core": 0}}}}"#,
        program.display()
    )
}

/// A directory that sandboxees can read, with the script and its policy.
fn prepare(name: &str, script: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(format!("nestbox-floor-{name}-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    fs::set_permissions(&directory, Permissions::from_mode(0o755)).expect("its mode");
    let program = directory.join("program");
    fs::write(&program, script).expect("a script");
    fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("its mode");
    fs::write(directory.join("policy.json"), policy(&program)).expect("a policy");
    directory
}

/// What it answers to the commands, and what it complains about.
fn drive(arguments: &[&str], commands: &str) -> (Vec<String>, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_nestbox-floor"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the floor");
    // It may have ended before: then there is nobody to read.
    let _ = child.stdin.take().expect("piped").write_all(commands.as_bytes());
    let answers = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok).collect();
    let complaints = child.wait_with_output().expect("its end").stderr;
    (answers, String::from_utf8_lossy(&complaints).into_owned())
}

#[test]
fn a_nest_of_the_floor_is_a_nest_of_nestbox() {
    let directory = prepare("nest", LOOK_AROUND);
    let policy = directory.join("policy.json");
    for mode in ["cold", "warm"] {
        let (answers, complaints) = drive(&[mode, &policy.to_string_lossy()], "turn 2 100\nflood 4 2\n");
        assert_eq!(complaints, "", "{mode}");
        assert_eq!(answers.len(), 2, "{mode}");
        assert_eq!(answers[0].matches("\"us\":").count(), 2, "{mode}: {}", answers[0]);
        assert!(answers[1].starts_with("{\"ms\":"), "{mode}: {}", answers[1]);
    }
    fs::remove_dir_all(directory).expect("removed");
}

#[test]
fn a_program_that_fails_is_no_sample() {
    let directory = prepare("failing", "#!/bin/sh\nexit 3\n");
    let policy = directory.join("policy.json");
    for mode in ["cold", "warm"] {
        let (answers, complaints) = drive(&[mode, &policy.to_string_lossy()], "turn 1 0\n");
        assert!(answers.is_empty(), "{mode}: {answers:?}");
        assert!(complaints.contains("wait status 0x300"), "{mode}: {complaints}");
    }
    fs::remove_dir_all(directory).expect("removed");
}

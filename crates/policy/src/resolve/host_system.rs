//! The base `host-system`: which parts of the host's system a sandboxee sees, read-only.
//!
//! That is /usr, the directories that belong to it (/bin, /lib ...), and the part of /etc that programs need and that
//! tells nothing about the machine's users, secrets or services. Each mount costs every launch some 4 µs (the kernel
//! copies it into the nest, and takes it apart with that), a file or symlink on our own tmpfs costs nothing; so what is small
//! is copied from the host, and only what is large is bound. Files that would tell about the host's users are made up. What is
//! not there on this host is left out: the base is what the host has. Called by [`crate::resolve`].

use std::fmt::Write;
use std::fs;
use std::path::Path;

use super::bind::bind_entry;
use super::copy::{copy_directory, copy_entry, is_public};
use super::default_tmpfs;
use crate::document::{Network, Policy};
use crate::error::ResolveError;
use crate::layout::{Entry, Layout};
use crate::source::Source;

/// Directories that are bound, or replicated where they are symlinks into /usr.
pub(crate) const SYSTEM_DIRECTORIES: [&str; 7] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];

/// What of /etc is shown as the host has it. A `*` at the end stands for any ending.
const CONFIGURATION: [&str; 47] = [
    // Where programs and libraries are.
    "alternatives",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "ld-musl-*",
    // Certificates to check others by. Never /etc/ssl/private.
    "ssl/certs",
    "ssl/cert.pem",
    "ssl/ca-bundle.pem",
    "ssl/openssl.cnf",
    "ca-certificates",
    "pki/tls/certs",
    "pki/tls/cert.pem",
    "pki/tls/openssl.cnf",
    "pki/ca-trust/extracted",
    "crypto-policies/back-ends",
    // Time and language.
    "localtime",
    "timezone",
    "locale.conf",
    "locale.alias",
    "default/locale",
    // Which system this is.
    "os-release",
    "lsb-release",
    "debian_version",
    "alpine-release",
    "redhat-release",
    "fedora-release",
    // Numbers and names that are the same everywhere.
    "protocols",
    "services",
    "rpc",
    "ethertypes",
    "networks",
    "gai.conf",
    "host.conf",
    "shells",
    // What interpreters and tools are set up with.
    "bash.bashrc",
    "inputrc",
    "terminfo",
    "fonts",
    "papersize",
    "mime.types",
    "magic*",
    "xml",
    "perl",
    "python3*",
    "java*",
    "ImageMagick-*",
    "texmf",
];

/// Puts the base into the layout.
pub(super) fn put(
    policy: &Policy,
    layout: &mut Layout,
    sources: &mut Vec<Source>,
) -> Result<(), ResolveError> {
    for path in SYSTEM_DIRECTORIES {
        put_system_directory(path, layout, sources)?;
    }
    for name in CONFIGURATION {
        for path in expand(name) {
            put_configuration(&path, layout, sources)?;
        }
    }
    put_made_up(policy, layout);
    if policy.network == Network::Host
        && let Some(entry) = copy_entry("/etc/resolv.conf", sources)
    {
        layout.put_base("/etc/resolv.conf", entry);
    }
    layout.put_base("/run", Entry::Directory);
    layout.put_base("/var", Entry::Directory);
    // Programs that insist on /var/tmp get the same private directory.
    layout.put_base("/var/tmp", Entry::Symlink { points_to: "../tmp".to_owned() });
    layout.put_base("/tmp", default_tmpfs(policy, true));
    Ok(())
}

fn put_system_directory(
    path: &str,
    layout: &mut Layout,
    sources: &mut Vec<Source>,
) -> Result<(), ResolveError> {
    match fs::read_link(path) {
        Ok(target) => {
            if let Some(points_to) = target.to_str() {
                layout.put_base(path, Entry::Symlink { points_to: points_to.to_owned() });
            }
        }
        Err(_) if Path::new(path).is_dir() => {
            layout.put_base(path, bind_entry(path, false, true, sources)?);
        }
        Err(_) => {}
    }
    Ok(())
}

/// The paths that one of the names stands for.
fn expand(name: &str) -> Vec<String> {
    let Some(prefix) = name.strip_suffix('*') else { return vec![format!("/etc/{name}")] };
    let Ok(entries) = fs::read_dir("/etc") else { return Vec::new() };
    let names = entries.filter_map(Result::ok).filter_map(|entry| entry.file_name().into_string().ok());
    let mut paths: Vec<_> =
        names.filter(|name| name.starts_with(prefix)).map(|name| format!("/etc/{name}")).collect();
    paths.sort_unstable();
    paths
}

/// A file or directory of /etc: a symlink if it is one into /usr, a copy if it is small, else a bind.
fn put_configuration(path: &str, layout: &mut Layout, sources: &mut Vec<Source>) -> Result<(), ResolveError> {
    if let Some(entry) = symlink_into_usr(path) {
        layout.put_base(path, entry);
        return Ok(());
    }
    let Ok(metadata) = fs::metadata(path) else { return Ok(()) };
    if metadata.is_dir() {
        if let Some(copies) = copy_directory(path, sources) {
            for (path, entry) in copies {
                layout.put_base(path, entry);
            }
        } else {
            layout.put_base(path, bind_entry(path, false, true, sources)?);
        }
    } else if metadata.is_file() && is_public(&metadata) {
        let entry = copy_entry(path, sources).map_or_else(|| bind_entry(path, false, true, sources), Ok)?;
        layout.put_base(path, entry);
    }
    Ok(())
}

/// A symlink that leads into /usr leads there inside as well. (/etc/localtime tells the zone by what it points to.)
fn symlink_into_usr(path: &str) -> Option<Entry> {
    fs::read_link(path).ok()?;
    let target = fs::canonicalize(path).ok()?;
    let points_to = target.to_str().filter(|target| target.starts_with("/usr/"))?.to_owned();
    Some(Entry::Symlink { points_to })
}

/// Files that say who and where the sandboxee is. The host's own would say who and where its users are.
fn put_made_up(policy: &Policy, layout: &mut Layout) {
    let (uid, gid) = (policy.user.uid, policy.user.gid);
    let home = policy.env.get("HOME").map(String::as_str).filter(|home| is_field(home)).unwrap_or("/tmp");
    let mut passwd = String::new();
    let mut group = String::new();
    for (name, uid, gid, home, shell) in [
        ("root", 0, 0, "/", "/bin/sh"),
        ("sandbox", uid, gid, home, "/bin/sh"),
        ("nobody", 65_534, 65_534, "/", "/usr/sbin/nologin"),
    ] {
        // The sandboxee's own line comes instead of another for its id.
        if name == "sandbox" || uid != policy.user.uid {
            let _ = writeln!(passwd, "{name}:x:{uid}:{gid}:{name}:{home}:{shell}");
        }
        let name = if name == "nobody" { "nogroup" } else { name };
        if name == "sandbox" || gid != policy.user.gid {
            let _ = writeln!(group, "{name}:x:{gid}:");
        }
    }
    let host = &policy.hostname;
    let hosts = format!("127.0.0.1 localhost\n127.0.1.1 {host}\n::1 localhost ip6-localhost ip6-loopback\n");
    let names = if policy.network == Network::Host { "files dns" } else { "files" };
    let nsswitch = format!(
        "passwd: files\ngroup: files\nshadow: files\nhosts: {names}\nnetworks: files\nprotocols: files\n\
         services: files\nethers: files\nrpc: files\n"
    );
    for (path, content) in [
        ("/etc/passwd", passwd),
        ("/etc/group", group),
        ("/etc/hosts", hosts),
        ("/etc/hostname", format!("{host}\n")),
        ("/etc/nsswitch.conf", nsswitch),
    ] {
        layout.put_base(path, Entry::File { content: content.into_bytes(), mode: 0o444 });
    }
}

/// Can be a field of passwd(5).
fn is_field(text: &str) -> bool {
    text.starts_with('/') && !text.contains([':', '\n'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::User;
    use crate::document::tests::host_system;
    use crate::path;
    use crate::plan::tests::rehearse;
    use crate::resolve::tests::{content, name, name_of, resolve, step};
    use nestbox_protocol::mount::Kind;
    use std::collections::BTreeMap;

    #[test]
    fn is_what_programs_need() {
        let resolved = resolve(&host_system()).expect("resolves");
        rehearse(&resolved.plan.template_mounts, &resolved.plan.nest_mounts);
        let template = &resolved.plan.template_mounts;
        let Some(Kind::Bind(usr)) = step(template, "/usr") else { panic!("a bind") };
        assert!(usr.directory && usr.exec && !usr.writable);
        for path in ["/bin", "/lib"] {
            match fs::read_link(path) {
                Ok(target) => {
                    let Some(Kind::Symlink(link)) = step(template, path) else { panic!("a symlink") };
                    assert_eq!(link.points_to, name(&target).as_bytes());
                }
                Err(_) => assert!(matches!(step(template, path), Some(Kind::Bind(_)))),
            }
        }
        assert_eq!(
            content(&resolved, "/etc/passwd"),
            "root:x:0:0:root:/:/bin/sh\nsandbox:x:1000:1000:sandbox:/tmp:/bin/sh\n\
             nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
        );
        assert_eq!(content(&resolved, "/etc/group"), "root:x:0:\nsandbox:x:1000:\nnogroup:x:65534:\n");
        assert_eq!(content(&resolved, "/etc/hostname"), "nestbox\n");
        let nest = &resolved.plan.nest_mounts;
        let order: Vec<_> =
            nest.iter().map(|step| String::from_utf8_lossy(&step.path).into_owned()).collect();
        assert_eq!(order, ["/proc", "/dev/pts", "/dev/shm", "/tmp"]);
        assert_eq!(resolved.tmpfs_paths, ["/dev/shm", "/tmp"]);
        assert_eq!(resolved.skipped, [""; 0]);
        assert!(resolved.is_current());
    }

    /// Nothing that tells about users, secrets or services of the host.
    #[test]
    fn shows_no_secrets() {
        let resolved = resolve(&host_system()).expect("resolves");
        for path in [
            "/etc/shadow",
            "/etc/gshadow",
            "/etc/sudoers",
            "/etc/ssh",
            "/etc/ssl/private",
            "/etc/machine-id",
            "/etc/resolv.conf",
            "/etc/fstab",
            "/etc/environment",
            "/etc/gitconfig",
            "/root",
            "/home",
            "/opt",
            "/sys",
            "/boot",
        ] {
            let shown = resolved.plan.template_mounts.iter().chain(&resolved.plan.nest_mounts).any(|step| {
                path::is_at_or_below(name_of(&step.path), path)
                    || matches!(&step.kind, Some(Kind::Bind(bind)) if path::is_at_or_below(path, name_of(&bind.source)))
            });
            assert!(!shown, "{path}");
        }
        let host = fs::read_to_string("/etc/hostname").unwrap_or_default();
        let hosts = content(&resolved, "/etc/hosts");
        assert!(host.trim().is_empty() || host.trim() == "nestbox" || !hosts.contains(host.trim()));
    }

    #[test]
    fn knows_the_sandboxee() {
        let user = |uid, gid, home: &str| {
            let env = BTreeMap::from([("HOME".to_owned(), home.to_owned())]);
            let resolved =
                resolve(&Policy { user: User { uid, gid }, env, ..host_system() }).expect("resolves");
            (content(&resolved, "/etc/passwd"), content(&resolved, "/etc/group"))
        };
        let (passwd, group) = user(0, 0, "/home/me");
        assert!(passwd.starts_with("sandbox:x:0:0:sandbox:/home/me:/bin/sh\n"), "{passwd}");
        assert!(group.starts_with("sandbox:x:0:\n"), "{group}");
        let (passwd, _) = user(7, 7, "/a\nroot::0:0::/:/bin/sh");
        assert!(passwd.contains("sandbox:x:7:7:sandbox:/tmp:/bin/sh\n"), "{passwd}");
    }

    #[test]
    fn the_hosts_resolver_goes_with_the_hosts_network() {
        let resolved = resolve(&Policy { network: Network::Host, ..host_system() }).expect("resolves");
        assert!(content(&resolved, "/etc/nsswitch.conf").contains("hosts: files dns\n"));
        if let Ok(host) = fs::read_to_string("/etc/resolv.conf") {
            assert_eq!(content(&resolved, "/etc/resolv.conf"), host);
        }
    }
}

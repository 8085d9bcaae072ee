//! Policies as launches see them: resolved against this host, kept while what they were resolved from is unchanged, and
//! asked for what a launch adds (binds, files).
//!
//! Promises: a launch is made from a plan whose sources are what they were when the plan was made (one stat(2) each); what
//! a launch binds or writes is only where the policy lets it: at declared mount points, and below file systems that are
//! fresh for each nest. Called by the client for each launch.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};

use nestbox_policy::filter::{self, Filter, Preset};
use nestbox_policy::{Issue, MountPointKinds, Policy, ResolveError, Resolved, UnixSockets, path};
use nestbox_protocol::mount::Kind;
use nestbox_protocol::{Bind, Mount, Step};
use nestbox_sys::Errno;

use crate::failure::{Code, Failure};
use crate::files::FileRequest;
use crate::launch::BindRequest;

/// How many variants of one policy are kept: one for each combination of files and directories at its mount points.
const VARIANTS: usize = 8;

/// A bind that is opened for one launch.
#[derive(Clone, Debug)]
pub(crate) struct PlannedBind {
    /// Where it is attached.
    pub(crate) path: Vec<u8>,
    pub(crate) bind: Bind,
}

/// A parsed policy, with what it resolved to on this host.
#[derive(Debug)]
pub struct PolicyHandle {
    policy: Policy,
    variants: Mutex<Vec<(MountPointKinds, Arc<Resolved>)>>,
}

/// What is wrong with the JSON of a policy; nothing of the host is looked at.
#[must_use]
pub fn check_policy(json: &str) -> Vec<Issue> {
    match Policy::parse(json) {
        Ok(policy) => nestbox_policy::check(&policy),
        Err(error) => vec![Issue { path: Vec::new(), message: error.to_string() }],
    }
}

/// What is wrong with the JSON of a syscall filter by itself.
#[must_use]
pub fn check_syscall_filter(json: &str) -> Vec<Issue> {
    match Filter::parse(json) {
        Ok(found) => filter::check(&found, UnixSockets::Allow),
        Err(error) => vec![Issue { path: Vec::new(), message: error.to_string() }],
    }
}

/// The JSON of a preset's filter. None: there is no such preset, or it is no filter.
#[must_use]
pub fn syscall_preset(name: &str) -> Option<String> {
    filter::preset(Preset::named(name)?)?.to_json().ok()
}

impl PolicyHandle {
    /// Reads the JSON of a policy. An error says what is wrong with it.
    pub fn parse(json: &str) -> Result<Self, String> {
        let policy = Policy::parse(json).map_err(|error| error.to_string())?;
        Ok(Self { policy, variants: Mutex::default() })
    }

    /// Hash of what the policy says on this host, in hexadecimal.
    pub fn hash(&self) -> Result<String, Failure> {
        Ok(self.resolve()?.hash.to_string())
    }

    /// Resolves it, unless that was done and still holds. Looks at the host.
    pub fn resolve(&self) -> Result<Arc<Resolved>, Failure> {
        self.variant(MountPointKinds::default())
    }

    /// Resolves it for a launch with these binds, which decide what its mount points are.
    pub(crate) fn resolve_for(&self, binds: &[BindRequest]) -> Result<Arc<Resolved>, Failure> {
        let mut kinds = MountPointKinds::default();
        for bind in binds {
            if !source(bind)?.is_dir() {
                kinds.add_file(clean(&bind.path)?);
            }
        }
        self.variant(kinds)
    }

    /// What it resolved to so far, whether that still holds or not.
    pub(crate) fn known(&self) -> Vec<Arc<Resolved>> {
        let variants = self.variants.lock().unwrap_or_else(PoisonError::into_inner);
        variants.iter().map(|(_, resolved)| Arc::clone(resolved)).collect()
    }

    fn variant(&self, kinds: MountPointKinds) -> Result<Arc<Resolved>, Failure> {
        let mut variants = self.variants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = variants.iter().position(|(of, _)| *of == kinds) {
            if variants[index].1.is_current() {
                return Ok(Arc::clone(&variants[index].1));
            }
            variants.remove(index);
        }
        let resolved = Arc::new(self.policy.resolve(&kinds).map_err(unresolved)?);
        if variants.len() == VARIANTS {
            variants.remove(0);
        }
        variants.push((kinds, Arc::clone(&resolved)));
        Ok(resolved)
    }
}

fn unresolved(error: ResolveError) -> Failure {
    let code = if error.step == Step::DecodeRequest { Code::Request } else { Code::Spawn };
    Failure { code, ..Failure::from_step(error.into()) }
}

fn clean(inside: &str) -> Result<String, Failure> {
    path::clean(inside).map_err(|fault| refused(fault, inside))
}

fn refused(detail: &str, inside: &str) -> Failure {
    Failure::fact(Code::Request, Step::Unspecified, detail).on(inside)
}

/// What a launch binds, as it is now.
fn source(bind: &BindRequest) -> Result<fs::Metadata, Failure> {
    if CString::new(bind.source.as_str()).is_err() || !bind.source.starts_with('/') {
        return Err(refused("a bind's source is an absolute path of the host", &bind.source));
    }
    fs::metadata(&bind.source).map_err(|error| {
        let errno = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
        let failure = Failure::system(Code::Spawn, Step::OpenBindSource, "stat", errno).on(&*bind.source);
        match errno {
            // Not the policy's, which could be optional.
            Errno::ENOENT => {
                let hint = format!("{} is not there on the host: correct the launch's binds", bind.source);
                failure.advise(hint)
            }
            _ => failure,
        }
    })
}

/// All binds that are opened for one launch: the policy's own below file systems that are fresh for each nest, then the
/// launch's. `one_each`: each nest has an id of its own, so what is writable is id-mapped anew for each, over what the
/// template has there.
pub(crate) fn launch_binds(
    resolved: &Resolved,
    requests: &[BindRequest],
    one_each: bool,
) -> Result<Vec<PlannedBind>, Failure> {
    let planned = |mount: &Mount| match &mount.kind {
        Some(Kind::Bind(bind)) => Some(PlannedBind { path: mount.path.clone(), bind: bind.clone() }),
        _ => None,
    };
    let mut binds = Vec::new();
    if one_each {
        let writable = |planned: &PlannedBind| planned.bind.writable && !planned.bind.device;
        binds.extend(resolved.plan.template_mounts.iter().filter_map(planned).filter(writable));
    }
    binds.extend(resolved.plan.nest_mounts.iter().filter_map(planned));
    for request in requests {
        let Some(point) = resolved.mount_point(&request.path) else {
            return Err(refused("the policy declares no such mount point", &request.path));
        };
        let metadata = source(request)?;
        if metadata.is_dir() != point.directory {
            return Err(Failure::system(Code::Spawn, Step::OpenBindSource, "stat", Errno::ESTALE)
                .on(&*request.source)
                .because("it was replaced while it was being bound"));
        }
        let bind = Bind {
            source: request.source.clone().into_bytes(),
            directory: point.directory,
            writable: point.writable,
            exec: point.exec,
            expected_device: metadata.dev(),
            expected_inode: metadata.ino(),
            ..Bind::default()
        };
        binds.push(PlannedBind { path: point.target.clone().into_bytes(), bind });
    }
    Ok(binds)
}

/// Refuses a launch's files that would be written anywhere but to the nest's own file systems.
pub(crate) fn check_files(resolved: &Resolved, files: &[FileRequest<'_>]) -> Result<(), Failure> {
    for file in files {
        let inside = String::from_utf8_lossy(&file.path);
        if !resolved.is_private(&clean(&inside)?) {
            return Err(refused("a file of a launch must lie below a tmpfs of the policy", &inside));
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::path::Path;

    /// The JSON of a policy with these fields instead of the defaults, as `"name": value`.
    pub(crate) fn json(fields: &[(&str, &str)]) -> String {
        let mut all = vec![
            ("version", "1"),
            ("base", "\"empty\""),
            ("mounts", "[]"),
            ("proc", "\"none\""),
            ("dev", "\"none\""),
            ("rootWritable", "false"),
            ("hostname", "\"nestbox\""),
            ("user", r#"{"uid": 1000, "gid": 1000}"#),
            ("env", "{}"),
            ("network", "\"host\""),
            ("unixSockets", "\"none\""),
            ("syscalls", "\"default\""),
            (
                "limits",
                r#"{"wallTime": 60000, "cpuTime": null, "processes": 128, "output": null, "disk": 67108864,
                    "fileSize": null, "openFiles": 1024, "addressSpacePerProcess": null, "stack": null, "core": 0}"#,
            ),
            ("require", "[]"),
        ];
        for (name, value) in &mut all {
            if let Some((_, given)) = fields.iter().find(|(given, _)| given == name) {
                *value = given;
            }
        }
        let fields: Vec<String> = all.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
        format!("{{{}}}", fields.join(","))
    }

    pub(crate) fn handle(fields: &[(&str, &str)]) -> PolicyHandle {
        PolicyHandle::parse(&json(fields)).expect("a policy")
    }

    fn bind(path: &str, source: &Path) -> BindRequest {
        BindRequest { path: path.into(), source: source.to_string_lossy().into_owned() }
    }

    #[test]
    fn is_resolved_once_while_its_sources_stay() {
        let directory = tempfile::tempdir().expect("tempdir");
        let source = directory.path().join("source");
        fs::create_dir(&source).expect("made");
        let mounts = format!(
            r#"[{{"type": "bind", "source": "{}", "path": "/x", "writable": false, "exec": true, "optional": false}}]"#,
            source.display()
        );
        let policy = handle(&[("mounts", &mounts)]);
        let first = policy.resolve().expect("resolves");
        assert!(Arc::ptr_eq(&first, &policy.resolve().expect("resolves")));
        fs::rename(&source, directory.path().join("old")).expect("renamed");
        fs::create_dir(&source).expect("made");
        let second = policy.resolve().expect("resolves");
        assert_ne!(first.template_key, second.template_key);
        assert_eq!(first.hash, second.hash, "it says the same");
        fs::remove_dir(&source).expect("removed");
        let failure = policy.resolve().expect_err("its source is gone");
        assert_eq!((failure.step, failure.errno), (Step::OpenBindSource, Errno::ENOENT));
    }

    #[test]
    fn a_launch_binds_at_mount_points_only() {
        let directory = tempfile::tempdir().expect("tempdir");
        let file = directory.path().join("file");
        fs::write(&file, "x").expect("written");
        let mounts = r#"[{"type": "mountPoint", "path": "/in", "writable": true, "exec": false}]"#;
        let policy = handle(&[("mounts", mounts)]);
        for (source, directory) in [(directory.path(), true), (file.as_path(), false)] {
            let requests = [bind("/in", source)];
            let resolved = policy.resolve_for(&requests).expect("resolves");
            let binds = launch_binds(&resolved, &requests, false).expect("binds");
            assert_eq!(binds.len(), 1);
            assert_eq!((binds[0].bind.directory, binds[0].bind.writable), (directory, true));
            assert_eq!(binds[0].path, b"/in");
        }
        let elsewhere = [bind("/else", directory.path())];
        let resolved = policy.resolve_for(&elsewhere).expect("resolves");
        assert_eq!(launch_binds(&resolved, &elsewhere, false).expect_err("refused").code, Code::Request);
        let missing = policy.resolve_for(&[bind("/in", Path::new("/nonexistent"))]).expect_err("missing");
        assert_eq!(missing.path.as_deref(), Some("/nonexistent"));
    }

    #[test]
    fn files_of_a_launch_stay_in_its_nest() {
        let mounts = r#"[{"type": "tmpfs", "path": "/tmp", "size": null, "inodes": null, "mode": 511},
            {"type": "bind", "source": "/usr", "path": "/tmp/usr", "writable": false, "exec": true, "optional": false}]"#;
        let resolved = handle(&[("mounts", mounts)]).resolve().expect("resolves");
        let file = |path: &str| [FileRequest { path: path.into(), content: b"", mode: 0o600 }];
        check_files(&resolved, &file("/tmp/a/b")).expect("on the tmpfs");
        for path in ["/etc/x", "/tmp/usr/x", "/tmp/../etc/x", "relative"] {
            assert_eq!(check_files(&resolved, &file(path)).expect_err(path).code, Code::Request);
        }
        assert_eq!(
            launch_binds(&resolved, &[], false).expect("binds").len(),
            1,
            "below a tmpfs, for each launch"
        );
    }

    #[test]
    fn malformed_policies_are_issues() {
        assert_eq!(check_syscall_filter("{").len(), 1);
        assert_eq!(check_syscall_filter(&syscall_preset("strict").expect("is one")), []);
        assert_eq!((syscall_preset("unfiltered"), syscall_preset("lenient")), (None, None));
        assert_eq!(check_policy("{").len(), 1);
        assert!(check_policy(&json(&[])).is_empty());
    }
}

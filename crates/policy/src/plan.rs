//! The planner: from the tree as it is wanted to the ordered steps of a [`nestbox_protocol::Plan`].
//!
//! Pure. Promises: parents come before children; everything that a step needs to exist is made by an earlier step or lies
//! on a bind; nothing is ever made on a bind; what lies on a file system that is fresh per nest is done per nest, all else
//! once per template; the order of steps depends on the paths alone, so that equal trees give equal plans. Called by
//! [`crate::resolve`].

use std::collections::BTreeSet;

use nestbox_protocol::{Devpts, Directory, File, Mount, Step, Symlink, mount::Kind};

use crate::error::ResolveError;
use crate::layout::{Entry, Layout};
use crate::path;
use crate::step::{DIRECTORY_MODE, step, target};

/// When a mount is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Once, for the template.
    Template,
    /// Afresh for each nest: it lies on a file system that is.
    Nest,
}

/// A path at which a launch may bind something of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    /// The path as the policy names it, clean.
    pub path: String,
    /// The same place with no symlink on the way: where the bind is attached.
    pub target: String,
    /// What is bound may be written to.
    pub writable: bool,
    /// Programs on it may be executed.
    pub exec: bool,
    /// What is there to be covered: a directory or a file.
    pub directory: bool,
    /// Whether the place itself is part of the template or of the nest.
    pub stage: Stage,
}

/// The tree as it is made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Steps {
    pub(crate) template: Vec<Mount>,
    pub(crate) nest: Vec<Mount>,
    pub(crate) mount_points: Vec<MountPoint>,
}

/// What an entry lies on.
#[derive(Clone, Copy)]
struct Ground {
    stage: Stage,
    /// It is a tmpfs of ours: things can be made on it.
    ours: bool,
    /// Mode of directories that are made on the way.
    mode: u32,
}

const ROOT: Ground = Ground { stage: Stage::Template, ours: true, mode: DIRECTORY_MODE };

impl Layout {
    /// The steps that make the tree.
    pub(crate) fn steps(&self) -> Result<Steps, ResolveError> {
        let mut steps = Steps::default();
        let mut made = BTreeSet::new();
        for (path, entry) in self.entries() {
            let ground = self.ground(path, &mut made, &mut steps)?;
            self.put_steps(path, entry, ground, &mut steps)?;
        }
        // A proc that is mounted later would find what lies below it covered; and the nest's other steps may need it.
        steps.nest.sort_by_key(|step| !matches!(step.kind, Some(Kind::Proc(_))));
        Ok(steps)
    }

    /// What `path` lies on. Makes the directories that lead there.
    fn ground<'a>(
        &'a self,
        inside: &'a str,
        made: &mut BTreeSet<&'a str>,
        steps: &mut Steps,
    ) -> Result<Ground, ResolveError> {
        let mut ground = ROOT;
        for ancestor in path::ancestors(inside) {
            match self.get(ancestor) {
                None if ground.ours => {
                    if made.insert(ancestor) {
                        let kind = Kind::Directory(Directory { mode: ground.mode });
                        steps.add(ground.stage, ancestor, kind);
                    }
                }
                None | Some(Entry::Directory) => {}
                Some(Entry::Bind(bind)) if bind.directory => ground.ours = false,
                Some(Entry::Tmpfs(tmpfs)) => {
                    // What the owner may do on the tmpfs, it may do in a directory that was made on the way.
                    let mode = if tmpfs.mode & 0o200 == 0 { DIRECTORY_MODE } else { 0o1777 };
                    ground = Ground { stage: Stage::Nest, ours: true, mode };
                }
                Some(entry) => {
                    let detail = format!("it lies below {ancestor}, which is {}", entry.name());
                    return Err(ResolveError::new(Step::CreateDirectory, libc::ENOTDIR, "mkdirat", inside)
                        .detail(detail));
                }
            }
        }
        Ok(ground)
    }

    /// The steps of one entry.
    fn put_steps(
        &self,
        inside: &str,
        entry: &Entry,
        ground: Ground,
        steps: &mut Steps,
    ) -> Result<(), ResolveError> {
        let Ground { stage, ours, mode } = ground;
        match entry {
            Entry::Directory => {
                self.must_be_ours(inside, ours, Step::CreateDirectory, "mkdirat")?;
                steps.add(stage, inside, Kind::Directory(Directory { mode }));
            }
            Entry::File { content, mode } => {
                self.must_be_ours(inside, ours, Step::WriteFile, "openat2")?;
                steps.add(stage, inside, Kind::File(File { content: content.clone(), mode: *mode }));
            }
            Entry::Symlink { points_to } => {
                self.must_be_ours(inside, ours, Step::CreateSymlink, "symlinkat")?;
                let points_to = points_to.clone().into_bytes();
                steps.add(stage, inside, Kind::Symlink(Symlink { points_to }));
            }
            Entry::Bind(bind) => {
                steps.add_target(ground, inside, bind.directory);
                steps.add(stage, inside, Kind::Bind(bind.clone()));
            }
            Entry::Tmpfs(tmpfs) => {
                if stage == Stage::Nest && !ours {
                    // Binds of a nest are attached when all its file systems are mounted.
                    return Err(ResolveError::new(Step::MountTmpfs, libc::EINVAL, "mount", inside)
                        .detail("it lies below a bind that is itself below a tmpfs"));
                }
                steps.add_target(ground, inside, true);
                steps.add(Stage::Nest, inside, Kind::Tmpfs(*tmpfs));
            }
            Entry::MountPoint { path, directory, writable, exec } => {
                steps.add_target(ground, inside, *directory);
                steps.mount_points.push(MountPoint {
                    path: path.clone(),
                    target: inside.to_owned(),
                    writable: *writable,
                    exec: *exec,
                    directory: *directory,
                    stage,
                });
            }
            Entry::Proc(proc) => {
                steps.add_target(ground, inside, true);
                steps.add(Stage::Nest, inside, Kind::Proc(proc.clone()));
            }
            Entry::Devpts => {
                steps.add_target(ground, inside, true);
                steps.add(Stage::Nest, inside, Kind::Devpts(Devpts {}));
            }
        }
        Ok(())
    }

    fn must_be_ours(
        &self,
        inside: &str,
        ours: bool,
        step: Step,
        syscall: &'static str,
    ) -> Result<(), ResolveError> {
        if ours {
            return Ok(());
        }
        let bind = self.mount_above(inside).map(|(path, _)| path).unwrap_or_default();
        Err(ResolveError::new(step, libc::EROFS, syscall, inside).detail(format!(
            "it lies below the bind {bind}, and nothing is ever created on the host's file systems"
        )))
    }
}

impl Steps {
    fn add(&mut self, stage: Stage, path: &str, kind: Kind) {
        let steps = match stage {
            Stage::Template => &mut self.template,
            Stage::Nest => &mut self.nest,
        };
        steps.push(step(path.as_bytes(), kind));
    }

    /// What a mount is attached to: made where we can, else expected to be on the bind.
    fn add_target(&mut self, ground: Ground, path: &str, directory: bool) {
        if ground.ours {
            self.add(ground.stage, path, target(directory));
        }
    }

    /// Mount points of file systems that are fresh per nest and writable there.
    pub(crate) fn tmpfs_paths(&self) -> Vec<String> {
        self.nest
            .iter()
            .filter(|step| matches!(step.kind, Some(Kind::Tmpfs(_))))
            .map(|step| String::from_utf8_lossy(&step.path).into_owned())
            .collect()
    }
}

/// The size in bytes that the steps take on a tmpfs.
pub(crate) fn space(steps: &[Mount]) -> u64 {
    const PAGE: u64 = 4096;
    steps
        .iter()
        .map(|step| match &step.kind {
            Some(Kind::File(file)) => (file.content.len() as u64).next_multiple_of(PAGE),
            Some(Kind::Symlink(_)) => PAGE,
            _ => 0,
        })
        .sum()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::layout::tests::{bind, file, layout, mount_point, symlink, tmpfs};
    use nestbox_protocol::Proc;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Steps as text: `directory /a`.
    fn told(steps: &[Mount]) -> Vec<String> {
        let kind = |step: &Mount| match step.kind.as_ref().expect("has a kind") {
            Kind::Directory(_) => "directory",
            Kind::Bind(_) => "bind",
            Kind::Tmpfs(_) => "tmpfs",
            Kind::File(_) => "file",
            Kind::Symlink(_) => "symlink",
            Kind::Proc(_) => "proc",
            Kind::Devpts(_) => "devpts",
        };
        steps.iter().map(|step| format!("{} {}", kind(step), String::from_utf8_lossy(&step.path))).collect()
    }

    /// Carries the steps out on paper, and insists on what the fork server relies on.
    pub(crate) fn rehearse(template: &[Mount], nest: &[Mount]) {
        #[derive(Clone, Copy, PartialEq, Debug)]
        enum Place {
            Directory,
            Leaf,
            Bind { directory: bool },
        }
        let mut places = BTreeMap::from([(String::new(), Place::Directory)]);
        for (stage, step) in template.iter().map(|step| (0, step)).chain(nest.iter().map(|step| (1, step))) {
            let path = String::from_utf8(step.path.clone()).expect("is text");
            assert_eq!(path::clean(&path).as_ref(), Ok(&path), "clean");
            assert_ne!(path, "/", "never the root");
            // The innermost place above that is known: on a bind all else is the host's.
            let above =
                path::ancestors(&path).filter(|above| places.contains_key(*above)).last().unwrap_or("");
            let ground = places[above];
            let parent = &path[..path.rfind('/').expect("absolute")];
            assert_ne!(ground, Place::Leaf, "{path} lies below a leaf");
            assert_ne!(ground, Place::Bind { directory: false }, "{path} lies below a file");
            let on_bind = ground == Place::Bind { directory: true };
            if !on_bind {
                assert_eq!(above, parent, "the parent of {path} is there");
            }
            let known = places.get(&path).copied();
            let place = match step.kind.as_ref().expect("has a kind") {
                Kind::Directory(_) => {
                    assert!(!on_bind, "{path} is made on a bind");
                    assert_eq!(known, None, "{path} is made once");
                    Place::Directory
                }
                Kind::File(_) | Kind::Symlink(_) => {
                    assert!(!on_bind, "{path} is made on a bind");
                    assert_eq!(known, None, "{path} is made once");
                    Place::Leaf
                }
                Kind::Bind(bind) => {
                    let target = if bind.directory { Place::Directory } else { Place::Leaf };
                    assert!(on_bind || known == Some(target), "{path} has its target");
                    Place::Bind { directory: bind.directory }
                }
                Kind::Tmpfs(_) | Kind::Proc(_) | Kind::Devpts(_) => {
                    assert_eq!(stage, 1, "{path} is fresh per nest");
                    assert!(on_bind || known == Some(Place::Directory), "{path} has its target");
                    Place::Directory
                }
            };
            places.insert(path, place);
        }
        let proc = nest.iter().position(|step| matches!(step.kind, Some(Kind::Proc(_))));
        assert!(proc.is_none_or(|position| position == 0), "proc comes first");
    }

    #[test]
    fn makes_what_mounts_are_attached_to() {
        let steps = layout(&[("/a/b/c", bind(true)), ("/a/f", bind(false)), ("/l", symlink("a"))]).steps();
        assert_eq!(
            told(&steps.expect("lays out").template),
            [
                "directory /a",
                "directory /a/b",
                "directory /a/b/c",
                "bind /a/b/c",
                "file /a/f",
                "bind /a/f",
                "symlink /l"
            ]
        );
    }

    #[test]
    fn makes_nothing_on_a_bind() {
        let steps = layout(&[("/a", bind(true)), ("/a/b/c", bind(false)), ("/a/t", tmpfs())]).steps();
        let steps = steps.expect("lays out");
        assert_eq!(told(&steps.template), ["directory /a", "bind /a", "bind /a/b/c"]);
        assert_eq!(told(&steps.nest), ["tmpfs /a/t"]);
        for entry in [file(), symlink("x"), Entry::Directory] {
            let error = layout(&[("/a", bind(true)), ("/a/b", entry)]).steps().expect_err("refuses");
            assert_eq!(error.errno, libc::EROFS);
        }
    }

    #[test]
    fn puts_what_is_fresh_into_the_nest() {
        let steps = layout(&[
            ("/t", tmpfs()),
            ("/t/a/f", file()),
            ("/t/b", bind(true)),
            ("/t/m", mount_point(false)),
            ("/dev/pts", Entry::Devpts),
            ("/z", Entry::Proc(Proc::default())),
        ])
        .steps()
        .expect("lays out");
        assert_eq!(
            told(&steps.template),
            ["directory /dev", "directory /dev/pts", "directory /t", "directory /z"]
        );
        assert_eq!(
            told(&steps.nest),
            [
                "proc /z",
                "devpts /dev/pts",
                "tmpfs /t",
                "directory /t/a",
                "file /t/a/f",
                "directory /t/b",
                "bind /t/b",
                "file /t/m"
            ]
        );
        assert_eq!(steps.mount_points[0].stage, Stage::Nest);
        assert_eq!(steps.mount_points[0].target, "/t/m");
        assert_eq!(steps.mount_points[0].path, "/named");
        assert_eq!(steps.tmpfs_paths(), ["/t"]);
    }

    #[test]
    fn makes_the_kind_of_mount_point_that_is_asked_for() {
        let steps =
            layout(&[("/d", mount_point(true)), ("/f", mount_point(false))]).steps().expect("lays out");
        assert_eq!(told(&steps.template), ["directory /d", "file /f"]);
        assert!(steps.mount_points[0].directory);
        assert!(!steps.mount_points[1].directory);
    }

    #[test]
    fn refuses_what_can_not_be() {
        for above in [file(), symlink("x"), bind(false), mount_point(true), Entry::Devpts] {
            let error = layout(&[("/a", above), ("/a/b", tmpfs())]).steps().expect_err("refuses");
            assert_eq!((error.errno, error.path.as_str()), (libc::ENOTDIR, "/a/b"));
        }
        let error = layout(&[("/t", tmpfs()), ("/t/b", bind(true)), ("/t/b/t", tmpfs())]).steps();
        assert_eq!(error.expect_err("refuses").step, Step::MountTmpfs);
    }

    #[test]
    fn siblings_do_not_come_between() {
        // In the order of bytes, "-" is before "/".
        let steps = layout(&[("/a", bind(true)), ("/a-b", tmpfs()), ("/a/b", bind(true))]).steps();
        let steps = steps.expect("lays out");
        rehearse(&steps.template, &steps.nest);
    }

    fn entry() -> impl Strategy<Value = Entry> {
        prop_oneof![
            any::<bool>().prop_map(bind),
            Just(tmpfs()),
            Just(file()),
            Just(symlink("a/b")),
            any::<bool>().prop_map(mount_point),
            Just(Entry::Directory),
            Just(Entry::Devpts),
            Just(Entry::Proc(Proc::default())),
        ]
    }

    proptest! {
        #[test]
        fn any_layout_is_made_in_order_or_refused(
            entries in prop::collection::vec(("(/[ab-]{1,2}){1,4}", entry(), any::<bool>()), 0..12),
        ) {
            let mut layout = Layout::default();
            let mut procs = 0;
            for (path, entry, base) in entries {
                // A nest has one proc.
                procs += usize::from(matches!(entry, Entry::Proc(_)));
                if matches!(entry, Entry::Proc(_)) && procs > 1 {
                    continue;
                }
                let place = layout.place(&path);
                if base { layout.put_base(place, entry) } else { layout.put(place, entry) }
            }
            // A proc below a fresh mount can't come first; no policy asks for one.
            prop_assume!(!layout.entries().any(|(path, entry)| {
                matches!(entry, Entry::Proc(_)) && path::ancestors(path).any(|above| layout.get(above).is_some())
            }));
            if let Ok(steps) = layout.steps() {
                rehearse(&steps.template, &steps.nest);
                let again = layout.clone().steps().expect("lays out");
                prop_assert_eq!(again.template, steps.template);
                prop_assert_eq!(again.nest, steps.nest);
            }
        }
    }
}

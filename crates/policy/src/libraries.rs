//! The ELF interpreter and libraries that a binary needs, found as the dynamic loader would find them, without running
//! anything: ldd(1) runs the binary's interpreter, which the binary chooses.
//!
//! Follows glibc's search order (RPATH of the object and of those that loaded it, RUNPATH, the loader's cache, default
//! directories; `$ORIGIN`, `$LIB`, `$PLATFORM`; breadth first; only files of the right class and machine) and musl's.
//! Of a library that comes in variants for newer processors all are found: which one is taken is decided where it runs.
//! What a program opens by dlopen(3) is not known here. Called by `resolve`.

mod cache;
mod elf;

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::io;
use std::path::Path;

use nestbox_protocol::Step;

use crate::error::ResolveError;
use cache::{CACHE, Cache};
use elf::{Machine, Object, Unreadable};

/// Subdirectories in which glibc looks for variants.
const VARIANTS: [&str; 3] = ["glibc-hwcaps/x86-64-v4", "glibc-hwcaps/x86-64-v3", "glibc-hwcaps/x86-64-v2"];

/// Names that musl has built in.
const MUSL_BUILT_IN: [&str; 7] = ["c.", "pthread.", "rt.", "m.", "dl.", "util.", "xnet."];

/// Absolute paths of all that has to be where it is for the loader to start `binary`, sorted: its interpreter, the
/// libraries, and the loader's configuration. Nothing for a static binary.
pub fn of(binary: &Path) -> Result<Vec<String>, ResolveError> {
    Search::of(&text(binary)?)
}

/// Whether one of the paths that [`of`] gave is a file that the loader reads, rather than one that it maps.
#[must_use]
pub fn is_loader_configuration(path: &str) -> bool {
    path == CACHE
        || (path.starts_with("/etc/ld-musl-") && Path::new(path).extension().is_some_and(|end| end == "path"))
}

fn text(path: &Path) -> Result<String, ResolveError> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        ResolveError::new(Step::OpenBindSource, libc::EILSEQ, "openat2", path.to_string_lossy())
            .detail("a path that is not well-formed Unicode")
    })
}

/// An object that would be loaded.
struct Loaded {
    path: String,
    object: Object,
    /// Who asked for it, by its place in [`Search::loaded`].
    by: Option<usize>,
}

struct Search {
    machine: Machine,
    musl: bool,
    interpreter: Option<String>,
    cache: Cache,
    /// Directories for names that are found nowhere else.
    defaults: Vec<String>,
    loaded: Vec<Loaded>,
    /// Names that are taken care of.
    known: BTreeSet<String>,
    found: BTreeSet<String>,
}

impl Search {
    fn of(binary: &str) -> Result<Vec<String>, ResolveError> {
        // $ORIGIN of a program is where it really is; that of a library is where it was found.
        let origin = fs::canonicalize(binary)
            .map_err(|error| open_fault(binary, &error))
            .and_then(|path| text(&path))?;
        let object = Object::read(&origin).map_err(|why| unreadable(binary, why))?;
        let mut search = Self {
            machine: object.machine,
            musl: object.interpreter.as_deref().is_some_and(is_musl),
            interpreter: object.interpreter.clone(),
            cache: Cache::default(),
            defaults: Vec::new(),
            loaded: Vec::new(),
            known: BTreeSet::new(),
            found: BTreeSet::new(),
        };
        search.read_configuration(object.needed.is_empty());
        search.loaded.push(Loaded { path: origin, object, by: None });
        search.load_interpreter(binary)?;
        search.run()?;
        Ok(search.found.into_iter().collect())
    }

    fn read_configuration(&mut self, needs_nothing: bool) {
        if self.musl {
            let path = self.interpreter.as_deref().and_then(musl_path_file);
            let configured = path.as_deref().and_then(|path| fs::read(path).ok());
            self.defaults = match &configured {
                Some(list) => String::from_utf8_lossy(list).split([':', '\n']).map(str::to_owned).collect(),
                None => ["/lib", "/usr/local/lib", "/usr/lib"].map(str::to_owned).to_vec(),
            };
            self.defaults.retain(|directory| directory.starts_with('/'));
            self.found.extend(path.filter(|_| configured.is_some() && !needs_nothing));
            return;
        }
        self.defaults = default_directories(self.machine);
        if !needs_nothing && let Some(cache) = Cache::read() {
            self.cache = cache;
            self.found.insert(CACHE.to_owned());
        }
    }

    fn load_interpreter(&mut self, binary: &str) -> Result<(), ResolveError> {
        let Some(path) = self.interpreter.clone() else { return Ok(()) };
        let object = match Object::read(&path) {
            Ok(object) if path.starts_with('/') => object,
            Err(Unreadable::Io(error)) => {
                return Err(open_fault(&path, &error).detail(format!("the ELF interpreter of {binary}")));
            }
            _ => {
                return Err(ResolveError::new(Step::OpenBindSource, libc::ELIBBAD, "openat2", path)
                    .detail(format!("the ELF interpreter of {binary}")));
            }
        };
        self.known.extend(object.name.clone());
        self.found.insert(path.clone());
        self.loaded.push(Loaded { path, object, by: None });
        Ok(())
    }

    /// Breadth first, as the loader goes: what is nearer to the program decides which file a name means.
    fn run(&mut self) -> Result<(), ResolveError> {
        let mut queue: VecDeque<usize> = (0..self.loaded.len()).collect();
        while let Some(index) = queue.pop_front() {
            for name in self.loaded[index].object.needed.clone() {
                if !self.known.insert(name.clone()) || (self.musl && is_built_in(&name)) {
                    continue;
                }
                let paths = self.look_up(&name, index);
                if paths.is_empty() {
                    let by = &self.loaded[index].path;
                    return Err(ResolveError::new(
                        Step::OpenBindSource,
                        libc::ENOENT,
                        "openat2",
                        name.clone(),
                    )
                    .detail(format!("a library that {by} needs is in none of the loader's directories")));
                }
                for (path, object) in paths {
                    self.known.extend(object.name.clone());
                    if self.found.insert(path.clone()) {
                        queue.push_back(self.loaded.len());
                        self.loaded.push(Loaded { path, object, by: Some(index) });
                    }
                }
            }
        }
        Ok(())
    }

    /// The file that `name` means to the object, with its variants; nothing if there is none.
    fn look_up(&self, name: &str, index: usize) -> Vec<(String, Object)> {
        if name.contains('/') {
            let expanded = self.expand(name, index);
            return expanded.iter().filter_map(|path| self.fitting(path)).take(1).collect();
        }
        let object = &self.loaded[index].object;
        for (directory, of) in self.run_paths(index) {
            for directory in self.expand(directory, of) {
                let found = self.in_directory(&directory, name);
                if !found.is_empty() {
                    return found;
                }
            }
        }
        if object.no_defaults {
            return Vec::new();
        }
        if let Some(paths) = self.cache.paths.get(name) {
            let found: Vec<_> = paths.iter().filter_map(|path| self.fitting(path)).collect();
            if !found.is_empty() {
                return found;
            }
        }
        let found = self.defaults.iter().map(|directory| self.in_directory(directory, name));
        found.into_iter().find(|found| !found.is_empty()).unwrap_or_default()
    }

    /// Directories that the objects themselves name, each with the object that names it.
    fn run_paths(&self, index: usize) -> Vec<(&str, usize)> {
        let mut paths = Vec::new();
        let own = &self.loaded[index].object;
        let mut next = Some(index);
        // RPATH is inherited by what an object loads, unless that has a RUNPATH; musl inherits both.
        while let Some(at) = next.filter(|_| self.musl || own.runpath.is_none()) {
            let Loaded { object, by, .. } = &self.loaded[at];
            if self.musl || object.runpath.is_none() {
                let inherited = object.runpath.as_ref().filter(|_| self.musl).unwrap_or(&object.rpath);
                paths.extend(inherited.iter().map(|directory| (directory.as_str(), at)));
            }
            // The program itself is above all that was asked for by the interpreter, too.
            next = by.or((at != 0).then_some(0));
        }
        if !self.musl {
            paths.extend(own.runpath.iter().flatten().map(|directory| (directory.as_str(), index)));
        }
        paths
    }

    fn in_directory(&self, directory: &str, name: &str) -> Vec<(String, Object)> {
        let directory = directory.trim_end_matches('/');
        let plain = self.fitting(&format!("{directory}/{name}"));
        let variants = VARIANTS.iter().filter(|_| !self.musl);
        variants
            .filter_map(|variant| self.fitting(&format!("{directory}/{variant}/{name}")))
            .chain(plain)
            .collect()
    }

    /// The object at the path, if the loader would take it.
    fn fitting(&self, path: &str) -> Option<(String, Object)> {
        let object = Object::read(path).ok().filter(|object| object.machine == self.machine)?;
        Some((lexically_clean(path)?, object))
    }

    /// A directory or path with its `$` words replaced; several where a word's meaning depends on the distribution.
    /// Relative ones would depend on the working directory of the moment.
    fn expand(&self, path: &str, index: usize) -> Vec<String> {
        let origin = Path::new(&self.loaded[index].path).parent().and_then(Path::to_str).unwrap_or("/");
        let path = path.replace("${ORIGIN}", origin).replace("$ORIGIN", origin);
        let triplet = self.machine.triplet();
        let words = |path: String, word: &str, values: &[&str]| -> Vec<String> {
            let (plain, braced) = (format!("${word}"), format!("${{{word}}}"));
            if !path.contains(&plain) && !path.contains(&braced) {
                return vec![path];
            }
            values.iter().map(|value| path.replace(&braced, value).replace(&plain, value)).collect()
        };
        let libraries = [format!("lib/{triplet}"), "lib64".to_owned(), "lib".to_owned()];
        let libraries: Vec<_> = libraries.iter().map(String::as_str).collect();
        let platform = triplet.split('-').next().unwrap_or_default();
        words(path, "LIB", &libraries)
            .into_iter()
            .flat_map(|path| words(path, "PLATFORM", &[platform, "haswell"]))
            .filter(|path| path.starts_with('/'))
            .collect()
    }
}

/// The path without empty and `.` components. One with `..` in it is resolved by the file system, since the component
/// before may be a symlink.
fn lexically_clean(path: &str) -> Option<String> {
    if path.split('/').any(|name| name == "..") {
        return fs::canonicalize(path).ok()?.into_os_string().into_string().ok();
    }
    crate::path::clean(path).ok()
}

fn is_musl(interpreter: &str) -> bool {
    interpreter.rsplit('/').next().is_some_and(|name| name.starts_with("ld-musl-"))
}

/// `/etc/ld-musl-x86_64.path` of `/lib/ld-musl-x86_64.so.1`.
fn musl_path_file(interpreter: &str) -> Option<String> {
    let name = interpreter.rsplit('/').next()?.split(".so").next()?;
    Some(format!("/etc/{name}.path"))
}

fn is_built_in(name: &str) -> bool {
    name.strip_prefix("lib")
        .is_some_and(|name| MUSL_BUILT_IN.iter().any(|built_in| name.starts_with(built_in)))
}

/// Where glibc looks last. Which of them it does depends on the distribution; a file of the right machine in another is
/// not found by the loader there, but does no harm here.
fn default_directories(machine: Machine) -> Vec<String> {
    let triplet = machine.triplet();
    let width = if machine.wide { "64" } else { "32" };
    let mut directories = vec![format!("/lib/{triplet}"), format!("/usr/lib/{triplet}")];
    directories.extend([format!("/lib{width}"), format!("/usr/lib{width}")]);
    directories.extend(["/lib".to_owned(), "/usr/lib".to_owned()]);
    directories
}

fn open_fault(path: &str, error: &io::Error) -> ResolveError {
    ResolveError::new(Step::OpenBindSource, error.raw_os_error().unwrap_or(libc::EIO), "openat2", path)
}

fn unreadable(binary: &str, why: Unreadable) -> ResolveError {
    let fault = |errno| ResolveError::new(Step::OpenBindSource, errno, "openat2", binary);
    match why {
        Unreadable::Io(error) => open_fault(binary, &error),
        Unreadable::NotElf => {
            fault(libc::ENOEXEC).detail("not an ELF binary; of a script, name the interpreter")
        }
        Unreadable::Malformed(error) => fault(libc::ENOEXEC).detail(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::process::Command;

    /// What compiles here, if anything does.
    fn compile(directory: &Path, output: &str, source: &str, arguments: &[&str]) -> bool {
        let name = format!("{output}.c");
        fs::write(directory.join(&name), source).expect("writes");
        let compiler =
            Command::new("cc").current_dir(directory).args([&name, "-o", output]).args(arguments).status();
        compiler.is_ok_and(|status| status.success())
    }

    fn file_names(paths: &[String]) -> Vec<&str> {
        paths.iter().filter_map(|path| path.rsplit('/').next()).collect()
    }

    /// The loader's own opinion: what this very process has mapped.
    #[test]
    fn finds_what_this_process_has_mapped() {
        let found = of(Path::new("/proc/self/exe")).expect("finds");
        let real: BTreeSet<PathBuf> = found.iter().filter_map(|path| fs::canonicalize(path).ok()).collect();
        let maps = fs::read_to_string("/proc/self/maps").expect("reads");
        let mapped: BTreeSet<_> = maps
            .lines()
            .filter_map(|line| line.split_whitespace().nth(5))
            .filter(|path| path.contains(".so"))
            .collect();
        assert!(!mapped.is_empty());
        for path in mapped {
            assert!(real.contains(Path::new(path)), "{path} is mapped; found {found:?}");
        }
    }

    #[test]
    fn finds_nothing_for_a_static_binary() {
        let directory = tempfile::tempdir().expect("makes a directory");
        for kind in ["-static", "-static-pie"] {
            if compile(directory.path(), "program", "int main(void) { return 0; }", &[kind]) {
                assert_eq!(of(&directory.path().join("program")), Ok(Vec::new()), "{kind}");
            }
        }
    }

    /// $ORIGIN is where a library was found; RPATH is inherited, RUNPATH is not.
    #[test]
    fn follows_run_paths() {
        let directory = tempfile::tempdir().expect("makes a directory");
        let root = directory.path();
        fs::create_dir_all(root.join("lib/deep")).expect("makes directories");
        let deep = compile(root, "lib/deep/libdeep.so", "int deep(void) { return 1; }", &["-shared"]);
        if !deep {
            return;
        }
        let middle = "int deep(void); int middle(void) { return deep(); }";
        let link = |extra: &[&str]| {
            let arguments = [&["-shared", "-Llib/deep", "-ldeep"], extra].concat();
            assert!(compile(root, "lib/libmiddle.so", middle, &arguments));
        };
        let main = "int middle(void); int main(void) { return middle(); }";
        let program = |tags: &str, path: &str| {
            let path = format!("-Wl,{tags},-rpath,{path}");
            let arguments = ["-Llib", "-lmiddle", &path, "-Wl,--allow-shlib-undefined"];
            assert!(compile(root, "program", main, &arguments));
            of(&root.join("program"))
        };
        link(&["-Wl,--enable-new-dtags,-rpath,$ORIGIN/deep"]);
        let found = program("--enable-new-dtags", "${ORIGIN}/lib").expect("finds");
        assert!(file_names(&found).contains(&"libmiddle.so"), "{found:?}");
        assert!(file_names(&found).contains(&"libdeep.so"), "{found:?}");
        link(&[]);
        let found = program("--disable-new-dtags", "$ORIGIN/lib:$ORIGIN/lib/deep").expect("finds");
        assert!(file_names(&found).contains(&"libdeep.so"), "{found:?}");
        let error =
            program("--enable-new-dtags", "$ORIGIN/lib:$ORIGIN/lib/deep").expect_err("is not inherited");
        assert_eq!((error.errno, error.path.as_str()), (libc::ENOENT, "libdeep.so"));
        assert!(error.detail.contains("libmiddle.so"), "{error}");
    }

    #[test]
    fn says_what_is_no_binary() {
        let directory = tempfile::tempdir().expect("makes a directory");
        let script = directory.path().join("script");
        fs::write(&script, "#!/bin/sh\n").expect("writes");
        assert_eq!(of(&script).expect_err("refuses").errno, libc::ENOEXEC);
        assert_eq!(of(directory.path()).expect_err("refuses").errno, libc::ENOEXEC);
        assert_eq!(of(Path::new("/no/such/binary")).expect_err("refuses").errno, libc::ENOENT);
        // Truncations of a real one.
        let whole = fs::read("/proc/self/exe").expect("reads");
        for length in [4, 16, 63, 64, 100, 1000, whole.len() / 2] {
            fs::write(&script, &whole[..length]).expect("writes");
            let _ = of(&script);
        }
    }

    #[test]
    fn knows_musl() {
        assert!(is_musl("/lib/ld-musl-x86_64.so.1"));
        assert!(!is_musl("/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(musl_path_file("/lib/ld-musl-x86_64.so.1").as_deref(), Some("/etc/ld-musl-x86_64.path"));
        assert!(is_built_in("libc.musl-x86_64.so.1"));
        assert!(is_built_in("libpthread.so.0"));
        assert!(!is_built_in("libz.so.1"));
        assert!(is_loader_configuration("/etc/ld-musl-x86_64.path"));
        assert!(is_loader_configuration(CACHE));
        assert!(!is_loader_configuration("/lib/libc.so.6"));
    }
}

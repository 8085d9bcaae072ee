//! Paths as text: what an absolute path must look like, its clean form, and which path lies below which.
//!
//! Pure; no host access. Used by every check of this crate and by the client, which has to compare a launch's paths with
//! the policy's.

/// Longest path that a system call takes, without its NUL.
const PATH_MAX: usize = 4095;

/// Longest component of a path.
pub(crate) const NAME_MAX: usize = 255;

/// What is wrong with `path` as an absolute path, if anything is. `/` itself is fine here.
#[must_use]
pub fn fault(path: &str) -> Option<&'static str> {
    if path.is_empty() {
        return Some("The path must not be empty");
    }
    if path.contains('\0') {
        return Some("The path must not contain a NUL byte");
    }
    if !path.starts_with('/') {
        return Some("The path must be absolute");
    }
    if path.split('/').any(|name| name == "..") {
        return Some("The path must not contain \"..\"");
    }
    if path.len() > PATH_MAX {
        return Some("The path is longer than the 4095 bytes that the kernel takes");
    }
    if path.split('/').any(|name| name.len() > NAME_MAX) {
        return Some("A component of the path is longer than the 255 bytes that file systems take");
    }
    None
}

/// The same path with neither empty nor `.` components, or what is wrong with it.
pub fn clean(path: &str) -> Result<String, &'static str> {
    if let Some(fault) = fault(path) {
        return Err(fault);
    }
    let mut clean = String::with_capacity(path.len());
    for name in path.split('/').filter(|name| !matches!(*name, "" | ".")) {
        clean.push('/');
        clean.push_str(name);
    }
    if clean.is_empty() {
        clean.push('/');
    }
    Ok(clean)
}

/// Whether the clean `path` lies below the clean `ancestor`.
#[must_use]
pub fn is_below(path: &str, ancestor: &str) -> bool {
    if ancestor == "/" {
        return path != "/";
    }
    path.strip_prefix(ancestor).is_some_and(|rest| rest.starts_with('/'))
}

/// Whether the clean `path` is the clean `ancestor` or lies below it.
#[must_use]
pub fn is_at_or_below(path: &str, ancestor: &str) -> bool {
    path == ancestor || is_below(path, ancestor)
}

/// The clean path's proper ancestors below `/`, outermost first: `/a` and `/a/b` of `/a/b/c`.
pub fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(end, _)| &path[..end]).filter(|ancestor| !ancestor.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cleans() {
        for (path, expected) in [
            ("/", "/"),
            ("//", "/"),
            ("/a", "/a"),
            ("/a/", "/a"),
            ("//a/./b//", "/a/b"),
            ("/...", "/..."),
            ("/a/..b", "/a/..b"),
        ] {
            assert_eq!(clean(path).as_deref(), Ok(expected), "{path}");
        }
    }

    #[test]
    fn refuses() {
        for path in ["", "a", "./a", "../a", "/..", "/a/../b", "/a/..", "/a\0b"] {
            assert!(clean(path).is_err(), "{path:?}");
        }
        assert!(clean(&format!("/{}", "a".repeat(256))).is_err());
        assert!(clean(&"/a".repeat(2048)).is_err());
        assert!(clean(&"/a".repeat(2047)).is_ok());
    }

    #[test]
    fn below() {
        assert!(is_below("/a/b", "/a"));
        assert!(is_below("/a", "/"));
        assert!(!is_below("/", "/"));
        assert!(!is_below("/a", "/a"));
        assert!(!is_below("/ab", "/a"));
        assert!(is_at_or_below("/a", "/a"));
        assert_eq!(ancestors("/a/b/c").collect::<Vec<_>>(), ["/a", "/a/b"]);
        assert_eq!(ancestors("/a").count(), 0);
        assert_eq!(ancestors("/").count(), 0);
    }

    proptest! {
        #[test]
        fn cleaning_is_idempotent(path in "[/.a-c\0]{0,24}") {
            if let Ok(once) = clean(&path) {
                prop_assert_eq!(clean(&once), Ok(once.clone()));
                prop_assert!(!once.contains("//"));
            }
        }
    }
}

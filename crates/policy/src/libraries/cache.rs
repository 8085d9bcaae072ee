//! glibc's cache of where libraries are, ld.so.cache(5), in both of its formats.
//!
//! Promises: never panics, whatever is in it; what can't be read is as good as no cache. Called by the search in `libraries`.

use std::collections::BTreeMap;
use std::fs;

/// Where it is.
pub(super) const CACHE: &str = "/etc/ld.so.cache";

/// The largest cache that is read; real ones are some 100 KiB.
const CACHE_MAX: u64 = 64 << 20;

/// Where libraries are, by name: ld.so.cache. All entries of a name, since those for other machines are among them, and
/// variants for newer processors.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Cache {
    pub(super) paths: BTreeMap<String, Vec<String>>,
}

impl Cache {
    const OLD_MAGIC: &[u8] = b"ld.so-1.7.0\0";
    const NEW_MAGIC: &[u8] = b"glibc-ld.so.cache1.1";

    /// This host's. None: there is none, or none of a size that one has.
    pub(super) fn read() -> Option<Self> {
        if fs::metadata(CACHE).ok()?.len() > CACHE_MAX {
            return None;
        }
        Some(Self::parse(&fs::read(CACHE).ok()?))
    }

    /// The whole of what can be read; a cache that can't be is as good as none, as for the loader itself.
    fn parse(bytes: &[u8]) -> Self {
        Self::parse_new(bytes).or_else(|| Self::parse_old(bytes)).unwrap_or_default()
    }

    /// The format since glibc 2.2: offsets of strings count from its header.
    fn parse_new(bytes: &[u8]) -> Option<Self> {
        const HEADER: usize = 48;
        const ENTRY: usize = 24;
        if !bytes.starts_with(Self::NEW_MAGIC) {
            return None;
        }
        let count = word(bytes, 20)?;
        let entries = bytes.get(HEADER..)?.chunks_exact(ENTRY).take(count);
        Some(Self::collect(entries.map(|entry| (entry, bytes))))
    }

    /// The format before that; the new one may follow in the same file, and is then the one to read.
    fn parse_old(bytes: &[u8]) -> Option<Self> {
        const HEADER: usize = 16;
        const ENTRY: usize = 12;
        if !bytes.starts_with(Self::OLD_MAGIC) {
            return None;
        }
        let count = word(bytes, 12)?;
        let end = count.checked_mul(ENTRY)?.checked_add(HEADER)?;
        if let Some(new) = bytes.get(end.next_multiple_of(8)..).and_then(Self::parse_new) {
            return Some(new);
        }
        // Offsets of strings count from the end of the entries.
        let strings = bytes.get(end..)?;
        Some(Self::collect(bytes[HEADER..end].chunks_exact(ENTRY).map(|entry| (entry, strings))))
    }

    /// Both kinds of entry begin with flags, name and path.
    fn collect<'a>(entries: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        let mut cache = Self::default();
        for (entry, strings) in entries {
            let string = |at| word(entry, at).and_then(|offset| c_string(strings, offset));
            if let (Some(name), Some(path)) = (string(4), string(8)) {
                let paths: &mut Vec<String> = cache.paths.entry(name.to_owned()).or_default();
                if path.starts_with('/') && !paths.iter().any(|known| known == path) {
                    paths.push(path.to_owned());
                }
            }
        }
        cache
    }
}

/// Four bytes in the machine's order, which is the one that ldconfig(8) writes.
fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?) as usize)
}

fn c_string(bytes: &[u8], at: usize) -> Option<&str> {
    let bytes = bytes.get(at..)?;
    let end = bytes.iter().position(|&byte| byte == 0)?;
    std::str::from_utf8(&bytes[..end]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(value: usize) -> [u8; 4] {
        (value as u32).to_ne_bytes()
    }

    /// A cache in the new format, its strings counted from its start.
    fn new_cache(entries: &[(&str, &str)]) -> Vec<u8> {
        let strings_at = 48 + 24 * entries.len();
        let (mut table, mut strings) = (Vec::new(), Vec::new());
        for (name, path) in entries {
            table.extend(word(0x303));
            for text in [name, path] {
                table.extend(word(strings_at + strings.len()));
                strings.extend(text.bytes().chain([0]));
            }
            table.extend([0; 12]);
        }
        let mut cache = Cache::NEW_MAGIC.to_vec();
        cache.extend(word(entries.len()));
        cache.extend(word(strings.len()));
        cache.extend([0; 20]);
        [cache, table, strings].concat()
    }

    fn old_cache(entries: &[(&str, &str)]) -> Vec<u8> {
        let (mut table, mut strings) = (Vec::new(), Vec::new());
        for (name, path) in entries {
            table.extend(word(3));
            for text in [name, path] {
                table.extend(word(strings.len()));
                strings.extend(text.bytes().chain([0]));
            }
        }
        let mut cache = Cache::OLD_MAGIC.to_vec();
        cache.extend(word(entries.len()));
        [cache, table, strings].concat()
    }

    #[test]
    fn reads_caches() {
        let entries = [("liba.so", "/lib/liba.so"), ("liba.so", "/lib32/liba.so"), ("libb.so", "/b")];
        for cache in [Cache::parse(&new_cache(&entries)), Cache::parse(&old_cache(&entries))] {
            assert_eq!(cache.paths["liba.so"], ["/lib/liba.so", "/lib32/liba.so"]);
            assert_eq!(cache.paths["libb.so"], ["/b"]);
        }
        // Both in one file: the new one counts.
        let mut both = old_cache(&[]);
        both.resize(both.len().next_multiple_of(8), 0);
        both.extend(new_cache(&entries));
        assert_eq!(Cache::parse(&both), Cache::parse(&new_cache(&entries)));
        assert_eq!(Cache::parse(b"nothing of the kind"), Cache::default());
    }

    #[test]
    fn reads_broken_caches() {
        for whole in [new_cache(&[("liba.so", "/liba.so")]), old_cache(&[("liba.so", "/liba.so")])] {
            for length in 0..whole.len() {
                let _ = Cache::parse(&whole[..length]);
            }
            for at in 0..whole.len() {
                let mut broken = whole.clone();
                broken[at] = 0xff;
                let _ = Cache::parse(&broken);
            }
        }
    }

    #[test]
    fn reads_this_hosts_cache() {
        if let Ok(bytes) = fs::read(CACHE) {
            let cache = Cache::parse(&bytes);
            assert!(cache.paths.contains_key("libc.so.6"));
        }
    }
}

//! The options of a tmpfs in a mount tree. Read where one is inserted, and again where it is planned.

use nestbox_protocol::Tmpfs;

/// Reads the options of tmpfs(5) that say something about one tree alone.
pub(super) fn tmpfs_options(options: &str) -> Result<Tmpfs, &'static str> {
    let mut tmpfs = Tmpfs { size: 0, inodes: 0, mode: 0o1777, exec: true };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        match name {
            "size" => tmpfs.size = amount(value).ok_or("size= is a number of bytes, with k, m or g")?,
            "nr_inodes" => tmpfs.inodes = amount(value).ok_or("nr_inodes= is a number, with k, m or g")?,
            "mode" => {
                tmpfs.mode = u32::from_str_radix(value, 8)
                    .ok()
                    .filter(|&mode| mode <= 0o7777)
                    .ok_or("mode= is an octal number, at most 7777")?;
            }
            _ => return Err("of the options of a tmpfs only size=, nr_inodes= and mode= are taken"),
        }
    }
    Ok(tmpfs)
}

/// A number with a binary unit, as the kernel reads it.
fn amount(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount = digits.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    (amount > 0).then_some(amount)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_options_of_tmpfs() {
        let read = |options: &str| tmpfs_options(options).map(|tmpfs| (tmpfs.size, tmpfs.inodes, tmpfs.mode));
        assert_eq!(read(""), Ok((0, 0, 0o1777)));
        assert_eq!(read("size=4096"), Ok((4096, 0, 0o1777)));
        assert_eq!(read("size=2k,nr_inodes=3m,mode=700"), Ok((2048, 3 << 20, 0o700)));
        for options in [
            "size=",
            "size=0",
            "size=-1",
            "size=50%",
            "size=99999999999g",
            "mode=8",
            "mode=17777",
            "uid=0",
            "huge",
        ] {
            assert!(read(options).is_err(), "{options}");
        }
    }
}

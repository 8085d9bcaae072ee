//! What the dynamic loader reads of an ELF object: which libraries it needs, where to look for them, what it goes with.
//!
//! Read from the program headers alone, as the loader does it: sections may have been stripped. Nothing of the object is
//! trusted. Called by the search in `libraries`.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;

use object::elf::{self, FileHeader32, FileHeader64};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::{Endianness, FileKind, ReadCache, ReadRef, StringTable};

/// What the loader reads of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) machine: Machine,
    pub(super) interpreter: Option<String>,
    pub(super) needed: Vec<String>,
    pub(super) name: Option<String>,
    pub(super) rpath: Vec<String>,
    pub(super) runpath: Option<Vec<String>>,
    /// Linked with `-z nodefaultlib`: neither the cache nor the default directories are for it.
    pub(super) no_defaults: bool,
}

/// Two objects go together if this is the same of both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Machine {
    pub(super) wide: bool,
    number: u16,
}

impl Machine {
    /// As Debian names its directories.
    pub(super) fn triplet(self) -> &'static str {
        match (elf::Machine(self.number), self.wide) {
            (elf::EM_X86_64, true) => "x86_64-linux-gnu",
            (elf::EM_X86_64, false) => "x86_64-linux-gnux32",
            (elf::EM_386, _) => "i386-linux-gnu",
            (elf::EM_AARCH64, _) => "aarch64-linux-gnu",
            (elf::EM_ARM, _) => "arm-linux-gnueabihf",
            (elf::EM_RISCV, _) => "riscv64-linux-gnu",
            _ => "unknown-linux-gnu",
        }
    }
}

/// Why a file is no object.
#[derive(Debug)]
pub(super) enum Unreadable {
    Io(io::Error),
    NotElf,
    Malformed(object::read::Error),
}

impl From<object::read::Error> for Unreadable {
    fn from(error: object::read::Error) -> Self {
        Self::Malformed(error)
    }
}

impl Object {
    pub(super) fn read(path: &str) -> Result<Self, Unreadable> {
        // Before it is opened: opening a device may do something. Without blocking: it may have become a pipe since.
        if !fs::metadata(path).map_err(Unreadable::Io)?.is_file() {
            return Err(Unreadable::NotElf);
        }
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(Unreadable::Io)?;
        // Reads what is asked for; a library may be hundreds of megabytes.
        Self::parse(&ReadCache::new(file))
    }

    fn parse<'data>(data: impl ReadRef<'data>) -> Result<Self, Unreadable> {
        match FileKind::parse(data) {
            Ok(FileKind::Elf32) => Self::parse_as::<FileHeader32<Endianness>>(data),
            Ok(FileKind::Elf64) => Self::parse_as::<FileHeader64<Endianness>>(data),
            _ => Err(Unreadable::NotElf),
        }
    }

    fn parse_as<'data, H: FileHeader>(data: impl ReadRef<'data>) -> Result<Self, Unreadable> {
        let header = H::parse(data)?;
        let endian = header.endian()?;
        let segments = header.program_headers(endian, data)?;
        let mut object = Self {
            machine: Machine { wide: header.is_class_64(), number: header.e_machine(endian).0 },
            ..Self::default()
        };
        let mut dynamic: &[H::Dyn] = &[];
        for segment in segments {
            if let Some(interpreter) = segment.interpreter(endian, data)? {
                object.interpreter = Some(String::from_utf8_lossy(interpreter).into_owned());
            }
            if let Some(found) = segment.dynamic(endian, data)? {
                dynamic = found;
            }
        }
        let value = |wanted| {
            dynamic
                .iter()
                .take_while(|entry| entry.d_tag(endian) != elf::DT_NULL)
                .find(|entry| entry.d_tag(endian) == wanted)
                .map(|entry| entry.d_val(endian).into())
        };
        let (Some(address), Some(size)) = (value(elf::DT_STRTAB), value(elf::DT_STRSZ)) else {
            return Ok(object);
        };
        // The table is named by its address in memory; sections, which name it by offset, may have been stripped.
        let Some(start) = segments.iter().find_map(|segment| {
            let (from, length): (u64, u64) =
                (segment.p_vaddr(endian).into(), segment.p_filesz(endian).into());
            let offset = address.checked_sub(from).filter(|&offset| offset < length)?;
            let is_load = segment.p_type(endian) == elf::PT_LOAD;
            is_load.then(|| segment.p_offset(endian).into().checked_add(offset)).flatten()
        }) else {
            return Err(Unreadable::NotElf);
        };
        let strings = StringTable::new(data, start, start.saturating_add(size));
        for entry in dynamic.iter().take_while(|entry| entry.d_tag(endian) != elf::DT_NULL) {
            let value: u64 = entry.d_val(endian).into();
            let string = || {
                let found = u32::try_from(value).ok().and_then(|offset| strings.get(offset).ok());
                found.map(|bytes| String::from_utf8_lossy(bytes).into_owned()).ok_or(Unreadable::NotElf)
            };
            match entry.d_tag(endian) {
                elf::DT_NEEDED => object.needed.push(string()?),
                elf::DT_SONAME => object.name = Some(string()?),
                elf::DT_RPATH => object.rpath = directories(&string()?),
                elf::DT_RUNPATH => object.runpath = Some(directories(&string()?)),
                elf::DT_FLAGS_1 => object.no_defaults = value & elf::DF_1_NODEFLIB.0 != 0,
                _ => {}
            }
        }
        Ok(object)
    }
}

fn directories(list: &str) -> Vec<String> {
    list.split(':').filter(|directory| !directory.is_empty()).map(str::to_owned).collect()
}

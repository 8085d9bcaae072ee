//! ELF files: where each was mapped, the tables to unwind with, and what stands at an address.
//!
//! Promises: a file that can't be read, or lies, gives fewer or wrong names, never an error.

use std::cell::OnceCell;
use std::ops::Range;
use std::rc::Rc;

use addr2line::Context;
use framehop::ExplicitModuleSectionInfo;
use gimli::{EndianSlice, NativeEndian, SectionId};
use object::elf::PF_X;
use object::read::elf::{ElfFile64, ElfSegment64};
use object::{Object, ObjectSection, ObjectSegment, ObjectSymbol, SegmentFlags, SymbolKind};

use crate::capture::Capture;

type Slice = EndianSlice<'static, NativeEndian>;

/// A source line that an address belongs to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) symbol: Option<String>,
    pub(crate) file: Option<String>,
    pub(crate) line: Option<u32>,
}

/// A file, read once however often it is mapped.
struct Image {
    file: ElfFile64<'static>,
    /// Address, size and name of each function, in order; made when it is first needed.
    symbols: OnceCell<Vec<(u64, u64, &'static str)>>,
    lines: OnceCell<Option<Context<Slice>>>,
}

/// Code of a file, mapped.
pub(crate) struct Module {
    pub(crate) path: &'static [u8],
    pub(crate) range: Range<u64>,
    /// What is to be added to an address in the file.
    pub(crate) bias: u64,
    image: Rc<Image>,
}

/// The mappings of one file's code.
pub(crate) fn modules(
    capture: &Capture<'static>,
    path: &'static [u8],
    content: &'static [u8],
) -> Vec<Module> {
    let Ok(file) = ElfFile64::parse(content) else { return Vec::new() };
    let image = Rc::new(Image { file, symbols: OnceCell::new(), lines: OnceCell::new() });
    capture
        .maps
        .iter()
        .filter(|mapping| mapping.path == path && mapping.is_code())
        .filter_map(|mapping| {
            let bias = image.bias(mapping.start, mapping.offset)?;
            Some(Module { path, range: mapping.start..mapping.end, bias, image: Rc::clone(&image) })
        })
        .collect()
}

impl Image {
    /// The distance of addresses in memory from those in the file, if `offset` of the file is mapped at `start`.
    fn bias(&self, start: u64, offset: u64) -> Option<u64> {
        const PAGE: u64 = 4096;
        // A page of the file may belong to two segments; only the mappings of code are asked about.
        let code = |segment: &ElfSegment64<'_, '_>| matches!(segment.flags(), SegmentFlags::Elf { p_flags } if p_flags & PF_X != 0);
        self.file.segments().filter(code).find_map(|segment| {
            let (from, size) = segment.file_range();
            let mapped = from & !(PAGE - 1)..from.checked_add(size)?;
            let in_memory = segment.address().wrapping_sub(from).wrapping_add(offset);
            mapped.contains(&offset).then(|| start.wrapping_sub(in_memory))
        })
    }

    fn section(&self, name: &str) -> Option<(Range<u64>, &'static [u8])> {
        let section = self.file.section_by_name(name)?;
        // One that is compressed is not used as it stands.
        let data = if section
            .compressed_file_range()
            .is_ok_and(|range| range.format == object::CompressionFormat::None)
        {
            section.data().ok()?
        } else {
            return None;
        };
        let address = section.address();
        Some((address..address.checked_add(section.size())?, data))
    }

    fn symbols(&self) -> &[(u64, u64, &'static str)] {
        self.symbols.get_or_init(|| {
            let mut all: Vec<(u64, u64, &'static str)> = self
                .file
                .symbols()
                .chain(self.file.dynamic_symbols())
                .filter(|symbol| symbol.is_definition() && symbol.kind() == SymbolKind::Text)
                .filter_map(|symbol| Some((symbol.address(), symbol.size(), symbol.name().ok()?)))
                .filter(|(_, _, name)| !name.is_empty())
                .collect();
            // Of those at one address the last one counts: the longest, the one that is meant for others (`socket`, not
            // `__socket`), and the first by name.
            let hidden = |name: &str| name.bytes().take_while(|&byte| byte == b'_').count();
            all.sort_unstable_by(|left, right| {
                let order =
                    |one: &(u64, u64, &str), other: &(u64, u64, &str)| (one.0, one.1, hidden(other.2));
                order(left, right).cmp(&order(right, left)).then_with(|| right.2.cmp(left.2))
            });
            all
        })
    }

    fn lines(&self) -> Option<&Context<Slice>> {
        self.lines
            .get_or_init(|| {
                let load = |id: SectionId| -> Result<Slice, gimli::Error> {
                    let data = self
                        .file
                        .section_by_name(id.name())
                        .and_then(|section| section.uncompressed_data().ok());
                    let data: &'static [u8] = match data {
                        Some(std::borrow::Cow::Borrowed(data)) => data,
                        Some(std::borrow::Cow::Owned(data)) => data.leak(),
                        None => &[],
                    };
                    Ok(EndianSlice::new(data, NativeEndian))
                };
                Context::from_dwarf(gimli::Dwarf::load(load).ok()?).ok()
            })
            .as_ref()
    }

    /// The function that an address in the file belongs to.
    fn symbol(&self, address: u64) -> Option<String> {
        let symbols = self.symbols();
        let after = symbols.partition_point(|&(start, _, _)| start <= address);
        let &(start, size, name) = symbols.get(after.checked_sub(1)?)?;
        (size == 0 || address - start < size)
            .then(|| addr2line::demangle_auto(name.into(), None).into_owned())
    }
}

impl Module {
    /// The tables for the unwinder.
    pub(crate) fn unwind_info(&self) -> ExplicitModuleSectionInfo<&'static [u8]> {
        let of = |name| self.image.section(name).unzip();
        let ((text_svma, text), (eh_frame_svma, eh_frame)) = (of(".text"), of(".eh_frame"));
        let ((eh_frame_hdr_svma, eh_frame_hdr), (_, debug_frame)) = (of(".eh_frame_hdr"), of(".debug_frame"));
        ExplicitModuleSectionInfo {
            text_svma,
            text,
            got_svma: of(".got").0,
            eh_frame_svma,
            eh_frame,
            eh_frame_hdr_svma,
            eh_frame_hdr,
            debug_frame,
            ..ExplicitModuleSectionInfo::default()
        }
    }

    /// Whether this code is in the file at an address in memory.
    pub(crate) fn has_code(&self, address: u64, code: &[u8]) -> bool {
        let at = |(range, text): (Range<u64>, &'static [u8])| {
            let from = usize::try_from(address.wrapping_sub(self.bias).checked_sub(range.start)?).ok()?;
            text.get(from..from.checked_add(code.len())?)
        };
        self.range.contains(&address) && self.image.section(".text").and_then(at) == Some(code)
    }

    /// What stands at an address in memory: the function there, and before it those that were inlined into it.
    pub(crate) fn places(&self, address: u64) -> Vec<Place> {
        let address = address.wrapping_sub(self.bias);
        let mut places = Vec::new();
        if let Some(mut frames) =
            self.image.lines().and_then(|lines| lines.find_frames(address).skip_all_loads().ok())
        {
            while let Ok(Some(frame)) = frames.next() {
                let location = frame.location.as_ref();
                places.push(Place {
                    symbol: frame.function.and_then(|name| Some(name.demangle().ok()?.into_owned())),
                    file: location.and_then(|location| Some(location.file?.to_owned())),
                    line: location.and_then(|location| location.line),
                });
            }
        }
        if places.is_empty() {
            places.push(Place::default());
        }
        if let Some(function) = places.last_mut()
            && function.symbol.is_none()
        {
            function.symbol = self.image.symbol(address);
        }
        places
    }
}

//! Stopped system calls as JavaScript values. 64-bit numbers are hexadecimal text: a double does not hold them.

use napi_derive::napi;
use nestbox_client::{Address, Answer, Kind, Learned, Memory, SystemCall, Use};

use crate::event::Bytes;

/// A system call that the filter stopped.
#[napi(object, object_from_js = false)]
#[derive(Debug)]
pub struct NativeSystemCall {
    pub syscall: String,
    pub number: i32,
    pub args: Vec<String>,
    pub arch: String,
    pub instruction_pointer: String,
    pub pid: Option<u32>,
    pub tid: u32,
    pub memory: Vec<NativeMemory>,
}

/// What one of its pointers led to.
#[napi(object, object_from_js = false)]
#[derive(Debug)]
pub struct NativeMemory {
    pub argument: u32,
    #[napi(ts_type = "'path' | 'address' | 'data'")]
    pub kind: &'static str,
    #[napi(ts_type = "Buffer")]
    pub content: Bytes,
    pub cut: bool,
    pub address: Option<NativeAddress>,
}

/// A socket's address.
#[napi(object, object_from_js = false)]
#[derive(Debug)]
pub struct NativeAddress {
    pub family: String,
    pub address: Option<String>,
    pub port: Option<u32>,
    pub path: Option<String>,
}

/// A question about a call.
#[napi(object, object_from_js = false)]
#[derive(Debug)]
pub struct NativeAsked {
    pub id: String,
    pub call: NativeSystemCall,
}

/// What a launch learned.
#[napi(object, object_from_js = false)]
#[derive(Debug)]
pub struct NativeLearned {
    pub uses: Vec<NativeUse>,
    pub incomplete: bool,
}

/// One use of a call.
#[napi(object, object_from_js = false)]
#[derive(Debug)]
pub struct NativeUse {
    pub syscall: String,
    /// Arguments that tell it apart: index, value, index, value.
    pub arguments: Vec<f64>,
}

/// An answer.
#[napi(object, object_to_js = false)]
#[derive(Debug)]
pub struct NativeAnswer {
    #[napi(ts_type = "'report' | 'kill' | 'allow' | 'errno' | 'value' | 'fd'")]
    pub kind: String,
    /// Decimal, with `value`.
    pub value: Option<String>,
    /// With `errno` its number, with `fd` ours.
    pub number: Option<i32>,
    /// With `fd`.
    pub close_on_exec: Option<bool>,
}

impl NativeAnswer {
    /// What does not make sense is a violation.
    pub(crate) fn convert(&self) -> Answer {
        match (self.kind.as_str(), self.number) {
            ("allow", _) => Answer::Allow,
            ("kill", _) => Answer::Kill,
            ("errno", Some(errno)) => Answer::Errno(errno),
            ("fd", Some(fd)) => Answer::Fd { fd, close_on_exec: self.close_on_exec == Some(true) },
            ("value", _) => {
                let value = self.value.as_deref().and_then(|value| value.parse().ok());
                value.map_or(Answer::Report, Answer::Value)
            }
            _ => Answer::Report,
        }
    }
}

/// A 64-bit number as text.
pub(crate) fn hexadecimal(number: u64) -> String {
    format!("{number:#x}")
}

impl From<SystemCall> for NativeSystemCall {
    fn from(call: SystemCall) -> Self {
        Self {
            syscall: call.name,
            number: call.number,
            args: call.args.into_iter().map(hexadecimal).collect(),
            arch: call.arch,
            instruction_pointer: hexadecimal(call.instruction_pointer),
            pid: call.pid,
            tid: call.tid,
            memory: call.memory.into_iter().map(NativeMemory::from).collect(),
        }
    }
}

impl From<Memory> for NativeMemory {
    fn from(memory: Memory) -> Self {
        let (kind, address) = match memory.kind {
            Kind::Path => ("path", None),
            Kind::Address(address) => ("address", Some(address.into())),
            Kind::Data => ("data", None),
        };
        Self { argument: memory.argument, kind, content: Bytes(memory.content), cut: memory.cut, address }
    }
}

impl From<Address> for NativeAddress {
    fn from(address: Address) -> Self {
        let Address { family, address, port, path } = address;
        Self { family, address, port: port.map(u32::from), path }
    }
}

impl From<Learned> for NativeLearned {
    fn from(learned: Learned) -> Self {
        let made = |Use { name, arguments }: Use| NativeUse {
            syscall: name,
            arguments: arguments.into_iter().flat_map(|(at, value)| [f64::from(at), value as f64]).collect(),
        };
        Self { uses: learned.uses.into_iter().map(made).collect(), incomplete: learned.incomplete }
    }
}

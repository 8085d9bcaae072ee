//! A syscall filter as data: the published form, which is what TypeScript's `syscallFilter()` makes.
//!
//! Rules in order, of which the first that matches decides, and what happens if none does. Only its shape is known here;
//! what makes sense is [`super::check()`]'s, and what it means [`super::lower`]'s.

use nix::errno::Errno;
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::PolicyError;

/// A filter of a policy's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// The first one that matches decides.
    pub rules: Vec<Rule>,
    /// What becomes of a call that none matches.
    pub otherwise: Action,
}

impl Filter {
    /// Reads the published form. Says nothing yet about whether it makes sense: see [`super::check()`].
    pub fn parse(json: &str) -> Result<Self, PolicyError> {
        Ok(serde_json::from_str(json)?)
    }

    /// The published form.
    pub fn to_json(&self) -> Result<String, PolicyError> {
        Ok(serde_json::to_string(self)?)
    }
}

/// What becomes of some calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The names of the calls.
    pub syscalls: Vec<String>,
    /// Conditions on their arguments, all of which must hold. None: the rule always matches.
    pub when: Vec<Condition>,
    /// What becomes of them.
    pub action: Action,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is made.
    Allow,
    /// It fails with this error.
    Errno(ErrorNumber),
    /// The kernel kills the process, and nobody is told why.
    Kill,
    /// It is recorded, and the process killed.
    Report,
    /// The host decides.
    Ask,
}

/// An errno, written by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ErrorNumber(i32);

impl ErrorNumber {
    /// One of libc's constants, or 0, which no rule can say: the call succeeds, and isn't made.
    pub(crate) const fn of(number: i32) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub fn number(self) -> i32 {
        self.0
    }
}

/// Above every errno that has a name.
const ERRNO_NAMES: i32 = 256;

impl TryFrom<String> for ErrorNumber {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let named = |number: &i32| {
            let errno = Errno::from_raw(*number);
            errno != Errno::UnknownErrno && format!("{errno:?}") == name
        };
        (1..ERRNO_NAMES).find(named).map(Self).ok_or_else(|| format!("There is no error {name:?}"))
    }
}

impl From<ErrorNumber> for String {
    fn from(ErrorNumber(number): ErrorNumber) -> Self {
        format!("{:?}", Errno::from_raw(number))
    }
}

/// A condition on one argument.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Condition {
    /// Which argument, from 0.
    pub argument: u32,
    /// How much of it the kernel looks at, and so must we: what is in the other half of a register is the caller's
    /// choice.
    pub width: Width,
    /// What it is compared with.
    pub test: Test,
}

/// How much of an argument is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// The low half: `int`, `unsigned int`, and what the kernel makes such a one of.
    Low,
    /// All of it: pointers, lengths, offsets.
    Whole,
}

/// What an argument is compared with; numbers are unsigned.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Test {
    /// It is this.
    Equal(u64),
    /// It is anything else.
    NotEqual(u64),
    /// It is below this.
    Below(u64),
    /// It is this or below.
    AtMost(u64),
    /// It is above this.
    Above(u64),
    /// It is this or above.
    AtLeast(u64),
    /// Of the bits of `mask` it has exactly those of `value`.
    Masked {
        /// The bits that are looked at.
        mask: u64,
        /// Those that are set.
        value: u64,
    },
    /// It has at least one of these bits.
    HasAny(u64),
    /// It is one of these.
    OneOf(Vec<u64>),
}

/// A condition as it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    arg: u32,
    width: u32,
    op: Operator,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mask: Option<Hexadecimal>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<Hexadecimal>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    values: Option<Vec<Hexadecimal>>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Operator {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    MaskedEq,
    HasAny,
    OneOf,
}

/// 64 bits, which JSON's numbers can't hold, as `0x5412`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Hexadecimal(u64);

impl TryFrom<String> for Hexadecimal {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let number =
            text.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok()).map(Self);
        // Of the ways to write a number, one: a leading zero or a plus is none of ours.
        number
            .filter(|&number| String::from(number) == text)
            .ok_or_else(|| format!("{text:?} is no hexadecimal number such as 0x5412"))
    }
}

impl From<Hexadecimal> for String {
    fn from(Hexadecimal(number): Hexadecimal) -> Self {
        format!("{number:#x}")
    }
}

impl TryFrom<Written> for Condition {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let Written { arg, width, op, mask, value, values } = written;
        let width = match width {
            32 => Width::Low,
            64 => Width::Whole,
            width => return Err(format!("A width is 32 or 64, and not {width}")),
        };
        let test = match (op, mask, value, values) {
            (Operator::Eq, None, Some(value), None) => Test::Equal(value.0),
            (Operator::Ne, None, Some(value), None) => Test::NotEqual(value.0),
            (Operator::Lt, None, Some(value), None) => Test::Below(value.0),
            (Operator::Le, None, Some(value), None) => Test::AtMost(value.0),
            (Operator::Gt, None, Some(value), None) => Test::Above(value.0),
            (Operator::Ge, None, Some(value), None) => Test::AtLeast(value.0),
            (Operator::HasAny, None, Some(value), None) => Test::HasAny(value.0),
            (Operator::MaskedEq, Some(mask), Some(value), None) => {
                Test::Masked { mask: mask.0, value: value.0 }
            }
            (Operator::OneOf, None, None, Some(values)) => {
                Test::OneOf(values.iter().map(|value| value.0).collect())
            }
            _ => {
                let message =
                    "A condition has a value; maskedEq a mask as well, and oneOf only a list of values";
                return Err(message.to_owned());
            }
        };
        Ok(Self { argument: arg, width, test })
    }
}

impl From<Condition> for Written {
    fn from(condition: Condition) -> Self {
        let (op, mask, value, values) = match condition.test {
            Test::Equal(value) => (Operator::Eq, None, Some(value), None),
            Test::NotEqual(value) => (Operator::Ne, None, Some(value), None),
            Test::Below(value) => (Operator::Lt, None, Some(value), None),
            Test::AtMost(value) => (Operator::Le, None, Some(value), None),
            Test::Above(value) => (Operator::Gt, None, Some(value), None),
            Test::AtLeast(value) => (Operator::Ge, None, Some(value), None),
            Test::HasAny(value) => (Operator::HasAny, None, Some(value), None),
            Test::Masked { mask, value } => (Operator::MaskedEq, Some(mask), Some(value), None),
            Test::OneOf(values) => (Operator::OneOf, None, None, Some(values)),
        };
        Self {
            arg: condition.argument,
            width: if condition.width == Width::Low { 32 } else { 64 },
            op,
            mask: mask.map(Hexadecimal),
            value: value.map(Hexadecimal),
            values: values.map(|values| values.into_iter().map(Hexadecimal).collect()),
        }
    }
}

impl Width {
    /// The bits that are compared.
    pub(crate) fn bits(self) -> u64 {
        match self {
            Self::Low => u32::MAX.into(),
            Self::Whole => u64::MAX,
        }
    }
}

/// The syscall filter of a policy: a preset by name, or a filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Syscalls {
    /// One of ours, or none.
    Preset(Preset),
    /// One of the policy's own.
    Filter(Filter),
}

/// The names that stand for a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// Everything that ordinary programs need, and none of the kernel's dangerous corners.
    Default,
    /// Computation on what is open already.
    Strict,
    /// No filter.
    Unfiltered,
}

impl Preset {
    /// The preset of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Default, Self::Strict, Self::Unfiltered].into_iter().find(|preset| preset.name() == name)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Strict => "strict",
            Self::Unfiltered => "unfiltered",
        }
    }
}

impl Syscalls {
    /// The name under which results list what was enforced.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Preset(preset) => preset.name(),
            Self::Filter(_) => "custom",
        }
    }
}

/// By hand, because what serde says of an untagged enum is only that nothing fits.
impl<'de> Deserialize<'de> for Syscalls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Syscalls;

            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("the name of a preset, or a filter")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Syscalls, E> {
                Preset::deserialize(de::value::StrDeserializer::new(name)).map(Syscalls::Preset)
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Syscalls, A::Error> {
                Filter::deserialize(de::value::MapAccessDeserializer::new(map)).map(Syscalls::Filter)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

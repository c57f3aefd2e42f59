//! The byte format: fixed little-endian integers, length-prefixed bytes, one tag byte per choice.
//!
//! Each type lists its fields once, and both directions come from that list, so they cannot drift apart. Reading a
//! command or a reply never allocates more than a small multiple of the bytes at hand, copies no body, and refuses every
//! encoding but the one that writing produces. A snapshot takes as much room as its highest slot; with the right hash it is believed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Why bytes, or a command about to become bytes, were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes end inside a field.
    Truncated,
    /// Bytes follow the last field.
    Trailing,
    /// A format version this code does not know.
    UnknownVersion(u8),
    /// A tag this code does not know, and of what.
    UnknownKind(&'static str, u8),
    /// A field is outside its limits (see `limits`).
    OutOfRange(&'static str),
}

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Truncated => write!(f, "the bytes end inside a field"),
            Self::Trailing => write!(f, "bytes follow the last field"),
            Self::UnknownVersion(version) => write!(f, "unknown format version {version}"),
            Self::UnknownKind(what, kind) => write!(f, "unknown kind {kind} of {what}"),
            Self::OutOfRange(field) => write!(f, "{field} is out of range"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// Where a message's content lies in the bytes being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub offset: u32,
    pub len: u32,
}

/// Memory that a list may take beforehand, as a multiple of the bytes that are left to read it from.
const ROOM_FACTOR_MAX: usize = 8;

/// A cursor over bytes that also notes where contents lie, because they stay in the log.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    pub spans: Vec<Span>,
    /// The version of the snapshot that is read; what is no snapshot has every field.
    pub snapshot_version: u8,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, spans: Vec::new(), snapshot_version: u8::MAX }
    }

    pub fn at(&self) -> usize {
        self.at
    }

    pub fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let end = self.at.checked_add(len).ok_or(DecodeError::Truncated)?;
        let part = self.bytes.get(self.at..end).ok_or(DecodeError::Truncated)?;
        self.at = end;
        Ok(part)
    }

    /// How many items to make room for: what is claimed, but no more memory than a small multiple of the bytes that are left.
    fn room_for<T>(&self, count: u32) -> usize {
        let left = self.bytes.len() - self.at;
        (count as usize).min(left.saturating_mul(ROOM_FACTOR_MAX) / size_of::<T>().max(1))
    }

    pub fn finish(&self) -> Result<(), DecodeError> {
        if self.is_empty() { Ok(()) } else { Err(DecodeError::Trailing) }
    }

    /// A field that snapshots have from `version` on; in older ones it has its default.
    pub fn take_since<T: Wire<'a> + Default>(&mut self, version: u8) -> Result<T, DecodeError> {
        if self.snapshot_version < version { Ok(T::default()) } else { T::take(self) }
    }

    pub fn version(&mut self, known: u8) -> Result<(), DecodeError> {
        match u8::take(self)? {
            version if version == known => Ok(()),
            version => Err(DecodeError::UnknownVersion(version)),
        }
    }
}

/// A type with one byte form.
pub(crate) trait Wire<'a>: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn take(reader: &mut Reader<'a>) -> Result<Self, DecodeError>;
}

macro_rules! wire_integer {
    ($($name:ident),*) => {$(
        impl<'a> Wire<'a> for $name {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn take(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
                let mut bytes = [0; size_of::<$name>()];
                bytes.copy_from_slice(reader.take(size_of::<$name>())?);
                Ok(Self::from_le_bytes(bytes))
            }
        }
    )*};
}
wire_integer!(u8, u16, u32, u64);

impl<'a> Wire<'a> for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn take(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        match u8::take(reader)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(DecodeError::UnknownKind("flag", other)),
        }
    }
}

impl<'a> Wire<'a> for &'a [u8] {
    fn put(&self, out: &mut Vec<u8>) {
        put_len(self.len(), out);
        out.extend_from_slice(self);
    }
    fn take(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let len = u32::take(reader)? as usize;
        reader.take(len)
    }
}

impl<'a> Wire<'a> for std::sync::Arc<[u8]> {
    fn put(&self, out: &mut Vec<u8>) {
        (&**self).put(out);
    }
    fn take(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(<&[u8]>::take(reader)?.into())
    }
}

impl<'a, T: Wire<'a>> Wire<'a> for Box<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (**self).put(out);
    }
    fn take(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        T::take(reader).map(Box::new)
    }
}

impl<'a, T: Wire<'a>> Wire<'a> for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            None => out.push(0),
            Some(value) => {
                out.push(1);
                value.put(out);
            }
        }
    }
    fn take(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        if bool::take(reader)? { Ok(Some(T::take(reader)?)) } else { Ok(None) }
    }
}

impl<'a, T: Wire<'a>> Wire<'a> for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        put_len(self.len(), out);
        self.iter().for_each(|item| item.put(out));
    }
    fn take(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let count = u32::take(reader)?;
        let mut items = Vec::with_capacity(reader.room_for::<T>(count));
        for _ in 0..count {
            items.push(T::take(reader)?);
        }
        Ok(items)
    }
}

impl<'a, A: Wire<'a>, B: Wire<'a>> Wire<'a> for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
    fn take(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok((A::take(reader)?, B::take(reader)?))
    }
}

impl<'a, K: Wire<'a> + Ord, V: Wire<'a>> Wire<'a> for BTreeMap<K, V> {
    fn put(&self, out: &mut Vec<u8>) {
        put_len(self.len(), out);
        for (key, value) in self {
            key.put(out);
            value.put(out);
        }
    }
    fn take(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let pairs = Vec::<(K, V)>::take(reader)?;
        Ok(pairs.into_iter().collect())
    }
}

impl<'a, T: Wire<'a> + Ord> Wire<'a> for BTreeSet<T> {
    fn put(&self, out: &mut Vec<u8>) {
        put_len(self.len(), out);
        self.iter().for_each(|item| item.put(out));
    }
    fn take(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Vec::take(reader)?.into_iter().collect())
    }
}

impl<'a, T: Wire<'a>> Wire<'a> for VecDeque<T> {
    fn put(&self, out: &mut Vec<u8>) {
        put_len(self.len(), out);
        self.iter().for_each(|item| item.put(out));
    }
    fn take(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Vec::take(reader)?.into())
    }
}

pub(crate) fn put_len(len: usize, out: &mut Vec<u8>) {
    let len = u32::try_from(len).expect("what is encoded is shorter than 4 GiB");
    len.put(out);
}

/// Seven bits a byte, the lowest first, in as few bytes as it takes.
pub(crate) fn put_varint(mut number: u32, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

pub(crate) fn take_varint(reader: &mut Reader<'_>) -> Result<u32, DecodeError> {
    let mut number = 0;
    for shift in (0..u32::BITS).step_by(7) {
        let byte = u8::take(reader)?;
        let bits = u32::from(byte & 0x7f);
        let is_too_long = byte == 0 && shift > 0;
        if is_too_long || bits << shift >> shift != bits {
            break;
        }
        number |= bits << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(DecodeError::OutOfRange("number"))
}

/// The byte form of a struct: its fields in the order given, those that later snapshot versions added last.
macro_rules! wire_struct {
    ($life:lifetime $name:ident { $($field:ident),* $(,)? }) => {
        impl<$life> $crate::wire::Wire<$life> for $name<$life> {
            $crate::wire::wire_struct!(@body $life { $($field),* });
        }
    };
    ($name:ident { $($field:ident),* $(,)? } $(since $version:literal { $($new:ident),* $(,)? })*) => {
        impl<'a> $crate::wire::Wire<'a> for $name {
            $crate::wire::wire_struct!(@body 'a { $($field),* } $($version { $($new),* })*);
        }
    };
    (@body $life:lifetime { $($field:ident),* } $($version:literal { $($new:ident),* })*) => {
        fn put(&self, out: &mut Vec<u8>) {
            $($crate::wire::Wire::put(&self.$field, out);)*
            $($($crate::wire::Wire::put(&self.$new, out);)*)*
        }
        fn take(reader: &mut $crate::wire::Reader<$life>) -> Result<Self, $crate::wire::DecodeError> {
            Ok(Self {
                $($field: $crate::wire::Wire::take(reader)?,)*
                $($($new: reader.take_since($version)?,)*)*
            })
        }
    };
}

/// The byte form of an enum: its tag, then the fields of the variant.
macro_rules! wire_enum {
    ($life:lifetime $name:ident { $($tag:literal => $variant:ident { $($field:ident),* $(,)? }),* $(,)? }) => {
        impl<$life> $crate::wire::Wire<$life> for $name<$life> {
            $crate::wire::wire_enum!(@body $life $name { $($tag => $variant { $($field),* }),* });
        }
    };
    ($name:ident { $($tag:literal => $variant:ident { $($field:ident),* $(,)? }),* $(,)? }) => {
        impl<'a> $crate::wire::Wire<'a> for $name {
            $crate::wire::wire_enum!(@body 'a $name { $($tag => $variant { $($field),* }),* });
        }
    };
    (@body $life:lifetime $name:ident { $($tag:literal => $variant:ident { $($field:ident),* }),* }) => {
        fn put(&self, out: &mut Vec<u8>) {
            match self {
                $(Self::$variant { $($field),* } => {
                    out.push($tag);
                    $($crate::wire::Wire::put($field, out);)*
                })*
            }
        }
        fn take(reader: &mut $crate::wire::Reader<$life>) -> Result<Self, $crate::wire::DecodeError> {
            match <u8 as $crate::wire::Wire>::take(reader)? {
                $($tag => Ok(Self::$variant { $($field: $crate::wire::Wire::take(reader)?),* }),)*
                other => Err($crate::wire::DecodeError::UnknownKind(stringify!($name), other)),
            }
        }
    };
}

pub(crate) use {wire_enum, wire_struct};

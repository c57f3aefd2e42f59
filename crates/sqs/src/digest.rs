//! The MD5 digests that SDKs check: of bodies, and of message attributes in their canonical form
//! ("Calculating the MD5 message digest for message attributes" in Amazon's developer guide).

use md5::{Digest, Md5};

use crate::hex::{self, Digits};

/// One attribute as the digest sees it.
pub struct Field<'a> {
    pub name: &'a str,
    pub kind: &'a str,
    pub value: Value<'a>,
}

pub enum Value<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
}

const TEXT: u8 = 1;
const BYTES: u8 = 2;

/// Of a body, in hex.
pub fn of_body(body: &[u8]) -> Digits<32> {
    hex::of_16(Md5::digest(body).into())
}

/// Of attributes, whatever their order; nothing when there are none.
pub fn of_attributes(mut fields: Vec<Field<'_>>) -> Option<Digits<32>> {
    if fields.is_empty() {
        return None;
    }
    fields.sort_unstable_by(|left, right| left.name.cmp(right.name));
    let mut digest = Md5::new();
    for field in fields {
        part(&mut digest, field.name.as_bytes());
        part(&mut digest, field.kind.as_bytes());
        match field.value {
            Value::Text(text) => {
                digest.update([TEXT]);
                part(&mut digest, text.as_bytes());
            }
            Value::Bytes(bytes) => {
                digest.update([BYTES]);
                part(&mut digest, bytes);
            }
        }
    }
    Some(hex::of_16(digest.finalize().into()))
}

/// A length and what has it. Attributes are far below 4 GiB.
fn part(digest: &mut Md5, bytes: &[u8]) {
    digest.update((bytes.len() as u32).to_be_bytes());
    digest.update(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_a_body_is_its_md5() {
        assert_eq!(&*of_body(b"This is a test message"), "fafb00f5732ab283681e124bf8747ed1");
    }

    /// Computed apart from this code, with Python's hashlib over the documented form.
    #[test]
    fn the_digest_of_attributes_does_not_depend_on_their_order() {
        let fields = |swap: bool| {
            let text = Field { name: "timestamp", kind: "Number", value: Value::Text("1493147359900") };
            let bytes = Field { name: "blob", kind: "Binary", value: Value::Bytes(&[0, 255]) };
            if swap { vec![bytes, text] } else { vec![text, bytes] }
        };
        assert_eq!(of_attributes(fields(false)), of_attributes(fields(true)));
        assert_eq!(of_attributes(fields(true)).as_deref(), Some("504901d112680b7f963d0164e24eb7e9"));
        let text = Field { name: "timestamp", kind: "Number", value: Value::Text("1493147359900") };
        assert_eq!(of_attributes(vec![text]).as_deref(), Some("235c5c510d26fb653d073faed50ae77c"));
        assert_eq!(of_attributes(Vec::new()), None);
    }
}

//! Changes of bytes.

use crate::random::Random;

/// What [`crate::lists::NAMES`] has in place of a name that is no UTF-8.
const PLACEHOLDER: &[u8] = b"\x01\x01not-utf-8";

/// Writes the bytes of names that the decoded file cannot have.
pub fn spoil_names(file: &mut [u8]) {
    let n = PLACEHOLDER.len();
    for start in 0..file.len().saturating_sub(n) {
        if file[start..start + n] == *PLACEHOLDER {
            file[start] = 0xff;
        }
    }
}

/// Sets some bytes, flips a bit, takes a piece out, writes a piece twice or elsewhere, makes a number huge, or cuts the
/// end off.
pub fn change_bytes(file: &mut Vec<u8>, random: &mut Random) {
    let n = file.len();
    if n == 0 {
        return;
    }
    let at = random.below(n);
    match random.below(7) {
        0 => {
            for _ in 0..=random.below(8) {
                let at = random.below(n);
                file[at] = u8::try_from(random.below(256)).unwrap_or(0);
            }
        }
        1 | 2 => file[at] ^= 1 << random.below(8),
        3 => {
            let end = (at + random.below(40)).min(n);
            file.drain(at..end);
        }
        4 => {
            let piece = file[at..(at + random.below(200)).min(n)].to_vec();
            let to = random.below(n);
            file.splice(to..to, piece);
        }
        5 => {
            let huge: &[u8] = random.one([&[0xff; 9], &[0x7f], &[0x00], &[0xff, 0xff, 0xff, 0xff, 0x07]]);
            file.splice(at..at + 1, huge.iter().copied());
        }
        _ => file.truncate(at),
    }
}

/// Adds a type that is nested this deep.
pub fn nest_types(file: &mut Vec<u8>, depth: usize) {
    let mut inner: Vec<u8> = Vec::new();
    for _ in 0..depth {
        // TypeProto.sequence_type.elem_type
        inner = wrap(4, &wrap(1, &inner));
    }
    // ModelProto.graph.value_info.type: a second graph joins the first one
    file.extend(wrap(7, &wrap(13, &wrap(2, &inner))));
}

/// A length-delimited protobuf field.
fn wrap(field: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![field << 3 | 2];
    let mut length = content.len();
    while length > 127 {
        bytes.push(u8::try_from(length & 127).unwrap_or(0) | 128);
        length >>= 7;
    }
    bytes.push(u8::try_from(length).unwrap_or(0));
    bytes.extend_from_slice(content);
    bytes
}

//! Keys of rows: hashes of their values. A key depends neither on the place of the row nor on the order of its columns.

use datafusion::arrow::array::{Float64Array, StringViewArray};

/// Tags of values, which keep a missing value apart from a number and a text.
const MISSING: u64 = 0;
const NUMBER: u64 = 1;
const TEXT: u64 = 2;

/// One round of SplitMix64.
///
/// # Source
/// Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA (2014).
pub(crate) fn mix(state: u64, value: u64) -> u64 {
    let mut mixed = state.wrapping_add(value).wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// A hash as a number from 0 up to but not including 1.
pub(crate) fn uniform(hash: u64) -> f64 {
    (hash >> 11) as f64 / (1_u64 << 53) as f64
}

/// Adds the numbers of the column `name` to the keys of their rows.
pub(crate) fn add_numbers(keys: &mut [u64], name: &str, numbers: &Float64Array) {
    let column = bytes(0, name.as_bytes());
    let hash = |number: f64| {
        // -0 is 0
        let number = if number == 0.0 { 0.0 } else { number };
        mix(mix(column, NUMBER), number.to_bits())
    };
    for (key, number) in keys.iter_mut().zip(numbers) {
        // a sum, which does not depend on the order of the columns
        *key = key.wrapping_add(number.map_or(mix(column, MISSING), hash));
    }
}

/// Adds the texts of the column `name` to the keys of their rows.
pub(crate) fn add_texts(keys: &mut [u64], name: &str, texts: &StringViewArray) {
    let column = bytes(0, name.as_bytes());
    let hash = |text: &str| bytes(mix(column, TEXT), text.as_bytes());
    for (key, text) in keys.iter_mut().zip(texts) {
        *key = key.wrapping_add(text.map_or(mix(column, MISSING), hash));
    }
}

/// A hash of bytes, from the state `state`.
fn bytes(state: u64, bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(mix(state, bytes.len() as u64), |state, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(state, u64::from_le_bytes(word))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(columns: &[(&str, Option<f64>)], texts: &[(&str, Option<&str>)]) -> u64 {
        let mut keys = [0];
        for (name, number) in columns {
            add_numbers(&mut keys, name, &Float64Array::from(vec![*number]));
        }
        for (name, text) in texts {
            add_texts(&mut keys, name, &StringViewArray::from(vec![*text]));
        }
        keys[0]
    }

    #[test]
    fn a_key_is_of_the_values_and_not_of_the_order_of_columns() {
        let row = key(&[("a", Some(1.0)), ("b", None)], &[("c", Some("x"))]);
        assert_eq!(row, key(&[("b", None), ("a", Some(1.0))], &[("c", Some("x"))]));
        assert_eq!(key(&[("a", Some(-0.0))], &[]), key(&[("a", Some(0.0))], &[]));
        let others = [
            key(&[("a", None), ("b", Some(1.0))], &[("c", Some("x"))]),
            key(&[("b", Some(1.0)), ("a", None)], &[("c", Some("x\0"))]),
            key(&[("a", Some(1.0)), ("b", Some(0.0))], &[("c", Some("x"))]),
            key(&[("a", Some(1.0)), ("b", None)], &[("c", None)]),
            key(&[("a", Some(1.0)), ("b", None)], &[("c", Some(""))]),
            key(&[("a", Some(1.0)), ("b", None)], &[("c", Some("a text of more than eight bytes"))]),
        ];
        for (i, other) in others.iter().enumerate() {
            assert!(*other != row && !others[..i].contains(other), "{i}");
        }
    }

    #[test]
    fn hashes_of_similar_rows_are_uniform() {
        let n = 100_000_u32;
        for step in [1.0, 1e-9, 1e9] {
            let mut tenths = [0_u32; 10];
            for i in 0..n {
                let share = uniform(mix(7, key(&[("a", Some(f64::from(i) * step)), ("b", Some(1.0))], &[])));
                let tenth = tenths.iter().enumerate().rfind(|(tenth, _)| *tenth as f64 / 10.0 <= share);
                let tenth = tenth.map_or(0, |(tenth, _)| tenth);
                tenths[tenth] += 1;
            }
            // four deviations of a binomial count
            assert!(tenths.iter().all(|count| count.abs_diff(n / 10) < 380), "{step}: {tenths:?}");
        }
    }
}

//! Whole numbers as clients send them: as numbers in JSON, as text in forms and by some JSON clients.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

use crate::error::Error as SqsError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Int(pub i64);

impl<'de> Deserialize<'de> for Int {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IntVisitor)
    }
}

struct IntVisitor;

impl Visitor<'_> for IntVisitor {
    type Value = Int;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a whole number")
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Int, E> {
        Ok(Int(number))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Int, E> {
        i64::try_from(number).map(Int).map_err(|_| E::custom("a number that is too large"))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Int, E> {
        let is_whole = number.fract() == 0.0 && number.abs() < 9e15;
        if is_whole { Ok(Int(number as i64)) } else { Err(E::custom("a number that is not whole")) }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Int, E> {
        text.parse().map(Int).map_err(|_| E::custom(format!("{text:?} is not a whole number")))
    }
}

/// A number that is absent or within its bounds.
///
/// # Errors
/// `InvalidParameterValue`.
pub fn within(parameter: &str, number: Option<Int>, min: i64, max: i64) -> Result<Option<u64>, SqsError> {
    match number {
        None => Ok(None),
        Some(Int(number)) if (min..=max).contains(&number) => Ok(Some(number.unsigned_abs())),
        Some(Int(number)) => {
            let reason = format!("Must be between {min} and {max}, if provided.");
            Err(SqsError::value(parameter, number, &reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_text_are_the_same_and_anything_else_is_refused() {
        for text in ["5", "\"5\"", "5.0"] {
            assert_eq!(serde_json::from_str::<Int>(text).unwrap(), Int(5), "{text}");
        }
        for text in ["5.5", "\"x\"", "\"\"", "true", "[]", "1e300", "18446744073709551615"] {
            assert!(serde_json::from_str::<Int>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bounds_are_named() {
        assert_eq!(within("X", None, 1, 10), Ok(None));
        assert_eq!(within("X", Some(Int(10)), 1, 10), Ok(Some(10)));
        let error = within("X", Some(Int(11)), 1, 10).unwrap_err();
        assert_eq!(
            error.message,
            "Value 11 for parameter X is invalid. Reason: Must be between 1 and 10, if provided."
        );
    }
}

//! Members that a client leaves away, or sends as `null`, which is the same in AWS JSON; and those with items, of which no more are
//! kept than there can be: a request of 8 MiB has millions of empty ones, each a hundred times what it was in JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::limits::{BATCH_ENTRIES_MAX, NAMES_MAX, PAIRS_MAX};

pub fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A list of names. One that is too long is refused.
pub fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let names = Option::<Names>::deserialize(deserializer)?;
    Ok(names.map(|names| names.0).unwrap_or_default())
}

/// A map, as attributes and tags are. One that is too large is refused.
pub fn pairs<'de, D, V>(deserializer: D) -> Result<BTreeMap<String, V>, D::Error>
where
    D: Deserializer<'de>,
    V: Deserialize<'de>,
{
    let pairs = Option::<Pairs<V>>::deserialize(deserializer)?;
    Ok(pairs.map(|pairs| pairs.0).unwrap_or_default())
}

/// The entries of a batch: as many as there can be are kept, and all are counted.
#[derive(Debug)]
pub struct Batch<T> {
    pub kept: Vec<T>,
    pub count: usize,
}

struct Names(Vec<String>);

struct Pairs<V>(BTreeMap<String, V>);

impl<T> Default for Batch<T> {
    fn default() -> Self {
        Self { kept: Vec::new(), count: 0 }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Batch<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(BatchVisitor(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(NamesVisitor)
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Pairs<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PairsVisitor(PhantomData))
    }
}

struct BatchVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for BatchVisitor<T> {
    type Value = Batch<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a sequence")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Batch<T>, A::Error> {
        let mut kept = Vec::with_capacity(BATCH_ENTRIES_MAX);
        while kept.len() < BATCH_ENTRIES_MAX {
            let Some(entry) = items.next_element()? else {
                return Ok(Batch { count: kept.len(), kept });
            };
            kept.push(entry);
        }
        let mut count = kept.len();
        while items.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(Batch { kept, count })
    }
}

struct NamesVisitor;

impl<'de> Visitor<'de> for NamesVisitor {
    type Value = Names;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a sequence")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Names, A::Error> {
        let mut names = Vec::new();
        while let Some(name) = items.next_element::<String>()? {
            if names.len() == NAMES_MAX {
                return Err(A::Error::custom(format_args!("a list can have {NAMES_MAX} names")));
            }
            names.push(name);
        }
        Ok(Names(names))
    }
}

struct PairsVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for PairsVisitor<V> {
    type Value = Pairs<V>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> Result<Pairs<V>, A::Error> {
        let mut pairs = BTreeMap::new();
        while let Some(name) = items.next_key::<String>()? {
            if pairs.len() == PAIRS_MAX && !pairs.contains_key(&name) {
                return Err(A::Error::custom(format_args!("a map can have {PAIRS_MAX} keys")));
            }
            let value = items.next_value::<V>()?;
            pairs.insert(name, value);
        }
        Ok(Pairs(pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(count: usize) -> String {
        format!("[{}]", vec![r#""x""#; count].join(","))
    }

    #[derive(Deserialize)]
    struct Request {
        #[serde(default, deserialize_with = "or_default")]
        entries: Batch<String>,
        #[serde(default, deserialize_with = "names")]
        names: Vec<String>,
        #[serde(default, deserialize_with = "pairs")]
        pairs: BTreeMap<String, u32>,
    }

    fn read(text: &str) -> Result<Request, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn the_entries_beyond_a_batch_are_counted_and_not_kept() {
        for count in [0, 1, BATCH_ENTRIES_MAX, BATCH_ENTRIES_MAX + 1, 100_000] {
            let batch = serde_json::from_str::<Batch<String>>(&list(count)).unwrap();
            assert_eq!((batch.count, batch.kept.len()), (count, count.min(BATCH_ENTRIES_MAX)));
        }
        assert!(serde_json::from_str::<Batch<String>>(&list(11).replace(']', "")).is_err());
    }

    #[test]
    fn lists_and_maps_without_end_are_refused() {
        let names = |count: usize| read(&format!(r#"{{"names":{}}}"#, list(count)));
        assert_eq!(names(NAMES_MAX).unwrap().names.len(), NAMES_MAX);
        assert!(names(NAMES_MAX + 1).is_err());
        let pairs = |count: usize| {
            let pairs = (0..count).map(|at| format!(r#""{at}":{at}"#)).collect::<Vec<_>>().join(",");
            read(&format!(r#"{{"pairs":{{{pairs},"0":7}}}}"#))
        };
        let most = pairs(PAIRS_MAX).unwrap().pairs;
        // Of a key that comes twice the later value holds.
        assert_eq!((most.len(), most["0"]), (PAIRS_MAX, 7));
        assert!(pairs(PAIRS_MAX + 1).is_err());
    }

    #[test]
    fn what_is_left_away_or_null_is_empty() {
        for text in ["{}", r#"{"entries":null,"names":null,"pairs":null}"#] {
            let request = read(text).unwrap();
            assert_eq!((request.entries.count, request.names.len(), request.pairs.len()), (0, 0, 0));
        }
    }
}

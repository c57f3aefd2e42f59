//! A value that takes room from its first change on.

use std::ops::{Deref, DerefMut};

/// A type with a value that nothing has happened to: its default.
pub(crate) trait Untouched: Default + 'static {
    fn untouched() -> &'static Self;
    fn is_untouched(&self) -> bool;
}

/// Reads as the untouched value, and makes one of its own for who asks to change it.
#[derive(Debug)]
pub(crate) struct Seldom<T>(Option<Box<T>>);

impl<T: Untouched> Seldom<T> {
    pub fn untouched() -> Self {
        Self(None)
    }

    pub fn of(value: T) -> Self {
        Self((!value.is_untouched()).then(|| Box::new(value)))
    }

    pub fn into_inner(self) -> T {
        self.0.map(|value| *value).unwrap_or_default()
    }

    /// The value, if it takes room already.
    pub fn touched(&mut self) -> Option<&mut T> {
        self.0.as_deref_mut()
    }
}

impl<T: Untouched> Deref for Seldom<T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or_else(|| T::untouched())
    }
}

impl<T: Untouched> DerefMut for Seldom<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }
}

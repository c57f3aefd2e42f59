//! Which trace a message belongs to, as the W3C recommendation "Trace Context" writes it: two attributes of the message,
//! `traceparent` and `tracestate`. The broker carries them and does not read them.

use std::fmt;
use std::str::FromStr;

use crate::{Message, NewMessage};

const PARENT: &str = "traceparent";
const STATE: &str = "tracestate";
/// What the recommendation asks every participant to pass on at least.
const STATE_BYTES_MAX: usize = 512;

/// The place of a message in a trace.
///
/// ```
/// use leasehold_client::{NewMessage, TraceContext};
///
/// let context: TraceContext = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse()?;
/// assert!(context.is_sampled());
/// assert_eq!((context.trace_id()[0], context.parent_id()[0], context.state()), (0x4b, 0x00, ""));
/// let of_mine = context.of_span([7; 8]).expect("the id is not zero").with_state("vendor=1");
/// let message = NewMessage::new("hello").trace_context(&of_mine);
/// # let _ = message;
/// # Ok::<(), leasehold_client::InvalidTraceContext>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: [u8; 16],
    parent_id: [u8; 8],
    flags: u8,
    state: String,
}

/// A `traceparent` that does not follow the recommendation: start a new trace instead.
///
/// ```
/// use leasehold_client::{InvalidTraceContext, TraceContext};
///
/// assert_eq!("00".parse::<TraceContext>(), Err(InvalidTraceContext));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a traceparent is `00-`, 32 hexadecimal digits, `-`, 16 digits, `-`, 2 digits, in lower case and not all zero"
)]
pub struct InvalidTraceContext;

impl TraceContext {
    /// `None` when one of the ids is all zero, which means "no trace".
    ///
    /// ```
    /// use leasehold_client::TraceContext;
    ///
    /// let context = TraceContext::new([7; 16], [9; 8], 1).expect("the ids are not zero");
    /// assert_eq!(context.to_string(), "00-07070707070707070707070707070707-0909090909090909-01");
    /// ```
    #[must_use]
    pub fn new(trace_id: [u8; 16], parent_id: [u8; 8], flags: u8) -> Option<Self> {
        let is_valid = trace_id != [0; 16] && parent_id != [0; 8];
        is_valid.then(|| Self { trace_id, parent_id, flags, state: String::new() })
    }

    /// Names the whole trace.
    #[must_use]
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace_id
    }

    /// Names the span that sent the message.
    #[must_use]
    pub fn parent_id(&self) -> [u8; 8] {
        self.parent_id
    }

    /// Whether the sender records the trace.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    /// What vendors of tracing added; empty when nothing.
    #[must_use]
    pub fn state(&self) -> &str {
        &self.state
    }

    /// Adds the `tracestate`. One of more than 512 bytes is dropped, as the recommendation allows.
    #[must_use]
    pub fn with_state(mut self, state: impl Into<String>) -> Self {
        self.state = state.into();
        if self.state.len() > STATE_BYTES_MAX {
            self.state.clear();
        }
        self
    }

    /// The same trace, sent on by another span. `None` when the id is all zero.
    #[must_use]
    pub fn of_span(&self, span_id: [u8; 8]) -> Option<Self> {
        (span_id != [0; 8]).then(|| Self { parent_id: span_id, ..self.clone() })
    }
}

impl FromStr for TraceContext {
    type Err = InvalidTraceContext;

    fn from_str(text: &str) -> Result<Self, InvalidTraceContext> {
        let mut fields = text.split('-');
        let mut next = || fields.next().ok_or(InvalidTraceContext);
        let (version, trace_id, parent_id, flags) = (next()?, next()?, next()?, next()?);
        let [version] = hex::<1>(version)?;
        // A later version may have more fields behind those of this one.
        if version == 0xff || (version == 0 && next().is_ok()) {
            return Err(InvalidTraceContext);
        }
        let [flags] = hex::<1>(flags)?;
        Self::new(hex(trace_id)?, hex(parent_id)?, flags).ok_or(InvalidTraceContext)
    }
}

/// Writes the `traceparent`.
impl fmt::Display for TraceContext {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("00-")?;
        self.trace_id.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))?;
        formatter.write_str("-")?;
        self.parent_id.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))?;
        write!(formatter, "-{:02x}", self.flags)
    }
}

fn hex<const BYTES: usize>(text: &str) -> Result<[u8; BYTES], InvalidTraceContext> {
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != BYTES * 2 || !text.bytes().all(is_hex) {
        return Err(InvalidTraceContext);
    }
    let mut bytes = [0; BYTES];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).map_err(|_| InvalidTraceContext)?;
    }
    Ok(bytes)
}

impl NewMessage {
    /// Says to which trace the message belongs; replaces what it said before.
    #[must_use]
    pub fn trace_context(mut self, context: &TraceContext) -> Self {
        self.wire.attributes.retain(|attribute| attribute.name != PARENT && attribute.name != STATE);
        self = self.attribute(PARENT, "String", context.to_string());
        if context.state.is_empty() { self } else { self.attribute(STATE, "String", context.state.clone()) }
    }
}

impl Message {
    /// The trace that the message belongs to, if its sender said so in a way that can be read.
    #[must_use]
    pub fn trace_context(&self) -> Option<TraceContext> {
        let text = |name| self.attribute(name).and_then(|value| std::str::from_utf8(value).ok());
        let context: TraceContext = text(PARENT)?.parse().ok()?;
        Some(context.with_state(text(STATE).unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use leasehold_proto::v1;
    use tokio::time::Instant;

    use super::*;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_is_sent_is_read_again() {
        let context = TEXT.parse::<TraceContext>().unwrap().with_state("vendor=1");
        assert_eq!(context.to_string(), TEXT);
        let sent = NewMessage::new("")
            .trace_context(&"00-01010101010101010101010101010101-0202020202020202-00".parse().unwrap());
        let sent = sent.trace_context(&context);
        assert_eq!(sent.wire.attributes.len(), 2);
        let wire = v1::Delivery { attributes: sent.wire.attributes, ..Default::default() };
        assert_eq!(Message::from_wire(wire, Instant::now()).trace_context(), Some(context));
    }

    #[test]
    fn what_is_not_of_the_recommendation_is_refused() {
        for text in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e47€-00f067aa0ba902b7-01",
        ] {
            assert_eq!(text.parse::<TraceContext>(), Err(InvalidTraceContext), "{text}");
        }
        assert!(
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more".parse::<TraceContext>().is_ok()
        );
    }
}

//! Replies remembered for clients that ask again.
//!
//! A session keeps the replies between `completed_below` and its latest request. A request below what is kept is told so and
//! never executed again. Bounded three ways: replies of a session, sessions, and bytes over all; the idlest session goes first.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::RequestId;
use crate::limits::{SESSION_BYTES_MAX, SESSION_IDLE_MS_MAX, SESSION_REPLIES_MAX, SESSIONS_MAX};
use crate::reply::Reply;
use crate::wire::{DecodeError, Reader, Wire, wire_struct};

type Bytes = std::sync::Arc<[u8]>;

#[derive(Debug, Default)]
struct Session {
    used_ms: u64,
    /// Requests below this are forgotten.
    floor: u64,
    replies: BTreeMap<u64, Bytes>,
}
wire_struct!(Session { used_ms, floor, replies });

/// What is known of a request.
pub(crate) enum Recall {
    New,
    Answered(Reply),
    Forgotten,
}

#[derive(Debug, Default)]
pub(crate) struct Sessions {
    sessions: BTreeMap<u64, Session>,
    /// (last used, session): the idlest first.
    idle: BTreeSet<(u64, u64)>,
    bytes: usize,
}

impl Sessions {
    /// Looks a request up and notes that its session is alive. O(log sessions + log replies), and what is let go.
    pub fn recall(&mut self, id: RequestId, now_ms: u64) -> Recall {
        let session = self.sessions.entry(id.session).or_default();
        self.idle.remove(&(session.used_ms, id.session));
        self.idle.insert((now_ms, id.session));
        session.used_ms = now_ms;
        let recalled = match session.replies.get(&id.sequence) {
            Some(bytes) => Recall::Answered(Reply::decode(bytes).expect("a remembered reply is well formed")),
            None if id.sequence < session.floor => Recall::Forgotten,
            None => Recall::New,
        };
        session.floor = session.floor.max(id.completed_below);
        while let Some(first) = session.replies.first_entry()
            && *first.key() < session.floor
        {
            self.bytes -= first.remove().len();
        }
        recalled
    }

    /// Whether the request was answered before, or is forgotten.
    pub fn remembers(&self, id: RequestId) -> bool {
        let session = self.sessions.get(&id.session);
        session
            .is_some_and(|session| id.sequence < session.floor || session.replies.contains_key(&id.sequence))
    }

    /// Remembers a reply after `recall` said the request is new.
    pub fn remember(&mut self, id: RequestId, reply: &Reply) {
        let mut bytes = Vec::with_capacity(reply.len_bytes_about());
        reply.encode_into(&mut bytes);
        let session = self.sessions.get_mut(&id.session).expect("recall made the session");
        if id.sequence >= session.floor {
            self.bytes += bytes.len();
            session.replies.insert(id.sequence, bytes.into());
        }
        if session.replies.len() > SESSION_REPLIES_MAX {
            let (sequence, oldest) = session.replies.pop_first().expect("there are replies");
            session.floor = sequence.saturating_add(1);
            self.bytes -= oldest.len();
        }
        while self.sessions.len() > 1
            && (self.sessions.len() > SESSIONS_MAX || self.bytes > SESSION_BYTES_MAX)
        {
            self.forget_idlest();
        }
    }

    /// When the idlest session may be forgotten.
    pub fn first_ms(&self) -> Option<u64> {
        self.idle.first().map(|(used_ms, _)| used_ms.saturating_add(SESSION_IDLE_MS_MAX))
    }

    pub fn forget_idlest(&mut self) {
        if let Some((_, id)) = self.idle.pop_first() {
            let session = self.sessions.remove(&id).expect("an idle entry has its session");
            self.bytes -= session.replies.values().map(|bytes| bytes.len()).sum::<usize>();
        }
    }

    pub fn check_invariants(&self) {
        let idle: BTreeSet<_> = self.sessions.iter().map(|(id, session)| (session.used_ms, *id)).collect();
        assert_eq!(self.idle, idle, "every session is in the idle order");
        let replies = self.sessions.values().flat_map(|session| session.replies.values());
        assert_eq!(self.bytes, replies.map(|bytes| bytes.len()).sum::<usize>(), "reply bytes");
        for session in self.sessions.values() {
            assert!(session.replies.len() <= SESSION_REPLIES_MAX, "a session's replies are bounded");
            assert!(session.replies.keys().all(|sequence| *sequence >= session.floor), "above the floor");
        }
    }
}

impl<'a> Wire<'a> for Sessions {
    fn put(&self, out: &mut Vec<u8>) {
        self.sessions.put(out);
    }
    fn take(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let sessions = BTreeMap::<u64, Session>::take(reader)?;
        let idle = sessions.iter().map(|(id, session)| (session.used_ms, *id)).collect();
        let bytes = sessions.values().flat_map(|session| session.replies.values()).map(|b| b.len()).sum();
        Ok(Self { sessions, idle, bytes })
    }
}

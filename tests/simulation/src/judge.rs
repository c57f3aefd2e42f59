//! Judges what leaves a node by what its disk holds at that moment (I21): a vote and an answer to an append have to be true even if the
//! power goes before the next instruction.
//!
//! ```text
//!   answers of a node ──▶ Witness ──claims──▶ copy of the disk without what is unsynced ──recovery──▶ what a restart finds
//! ```
//!
//! A recovery takes time, so of answers to appends a sample is judged; granted votes are few, and all are.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use leasehold_histories::checkers::Violations;
use leasehold_histories::random::Random;
use leasehold_node::simulation::{Calls, Claim, Frame};
use leasehold_raft_log::{Log, SimulatedFileSystem, Survival};

use crate::machine::{LOG_DIR, log_options};

/// Of so many batches of answers to appends, one is judged.
const SAMPLE: u64 = 64;

/// What was judged in a run, and what was found. Clones are the same one.
#[derive(Clone)]
pub struct Judge {
    state: Arc<Mutex<State>>,
}

struct State {
    random: Random,
    claims: u64,
    judged: u64,
    found: Violations,
}

impl Judge {
    pub fn new(random: Random) -> Self {
        let state = State { random, claims: 0, judged: 0, found: Vec::new() };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Watches a process, whose disk this is.
    pub fn witness(&self, node: usize, disk: SimulatedFileSystem) -> Witness {
        Witness { judge: self.clone(), node, disk }
    }

    /// Claims that left, and those of them that were judged.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.lock();
        (state.claims, state.judged)
    }

    pub fn is_content(&self) -> bool {
        self.lock().found.is_empty()
    }

    pub fn found(&self) -> Violations {
        self.lock().found.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sees what leaves one process.
#[derive(Clone)]
pub struct Witness {
    judge: Judge,
    node: usize,
    disk: SimulatedFileSystem,
}

impl Witness {
    /// A batch of answers leaves; `calls` are those of its lane.
    pub fn answers(&self, calls: &Mutex<Calls>, batch: &[Frame]) {
        let mut calls = calls.lock().unwrap_or_else(PoisonError::into_inner);
        let claims = batch.iter().filter_map(|frame| calls.answer(frame)).collect::<Vec<_>>();
        let mut state = self.judge.lock();
        state.claims += claims.len() as u64;
        let has_vote = claims.iter().any(|claim| matches!(claim, Claim::Vote { .. }));
        if claims.is_empty() || (!has_vote && state.random.below(SAMPLE) > 0) {
            return;
        }
        state.judged += claims.len() as u64;
        let violations = self.violations(&claims);
        state.found.extend(violations);
    }

    fn violations(&self, claims: &[Claim]) -> Violations {
        let left = self.disk.after_power_loss(Survival::Nothing, 0);
        let told = |story: String| format!("n{}: {story}", self.node);
        match Log::open_driven(Arc::new(left), Path::new(LOG_DIR), log_options()) {
            Ok((log, _)) => claims.iter().filter_map(|claim| claim.check(&log).err()).map(told).collect(),
            Err(error) => vec![told(format!("its disk cannot be read back: {error}"))],
        }
    }
}

#[cfg(test)]
mod tests {
    use leasehold_node::simulation::FrameKind;
    use leasehold_proto::peer::{AppendAnswer, LogId, Matched, Vote, VoteAnswer, append_answer};
    use prost::Message as _;

    use super::*;

    const CALL: u64 = 3;

    /// What is found when this answer leaves a node whose disk is empty.
    fn leaves(judge: &Judge, kind: FrameKind, body: Vec<u8>) {
        let calls = Mutex::new(Calls::default());
        let frame = |kind: FrameKind| Frame { call: CALL, kind: kind as u8, group: 7, ..Frame::default() };
        calls.lock().unwrap().ask(&frame(kind));
        let answer = Frame { body: body.into(), ..frame(FrameKind::Answer) };
        judge.witness(2, SimulatedFileSystem::new()).answers(&calls, &[answer]);
    }

    #[test]
    fn a_vote_that_leaves_before_its_sync_is_found() {
        let judge = Judge::new(Random::new(1, 1));
        let vote = Some(Vote { term: 4, voted_for: 1, committed: false });
        let answer = |granted| VoteAnswer { vote, granted, last: None }.encode_to_vec();
        leaves(&judge, FrameKind::Vote, answer(false));
        leaves(&judge, FrameKind::PreVote, answer(true));
        assert!(judge.is_content() && judge.counts() == (0, 0));
        leaves(&judge, FrameKind::Vote, answer(true));
        assert_eq!(judge.counts(), (1, 1));
        assert!(judge.found()[0].starts_with("n2: group 7 gives vote"), "{:?}", judge.found());
    }

    #[test]
    fn one_of_many_answers_to_appends_is_judged() {
        let judge = Judge::new(Random::new(1, 1));
        let matched = Matched { log_id: Some(LogId { term: 2, index: 41 }) };
        let answer = AppendAnswer { kind: Some(append_answer::Kind::Matched(matched)) }.encode_to_vec();
        (0..10 * SAMPLE).for_each(|_| leaves(&judge, FrameKind::Append, answer.clone()));
        let (claims, judged) = judge.counts();
        assert!(claims == 10 * SAMPLE && judged > 0 && judged < SAMPLE, "{judged} of {claims}");
        assert_eq!(judge.found().len() as u64, judged);
    }
}

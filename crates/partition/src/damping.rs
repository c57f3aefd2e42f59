//! How the redeliveries of a queue are kept within a budget, so that the failure of many messages does not become a storm.
//!
//! ```text
//!   first deliveries --> percent -->+
//!   log time ----------> floor ---->+--> tokens --> one for each message that comes back; without one it is held
//!   acked redeliveries > 1.5 ------>+
//!
//!   what becomes of messages --> [ failed | acked ] --> calm <--> storm
//! ```
//!
//! A first delivery asks for nothing and is never held. A redelivery that succeeds gives back its token and half of another:
//! while more than two of three succeed, what is held comes back faster and faster, and else the floor remains. So nobody has
//! to say when a failure is over.
//!
//! A message that fails counts once for a generation of outcomes, however often it comes back: one bad message is one among
//! many, and only many of them are a storm. In a storm first deliveries add nothing, and no message dies of its receive count.

use crate::buckets::Buckets;
use crate::limits::{OUTCOMES_MAX, RETRY_JITTER_MS_MAX, RETRY_SAVED_S_MAX, STORM_MESSAGES_MIN};
use crate::message::Timer;
use crate::settings::RetryBudget;
use crate::view::{DampingView, Mood};
use crate::wire::wire_struct;

/// One redelivery; so fine that a percent of one and a millisecond of the smallest floor are whole numbers.
const TOKEN: u64 = 1_000;
/// What a redelivery gives back that succeeds.
const SUCCESS: u64 = TOKEN * 3 / 2;
/// Of what is above the savings of the floor, this part fades each second.
const FADING: u64 = 8;
/// Seconds after which all of it has faded.
const FADED_S: u64 = 128;

/// What became of the messages handled last.
#[derive(Debug)]
struct Outcomes {
    /// Grows whenever counts are halved; a message counts as failed once in each.
    generation: u32,
    failed: u32,
    acked: u32,
    repeated: u32,
}
wire_struct!(Outcomes { generation, failed, acked, repeated });

impl Outcomes {
    /// Counts a failure of a message whose latest was counted in `failed_in`.
    fn fail(&mut self, failed_in: &mut u32) {
        if *failed_in == self.generation {
            self.repeated = self.repeated.saturating_add(1);
        } else {
            *failed_in = self.generation;
            self.failed += 1;
            self.age();
        }
    }

    /// Counts an ack. What the message's failure counted before is taken back: a message is one or the other.
    fn ack(&mut self, failed_in: u32) {
        if failed_in == self.generation {
            self.failed -= 1;
        }
        self.acked += 1;
        self.age();
    }

    fn age(&mut self) {
        if self.failed + self.acked >= OUTCOMES_MAX {
            (self.failed, self.acked, self.repeated) = (self.failed / 2, self.acked / 2, self.repeated / 2);
            self.next_generation();
        }
    }

    fn forget(&mut self) {
        (self.failed, self.acked, self.repeated) = (0, 0, 0);
        self.next_generation();
    }

    fn next_generation(&mut self) {
        self.generation = self.generation.checked_add(1).unwrap_or(1);
    }

    /// Half of the messages failing begins a storm; only when three of four succeed it is over.
    fn mood(&self, before: Mood) -> Mood {
        match before {
            Mood::Calm if self.failed >= STORM_MESSAGES_MIN && self.failed >= self.acked => Mood::Storm,
            Mood::Storm if self.failed * 3 <= self.acked => Mood::Calm,
            _ => before,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Damping {
    /// None when it is switched off: what was held is let go. The rest is kept, because messages know its generations.
    budget: Option<RetryBudget>,
    /// In parts of a redelivery, as of `counted_ms`.
    tokens: u64,
    counted_ms: u64,
    outcomes: Outcomes,
    mood: Mood,
    since_wall_ms: u64,
    /// Messages that wait, by when they are held for certain.
    pub held: Buckets<Timer>,
    pub held_len: u64,
}
wire_struct!(Damping { budget, tokens, counted_ms, outcomes, mood, since_wall_ms, held, held_len });

impl Damping {
    pub fn new(now_ms: u64) -> Self {
        Self {
            budget: None,
            tokens: 0,
            counted_ms: now_ms,
            outcomes: Outcomes { generation: 1, failed: 0, acked: 0, repeated: 0 },
            mood: Mood::Calm,
            since_wall_ms: 0,
            held: Buckets::default(),
            held_len: 0,
        }
    }

    /// Changes the budget; one that begins starts with nothing saved and nothing known.
    pub fn set_budget(&mut self, budget: Option<RetryBudget>, now_ms: u64) {
        self.count_time(now_ms);
        if budget.is_none() || self.budget.is_none() {
            self.tokens = 0;
            self.forget_outcomes();
        }
        self.budget = budget;
    }

    fn forget_outcomes(&mut self) {
        self.outcomes.forget();
        (self.mood, self.since_wall_ms) = (Mood::Calm, 0);
    }

    /// Forgets everything about messages: they are gone.
    pub fn forget(&mut self) {
        (self.held, self.held_len) = (Buckets::default(), 0);
        self.forget_outcomes();
    }

    fn count_time(&mut self, now_ms: u64) {
        self.tokens = self.tokens_at(now_ms);
        self.counted_ms = now_ms;
    }

    /// The tokens with the floor for the time that has passed, and without what has faded of those above its savings. O(1).
    fn tokens_at(&self, now_ms: u64) -> u64 {
        let Some(budget) = self.budget else { return self.tokens };
        let floor_per_s = u64::from(budget.floor_per_s);
        let saved_max = floor_per_s * RETRY_SAVED_S_MAX * TOKEN;
        let fade = |tokens: u64, _| tokens - tokens.saturating_sub(saved_max).div_ceil(FADING);
        let left = match now_ms / 1000 - self.counted_ms / 1000 {
            FADED_S.. => self.tokens.min(saved_max),
            seconds => (0..seconds).fold(self.tokens, fade),
        };
        // A part of a redelivery is earned each millisecond for each that the floor allows a second.
        let added = (now_ms - self.counted_ms).saturating_mul(floor_per_s);
        left.max(left.saturating_add(added).min(saved_max))
    }

    /// A message is delivered for the first time.
    pub fn first_delivery(&mut self, now_ms: u64) {
        let Some(budget) = self.budget else { return };
        self.count_time(now_ms);
        if self.mood == Mood::Calm {
            self.tokens += u64::from(budget.percent) * TOKEN / 100;
        }
    }

    /// A message was acknowledged that had been received so often, and whose failure was counted last in `failed_in`.
    pub fn acked(&mut self, receive_count: u32, failed_in: u32, now_ms: u64, wall_ms: u64) {
        if self.budget.is_none() {
            return;
        }
        self.count_time(now_ms);
        if receive_count > 1 {
            self.tokens += SUCCESS;
        }
        self.outcomes.ack(failed_in);
        self.judge(wall_ms);
    }

    /// The lease of a message ended without an ack. Returns what to make of it.
    pub fn failed(&mut self, failed_in: &mut u32, now_ms: u64, wall_ms: u64) -> Mood {
        if self.budget.is_some() {
            self.count_time(now_ms);
            self.outcomes.fail(failed_in);
            self.judge(wall_ms);
        }
        self.mood
    }

    fn judge(&mut self, wall_ms: u64) {
        let mood = self.outcomes.mood(self.mood);
        if mood != self.mood {
            (self.mood, self.since_wall_ms) = (mood, wall_ms);
            if mood == Mood::Storm {
                self.tokens = self.tokens.min(TOKEN);
            }
        }
    }

    /// Takes a token for a message that comes back now, if there are enough for those that wait as well: nobody overtakes.
    pub fn may_pass(&mut self, now_ms: u64) -> bool {
        if self.budget.is_none() {
            return true;
        }
        self.count_time(now_ms);
        let passes = self.tokens / TOKEN > self.held_len;
        if passes {
            self.tokens -= TOKEN;
        }
        passes
    }

    /// Until when a message is held for certain that begins to wait now. Those that failed together part.
    pub fn held_until_ms(sequence: u64, receive_count: u32, now_ms: u64) -> u64 {
        now_ms.saturating_add(jitter(sequence, receive_count) % RETRY_JITTER_MS_MAX)
    }

    /// When the first that is held is let go, if nothing else happens before. O(log held).
    pub fn due_ms(&self) -> Option<u64> {
        let first_ms = self.held.first_key()?;
        let Some(budget) = self.budget else { return Some(self.counted_ms) };
        let missing = TOKEN.saturating_sub(self.tokens);
        Some(first_ms.max(self.counted_ms + missing.div_ceil(u64::from(budget.floor_per_s))))
    }

    /// The first side record that is let go now, for a token. The caller takes it out of `held`.
    pub fn let_go(&mut self, now_ms: u64) -> Option<u32> {
        self.count_time(now_ms);
        if self.budget.is_none() {
            return self.held.first().map(|(_, side)| side);
        }
        let side = self.held.first_through(now_ms)?;
        self.tokens = self.tokens.checked_sub(TOKEN)?;
        Some(side)
    }

    pub fn mood(&self) -> Mood {
        self.mood
    }

    pub fn view(&self, now_ms: u64) -> DampingView {
        DampingView {
            budget: self.budget,
            mood: self.mood,
            since_wall_ms: self.since_wall_ms,
            held: self.held_len,
            allowed: self.tokens_at(now_ms) / TOKEN,
            failed: self.outcomes.failed,
            acked: self.outcomes.acked,
            repeated: self.outcomes.repeated,
        }
    }

    pub fn check_invariants(&self) {
        let Outcomes { generation, failed, acked, .. } = self.outcomes;
        assert!(generation > 0 && failed + acked < OUTCOMES_MAX, "outcomes are bounded");
        assert!(self.budget.is_some() || self.mood == Mood::Calm, "without a budget nothing is judged");
    }
}

/// A number that follows from its message and is spread evenly.
fn jitter(sequence: u64, receive_count: u32) -> u64 {
    let seed = sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(receive_count);
    let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

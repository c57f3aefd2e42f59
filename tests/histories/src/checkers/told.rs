//! A verdict in words.

use std::fmt::{self, Display, Formatter};

use super::Verdict;

/// Stories of each checker; all are in the history.
pub const STORIES_MAX: usize = 5;

impl Display for Verdict {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let holds = if self.holds() { "holds" } else { "DOES NOT HOLD" };
        write!(out, "{holds}: {} faults", self.faults)?;
        match self.seed {
            Some(seed) => writeln!(out, ", seed {seed}")?,
            None => writeln!(out)?,
        }
        let counts = self.counts.iter().map(|(what, count)| format!("{what} {count}")).collect::<Vec<_>>();
        writeln!(out, "counts: {}", counts.join(", "))?;
        for (fault, outage) in &self.outages {
            writeln!(
                out,
                "{fault}: {} times, longest standstill {} ms, longest recovery {} ms",
                outage.faults, outage.standstill_ms_max, outage.recovery_ms_max
            )?;
        }
        if !self.skipped.is_empty() {
            writeln!(out, "skipped, as they are not possible here: {}", self.skipped.join(", "))?;
        }
        for (checker, stories) in self.violations.iter().filter(|(_, stories)| !stories.is_empty()) {
            writeln!(out, "violated: {checker}, {} times", stories.len())?;
            for story in stories.iter().take(STORIES_MAX) {
                writeln!(out, "  {story}")?;
            }
        }
        for (what, value) in [("history", &self.history), ("data", &self.data), ("again", &self.replay)] {
            if let Some(value) = value {
                writeln!(out, "{what}: {value}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_violated_is_told_with_its_stories_and_how_to_see_it_again() {
        let mut verdict = Verdict { seed: Some(7), faults: 3, ..Verdict::default() };
        verdict.counts.insert("delivered", 12);
        verdict.violations.insert("acks", Vec::new());
        assert!(
            verdict.to_string().starts_with("holds: 3 faults, seed 7\ncounts: delivered 12\n"),
            "{verdict}"
        );
        verdict.violations.insert("queue", (0..9).map(|row| format!("row {row} is lost")).collect());
        verdict.replay = Some("run it".to_owned());
        let told = verdict.to_string();
        assert!(told.starts_with("DOES NOT HOLD"), "{told}");
        assert!(told.contains("violated: queue, 9 times\n  row 0 is lost\n"), "{told}");
        assert_eq!(told.matches("is lost").count(), STORIES_MAX, "{told}");
        assert!(!told.contains("acks"), "{told}");
        assert!(told.ends_with("again: run it\n"), "{told}");
    }
}

//! How long the next stage of something would take, so that a slow system is asked for no more than it can do in time.

use std::time::Duration;

use crate::compare::figures::figure;
use crate::compare::system::Failure;

/// Nothing is known before the first stage.
#[derive(Debug, Default)]
pub struct Projection {
    items_per_s: Option<f64>,
}

impl Projection {
    pub fn note(&mut self, items: usize, took: Duration) {
        self.items_per_s = Some(items as f64 / took.as_secs_f64().max(f64::MIN_POSITIVE));
    }

    /// Why so many more are not asked for.
    pub fn beyond(&self, items: usize, time_max: Duration) -> Option<Failure> {
        let rate = self.items_per_s?;
        let needed_s = items as f64 / rate;
        (needed_s > time_max.as_secs_f64()).then(|| {
            Failure::new(format!(
                "at {} a second it would take {} s, and {} s is the most",
                figure(rate),
                figure(needed_s),
                time_max.as_secs()
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_system_is_not_asked_for_more() {
        let mut projection = Projection::default();
        let most = Duration::from_secs(10);
        assert_eq!(projection.beyond(1_000_000, most), None);
        projection.note(100, Duration::from_secs(1));
        assert_eq!(projection.beyond(1_000, most), None);
        let failure = projection.beyond(5_000, most).map(|failure| failure.to_string());
        assert_eq!(failure.as_deref(), Some("at 100 a second it would take 50 s, and 10 s is the most"));
    }
}

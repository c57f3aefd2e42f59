//! Latencies by their percentiles. Each is counted from when the message was due, so a system that falls behind shows it.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::metric::{Metric, Reading};

/// That are kept of a value.
const DIGITS: u8 = 3;
const LONGEST: Duration = Duration::from_secs(600);

#[derive(Debug, Clone)]
pub struct Latencies {
    micros: Histogram<u64>,
}

impl Default for Latencies {
    fn default() -> Self {
        let longest_us = LONGEST.as_micros() as u64;
        let micros = Histogram::new_with_bounds(1, longest_us, DIGITS);
        Self { micros: micros.expect("the bounds are those of a histogram") }
    }
}

impl Latencies {
    /// What is longer than ten minutes counts as these.
    pub fn add(&mut self, latency: Duration) {
        self.micros.saturating_record((latency.as_micros() as u64).max(1));
    }

    pub fn merge(&mut self, other: &Self) {
        self.micros.add(&other.micros).expect("all have the same bounds");
    }

    pub fn readings(&self) -> Vec<Reading> {
        if self.micros.is_empty() {
            return Vec::new();
        }
        let ms = |quantile| self.micros.value_at_quantile(quantile) as f64 / 1e3;
        vec![(Metric::P50Ms, ms(0.5)), (Metric::P99Ms, ms(0.99)), (Metric::P999Ms, ms(0.999))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_a_part_in_a_thousand() {
        let (mut low, mut high) = (Latencies::default(), Latencies::default());
        for ms in 1..=500 {
            low.add(Duration::from_millis(ms));
            high.add(Duration::from_millis(500 + ms));
        }
        low.merge(&high);
        for ((metric, found), (expected_metric, expected)) in low.readings().into_iter().zip([
            (Metric::P50Ms, 500.0),
            (Metric::P99Ms, 990.0),
            (Metric::P999Ms, 999.0),
        ]) {
            assert_eq!(metric, expected_metric);
            assert!((found - expected).abs() <= expected / 1000.0, "{metric:?}: {found}");
        }
    }

    #[test]
    fn nothing_has_no_percentiles_and_forever_is_counted() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.readings(), Vec::new());
        latencies.add(Duration::from_secs(100_000));
        assert!(latencies.readings()[0].1 >= LONGEST.as_millis() as f64 * 0.999);
    }
}

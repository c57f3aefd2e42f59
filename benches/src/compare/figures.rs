//! Numbers as people read them.

use super::metric::Summary;

/// Three digits that mean something, and thousands apart.
pub fn figure(value: f64) -> String {
    if value.abs() >= 1000.0 {
        return grouped(rounded(value) as i64);
    }
    let digits_before = if value.abs() >= 100.0 { 3 } else { if value.abs() >= 10.0 { 2 } else { 1 } };
    let text = format!("{value:.*}", 3 - digits_before);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// The middle, and in brackets how far the runs went apart.
pub fn with_spread(summary: &Summary) -> String {
    let (min, max) = (figure(summary.min), figure(summary.max));
    if min == max {
        return figure(summary.median);
    }
    format!("{} ({min} to {max})", figure(summary.median))
}

/// To three digits.
fn rounded(value: f64) -> f64 {
    let unit = 10_f64.powi(value.abs().log10().floor() as i32 - 2);
    (value / unit).round() * unit
}

fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = if number < 0 { "-".to_owned() } else { String::new() };
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.384, "0.38"),
            (5.0, "5"),
            (5.64, "5.64"),
            (24.61, "24.6"),
            (187.4, "187"),
            (999.0, "999"),
            (63_412.0, "63,400"),
            (1_234_567.0, "1,230,000"),
        ] {
            assert_eq!(figure(value), text);
        }
    }

    #[test]
    fn runs_that_agree_have_no_spread() {
        let summary = |values: &[f64]| Summary::of(values).map(|summary| with_spread(&summary));
        assert_eq!(summary(&[0.0, 0.0]).as_deref(), Some("0"));
        assert_eq!(summary(&[1.0, 3.0, 2.0]).as_deref(), Some("2 (1 to 3)"));
    }
}

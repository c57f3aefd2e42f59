//! Text to numbers with units, and back.

/// A size: a number of bytes, or a number with KiB, MiB, GiB or TiB. Powers of ten are not taken: `64MB` would leave a doubt.
pub(super) fn parse_bytes(text: &str) -> Option<u64> {
    let units = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
    parse_with_unit(text, &units)
}

/// A duration: a number of milliseconds, or a number with ms, s, m or h.
pub(super) fn parse_millis(text: &str) -> Option<u64> {
    parse_with_unit(text, &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)])
}

pub(super) fn parse_count(text: &str) -> Option<u64> {
    parse_with_unit(text, &[])
}

/// `units` in an order in which no unit hides a later one that it ends with.
fn parse_with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let with_unit =
        units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?.trim_end(), *factor)));
    let (digits, factor) = with_unit.unwrap_or((text, 1));
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    if !is_number || digits.starts_with('_') {
        return None;
    }
    digits.replace('_', "").parse::<u64>().ok()?.checked_mul(factor)
}

/// The largest unit that leaves no remainder.
pub(super) fn format_bytes(bytes: u64) -> String {
    for (unit, factor) in [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes != 0 && bytes.is_multiple_of(factor) {
            return format!("{}{unit}", bytes / factor);
        }
    }
    format!("{bytes}B")
}

/// Levels, alone or as `module=level`, separated by commas: what the log filter understands without guessing.
pub(super) fn is_log_level(text: &str) -> bool {
    let is_level = |word: &str| ["error", "warn", "info", "debug", "trace", "off"].contains(&word);
    let is_module = |word: &str| {
        !word.is_empty()
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':')
    };
    text.split(',').all(|directive| match directive.trim().split_once('=') {
        Some((module, level)) => is_module(module) && is_level(level),
        None => is_level(directive.trim()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let cases = [
            ("0", 0),
            ("1B", 1),
            ("4KiB", 4096),
            ("512MiB", 512 << 20),
            ("1 GiB", 1 << 30),
            ("1_000", 1_000),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for text in ["", "MiB", "-1", "+1", "1.5GiB", "64MB", "64mib", "0x10", "99999999TiB", "_1", "1 0"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
        for bytes in [0, 1, 1023, 4096, 5 << 20, 1 << 40] {
            assert_eq!(parse_bytes(&format_bytes(bytes)), Some(bytes));
        }
    }

    #[test]
    fn durations() {
        for (text, millis) in
            [("250", 250), ("250ms", 250), ("30s", 30_000), ("5m", 300_000), ("12h", 43_200_000)]
        {
            assert_eq!(parse_millis(text), Some(millis), "{text}");
        }
        for text in ["", "ms", "1d", "1.5s", "-1s", "s1", "99999999999999999h"] {
            assert_eq!(parse_millis(text), None, "{text}");
        }
    }

    #[test]
    fn log_levels() {
        for text in ["info", "off", "info,leasehold_node=debug", "warn, leasehold_node::raft=trace"] {
            assert!(is_log_level(text), "{text}");
        }
        for text in ["", "infos", "leasehold_node", "info,", "a=b=info", "=info", "info;debug"] {
            assert!(!is_log_level(text), "{text}");
        }
    }
}

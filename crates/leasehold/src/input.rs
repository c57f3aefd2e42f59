//! What users type: durations, pairs, message ids; and lines from files that may be compressed.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use leasehold_client::MessageId;

/// Reads `250ms`, `30s`, `15m`, `12h`, `4d`; a bare number is seconds.
///
/// # Errors
/// When it is none of these.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let wrong = || format!("{text:?} is no duration: give for example 250ms, 30s, 15m, 12h or 4d");
    let number = number.parse::<u64>().map_err(|_| wrong())?;
    let factor_ms = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor_ms).map(Duration::from_millis).ok_or_else(wrong)
}

/// Reads `name=value`.
///
/// # Errors
/// When there is no `=` or no name.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not of the form name=value")),
    }
}

/// Reads `name: value`, as a header is written.
///
/// # Errors
/// When there is no `:`, or what is before it is no name. None of it is told: it may be a secret.
pub fn header(text: &str) -> Result<(String, String), String> {
    let is_of_a_name = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    match text.split_once(':').map(|(name, value)| (name.trim(), value.trim())) {
        Some((name, value)) if !name.is_empty() && name.bytes().all(is_of_a_name) => {
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => Err("it is not of the form `name: value`".to_owned()),
    }
}

/// Reads `partition:sequence`.
///
/// # Errors
/// When these are not two numbers.
pub fn message_id(text: &str) -> Result<MessageId, String> {
    let numbers = text.split_once(':').and_then(|(partition, sequence)| {
        Some(MessageId { partition: partition.parse().ok()?, sequence: sequence.parse().ok()? })
    });
    numbers.ok_or_else(|| format!("{text:?} is no message id: give partition:sequence, as `send` printed it"))
}

/// Reads a receipt.
///
/// # Errors
/// When it is not hexadecimal.
pub fn receipt(text: &str) -> Result<Bytes, String> {
    let wrong = || "it is no receipt: give the `receipt` that `receive --json` printed".to_owned();
    let is_hex =
        !text.is_empty() && text.len().is_multiple_of(2) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_hex {
        return Err(wrong());
    }
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| wrong());
    (0..text.len()).step_by(2).map(byte).collect()
}

/// Lines, without what ends them. They need not be text.
pub type Lines = Box<dyn Iterator<Item = io::Result<Bytes>> + Send>;

/// The lines of a file, whether it is compressed with gzip or not.
///
/// # Errors
/// When it cannot be read.
pub fn lines(path: &Path) -> io::Result<Lines> {
    let mut file = BufReader::new(File::open(path)?);
    let is_gzip = file.fill_buf()?.starts_with(&[0x1f, 0x8b]);
    let reader: Box<dyn Read + Send> =
        if is_gzip { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    Ok(lines_of(BufReader::new(reader)))
}

/// The lines of anything.
pub fn lines_of(reader: impl BufRead + Send + 'static) -> Lines {
    Box::new(reader.split(b'\n').map(|line| {
        line.map(|mut line| {
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            Bytes::from(line)
        })
    }))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn durations_have_units() {
        let ms = |text| duration(text).map(|duration| duration.as_millis());
        assert_eq!(ms("250ms"), Ok(250));
        assert_eq!(ms("30"), Ok(30_000));
        assert_eq!(ms("12h"), Ok(43_200_000));
        assert_eq!(ms("4d"), Ok(345_600_000));
        for wrong in ["", "h", "1.5s", "-1s", "1w", "99999999999999999999s", "18446744073709551615d"] {
            assert!(ms(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn pairs_and_ids_are_checked() {
        assert_eq!(pair("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(pair("=b").is_err() && pair("ab").is_err());
        assert_eq!(header("a: b:c "), Ok(("a".to_owned(), "b:c".to_owned())));
        assert!(header(": b").is_err());
        for wrong in ["secret", "Bearer secret: b", "secret, it is: b"] {
            assert!(header(wrong).is_err_and(|told| !told.contains("secret")), "{wrong}");
        }
        assert_eq!(message_id("3:42"), Ok(MessageId { partition: 3, sequence: 42 }));
        assert!(message_id("42").is_err() && message_id("a:1").is_err());
        assert_eq!(receipt("00fF"), Ok(Bytes::from_static(b"\x00\xff")));
        assert!(["", "0", "0g", "€€€€", "+1"].iter().all(|wrong| receipt(wrong).is_err()));
    }

    #[test]
    fn a_compressed_file_reads_like_a_plain_one() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, packed) = (dir.path().join("plain"), dir.path().join("packed"));
        let text = b"one\r\n\xff\n";
        std::fs::write(&plain, text).unwrap();
        let mut encoder =
            flate2::write::GzEncoder::new(File::create(&packed).unwrap(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap();
        for path in [plain, packed] {
            let read = lines(&path).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
            assert_eq!(read, [&b"one"[..], b"\xff"]);
        }
    }
}

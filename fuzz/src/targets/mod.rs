//! The targets, by where their input comes from.

mod clients;
mod fields;
mod peers;
mod providers;
mod workers;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::Target;

/// Every target.
pub fn all() -> Vec<Target> {
    [
        clients::TARGETS,
        providers::TARGETS,
        peers::TARGETS,
        workers::TARGETS,
        fields::TARGETS,
    ]
    .concat()
}

/// A corpus of texts.
fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Marks an input that is the bytes below base64 and compression: mutations of the text itself rarely get past them.
const BARE: u8 = 0;

/// The text of a packed format (results, histograms) for an input, which may be [`BARE`]; without `prefix`.
fn packed(input: &[u8]) -> String {
    match input.split_first() {
        Some((&BARE, bytes)) => STANDARD_NO_PAD.encode([&[0], bytes].concat()),
        _ => String::from_utf8_lossy(input).into_owned(),
    }
}

/// A [`BARE`] input for a text of a packed format; empty when it is none.
fn bare(text: &str) -> Vec<u8> {
    let packed = STANDARD_NO_PAD.decode(text).unwrap_or_default();
    let bytes = match packed.split_first() {
        Some((0, bytes)) => bytes.to_vec(),
        Some((1, bytes)) => miniz_oxide::inflate::decompress_to_vec(bytes).unwrap_or_default(),
        _ => return Vec::new(),
    };
    [&[BARE][..], &bytes].concat()
}

/// The outcome of an input that was refused: texts of errors that name no values tell the checks apart.
fn refused(error: impl std::fmt::Display) -> u64 {
    crate::outcome(error.to_string().bytes().map(u64::from))
}

/// Lines `name: value` as headers, without those that HTTP itself would refuse.
fn headers(input: &[u8]) -> http::HeaderMap {
    let mut headers = http::HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if let (Ok(name), Ok(value)) = (
            http::HeaderName::from_bytes(name.trim_ascii()),
            http::HeaderValue::from_bytes(value),
        ) {
            headers.append(name, value);
        }
    }
    headers
}

/// The first line of `input`, and the rest.
fn first_line(input: &[u8]) -> (&[u8], &[u8]) {
    let end = input
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(input.len());
    let (line, rest) = input.split_at(end);
    (line, rest.get(1..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_corpora_are_not_empty() {
        let mut names: Vec<&str> = all().iter().map(|target| target.name).collect();
        let count = names.len();
        assert!(count >= 20, "{count} targets");
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        for target in all() {
            assert!(!(target.corpus)().is_empty(), "{}", target.name);
        }
    }

    #[test]
    fn bare_inputs_are_what_the_packed_text_says() {
        use flotilla_core::histogram::Histogram;
        let histogram: Histogram = (0..400u64).map(|n| n * n * 37).collect();
        let input = bare(&histogram.to_text());
        assert!(input.len() > 100);
        assert_eq!(Histogram::from_text(&packed(&input)), Ok(histogram));
        assert_eq!(packed(b"AA"), "AA");
    }

    #[test]
    fn headers_are_read_by_line() {
        let headers = headers(b"Host: a:80\nno colon\nX-Y:z\n\xff: 1\nx-y: 2");
        assert_eq!(headers["host"], "a:80");
        assert_eq!(headers.get_all("x-y").iter().count(), 2);
        assert_eq!(headers.len(), 3);
        assert_eq!(first_line(b"a\nb\nc"), (&b"a"[..], &b"b\nc"[..]));
        assert_eq!(first_line(b"a"), (&b"a"[..], &b""[..]));
    }
}

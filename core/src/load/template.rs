//! Prompts with seeded slots.
//!
//! A scenario's prompt may contain `{{order}}` and other slots. What they become is a function of the request's
//! seed alone, so the same run sends the same bodies whatever the number of workers, and two runs can be compared
//! request by request. The same slot written twice in a prompt gets the same value; `{{{{` writes `{{`.
//!
//! Generated values contain no quotes, backslashes or control characters, so a slot may stand inside a JSON
//! string.

use super::random::Stream;

const FIRST_NAMES: [&str; 16] = [
    "Ana", "Ben", "Chen", "Dana", "Emre", "Fatima", "Grace", "Hugo", "Ines", "Jonas", "Kofi", "Lena",
    "Mateo", "Nadia", "Omar", "Priya",
];
const LAST_NAMES: [&str; 16] = [
    "Abel", "Brandt", "Costa", "Diaz", "Evans", "Fischer", "Garcia", "Haas", "Ito", "Jensen", "Kumar",
    "Lopez", "Meyer", "Novak", "Okoye", "Peters",
];
const PRODUCTS: [&str; 12] = [
    "coffee grinder",
    "desk lamp",
    "bicycle helmet",
    "wireless keyboard",
    "rain jacket",
    "water filter",
    "backpack",
    "garden hose",
    "standing desk",
    "headphones",
    "toaster",
    "tent",
];
const CITIES: [&str; 10] = [
    "Accra", "Berlin", "Chennai", "Dublin", "Izmir", "Lisbon", "Montreal", "Osaka", "Quito", "Tallinn",
];

/// The slots that exist, as they are listed in an error message.
pub const KNOWN_SLOTS: &str =
    "order, name, email, product, city, amount, number:LOW-HIGH, choice:A|B|C, index";

/// A prompt, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Text(String),
    Slot { generator: Generator, lane: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Generator {
    Order,
    Name,
    Email,
    Product,
    City,
    Amount,
    Number { low: u64, high: u64 },
    Choice(Vec<String>),
    Index,
}

impl Template {
    /// Parses a prompt.
    ///
    /// # Errors
    /// A sentence that names the slot and says what to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut segments = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(start) = rest.find("{{") {
            literal.push_str(&rest[..start]);
            rest = &rest[start + 2..];
            if let Some(after) = rest.strip_prefix("{{") {
                literal.push_str("{{");
                rest = after;
                continue;
            }
            let end = rest.find("}}").ok_or_else(|| {
                let slot: String = rest.chars().take(20).collect();
                format!("slot \"{{{{{slot}\" is not closed; end it with \"}}}}\", or write \"{{{{{{{{\" for two plain braces")
            })?;
            let slot = rest[..end].trim();
            rest = &rest[end + 2..];
            if !literal.is_empty() {
                segments.push(Segment::Text(std::mem::take(&mut literal)));
            }
            segments.push(Segment::Slot {
                generator: Generator::parse(slot)?,
                lane: lane(slot),
            });
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            segments.push(Segment::Text(literal));
        }
        Ok(Self { segments })
    }

    /// The prompt of one request: `values` is its stream, `index` its place in the schedule.
    pub fn render(&self, values: Stream, index: u64) -> String {
        let mut text = String::new();
        for segment in &self.segments {
            match segment {
                Segment::Text(literal) => text.push_str(literal),
                Segment::Slot { generator, lane } => generator.write(values.split(*lane), index, &mut text),
            }
        }
        text
    }
}

/// Which sub-stream a slot draws from: a hash of its text (FNV-1a), so equal slots get equal values.
fn lane(slot: &str) -> u64 {
    slot.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn pick<'a>(list: &[&'a str], values: Stream, n: u64) -> &'a str {
    list[values.below(n, list.len() as u64) as usize]
}

impl Generator {
    fn parse(slot: &str) -> Result<Self, String> {
        let (kind, arguments) = match slot.split_once(':') {
            Some((kind, arguments)) => (kind.trim(), Some(arguments.trim())),
            None => (slot, None),
        };
        match (kind, arguments) {
            ("order", None) => Ok(Self::Order),
            ("name", None) => Ok(Self::Name),
            ("email", None) => Ok(Self::Email),
            ("product", None) => Ok(Self::Product),
            ("city", None) => Ok(Self::City),
            ("amount", None) => Ok(Self::Amount),
            ("index", None) => Ok(Self::Index),
            ("number", Some(range)) => range
                .split_once('-')
                .and_then(|(low, high)| Some((low.trim().parse().ok()?, high.trim().parse().ok()?)))
                .filter(|(low, high)| low <= high && *high < u64::MAX)
                .map(|(low, high)| Self::Number { low, high })
                .ok_or_else(|| {
                    format!(
                        "slot \"{{{{{slot}}}}}\" needs a range of whole numbers, such as {{{{number:1-100}}}}"
                    )
                }),
            ("choice", Some(list)) if !list.is_empty() => Ok(Self::Choice(
                list.split('|').map(|choice| choice.trim().to_owned()).collect(),
            )),
            ("number", None) => Err("slot \"{{number}}\" needs a range, such as {{number:1-100}}".to_owned()),
            ("choice", _) => {
                Err("slot \"{{choice}}\" needs alternatives, such as {{choice:red|green}}".to_owned())
            }
            _ => Err(format!(
                "slot \"{{{{{slot}}}}}\" is not known; known are: {KNOWN_SLOTS}"
            )),
        }
    }

    fn write(&self, values: Stream, index: u64, out: &mut String) {
        match self {
            Self::Order => out.push_str(&format!(
                "{}-{:06}",
                ["A", "B", "C", "K", "R", "S"][values.below(0, 6) as usize],
                values.below(1, 1_000_000)
            )),
            Self::Name => {
                out.push_str(pick(&FIRST_NAMES, values, 0));
                out.push(' ');
                out.push_str(pick(&LAST_NAMES, values, 1));
            }
            Self::Email => out.push_str(&format!(
                "{}.{}{}@example.com",
                pick(&FIRST_NAMES, values, 0).to_ascii_lowercase(),
                pick(&LAST_NAMES, values, 1).to_ascii_lowercase(),
                values.below(2, 1000)
            )),
            Self::Product => out.push_str(pick(&PRODUCTS, values, 0)),
            Self::City => out.push_str(pick(&CITIES, values, 0)),
            Self::Amount => {
                out.push_str(&format!(
                    "{}.{:02}",
                    1 + values.below(0, 500),
                    values.below(1, 100)
                ));
            }
            Self::Number { low, high } => {
                out.push_str(&(low + values.below(0, high - low + 1)).to_string());
            }
            Self::Choice(choices) => {
                out.push_str(&choices[values.below(0, choices.len() as u64) as usize]);
            }
            Self::Index => out.push_str(&index.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str, seed: u64) -> String {
        Template::parse(template)
            .unwrap()
            .render(Stream::new(seed, 1), 42)
    }

    #[test]
    fn equal_seeds_give_equal_text() {
        let template = "Hello, {{name}} ({{email}}): order {{order}}, {{product}} to {{city}} for {{amount}}, \
                        {{number:5-9}} x {{choice:red|green}} #{{index}}";
        assert_eq!(render(template, 1), render(template, 1));
        assert_ne!(render(template, 1), render(template, 2));
        assert!(render(template, 1).ends_with("#42"));
        assert!(!render(template, 3).contains(['{', '"', '\\']));
    }

    #[test]
    fn a_repeated_slot_repeats_its_value() {
        let text = render("{{order}}|{{ order }}", 5);
        let (left, right) = text.split_once('|').unwrap();
        assert_eq!(left, right);
    }

    #[test]
    fn numbers_and_choices_cover_their_range() {
        let all: std::collections::BTreeSet<_> = (0..200)
            .map(|seed| render("{{number:7-9}}{{choice:a|b}}", seed))
            .collect();
        assert_eq!(
            all.into_iter().collect::<Vec<_>>(),
            ["7a", "7b", "8a", "8b", "9a", "9b"]
        );
    }

    #[test]
    fn doubled_braces_are_plain() {
        assert_eq!(render("{{{{order}} {x} }}", 1), "{{order}} {x} }}");
    }

    #[test]
    fn errors_say_what_to_write() {
        for (template, part) in [
            ("{{ordr}}", "known are: order"),
            ("{{order", "is not closed"),
            ("{{number}}", "{{number:1-100}}"),
            ("{{number:9-1}}", "{{number:1-100}}"),
            ("{{number:0-18446744073709551615}}", "range"),
            ("{{choice:}}", "{{choice:red|green}}"),
            ("{{order:5}}", "not known"),
        ] {
            let error = Template::parse(template).unwrap_err();
            assert!(error.contains(part), "{template}: {error}");
        }
    }

    #[test]
    fn number_ranges_reach_the_largest_value() {
        assert!(
            render("{{number:0-18446744073709551614}}", 1)
                .parse::<u64>()
                .is_ok()
        );
    }
}

//! Replies that look like customer service, of an exact number of tokens.
//!
//! A token is a word with the space before it. That is coarser than any real tokenizer, and exact: usage, limits
//! and text can be checked against each other. Input is counted as a real one would roughly see it, at four bytes
//! a token and four tokens for the frame of each message.

use crate::random::Random;

/// Tokens of `messages` as (role, text) pairs.
pub fn input_tokens<'a>(texts: impl IntoIterator<Item = &'a str>) -> u64 {
    texts
        .into_iter()
        .map(|text| 4 + (text.len() as u64).div_ceil(4))
        .sum()
}

struct Topic {
    words: &'static [&'static str],
    openings: &'static [&'static str],
    steps: &'static [&'static str],
}

const TOPICS: &[Topic] = &[
    Topic {
        words: &["damaged", "broken", "cracked", "defect", "torn", "scratched"],
        openings: &[
            "I am sorry that your item arrived damaged.",
            "I apologise for the damage to your order.",
            "Thank you for telling us about the damaged item.",
        ],
        steps: &[
            "A replacement leaves our warehouse today at no cost to you.",
            "Please keep the packaging until the courier has collected the item.",
            "If you prefer, we refund the full amount to your original payment method within three working days.",
            "A photo of the damage helps us to improve our packaging.",
            "You will receive a prepaid return label by email within the hour.",
            "The return is free, and you need not print anything.",
        ],
    },
    Topic {
        words: &["charge", "bill", "invoice", "refund", "payment", "paid", "price"],
        openings: &[
            "I have looked at the charges on your account.",
            "Thank you for asking about your bill.",
            "I understand that an unexpected charge is worrying.",
        ],
        steps: &[
            "The second amount is an authorisation that your bank releases within two working days.",
            "I have sent a corrected invoice to your email address.",
            "The difference is refunded to the card you paid with.",
            "Your next bill will show the credit on its first page.",
            "No further payment is due for this order.",
            "I have added a note so that nobody asks you to explain this again.",
        ],
    },
    Topic {
        words: &[
            "deliver", "package", "parcel", "shipping", "shipment", "track", "late", "arrive",
        ],
        openings: &[
            "I have checked the status of your delivery.",
            "I am sorry that your package is late.",
            "Thank you for your patience while your order is on its way.",
        ],
        steps: &[
            "The carrier scanned it this morning at the regional centre.",
            "It is planned to arrive tomorrow between nine and twelve.",
            "You can choose a neighbour or a pick-up point in the tracking link.",
            "If it has not arrived by Friday, we send a new one by express.",
            "The delay came from a missed connection at the sorting hub.",
            "The driver will call you half an hour before the delivery.",
        ],
    },
];

const GENERAL: Topic = Topic {
    words: &[],
    openings: &[
        "Thank you for contacting us.",
        "I am happy to help you with that.",
        "Thank you for your message.",
    ],
    steps: &[
        "I have opened a case for you and assigned it to the right team.",
        "You will hear from us within one working day.",
        "In the meantime you can see every step in your account under requests.",
        "Please let me know if anything has changed since your last message.",
        "I have added the details you gave to the case.",
        "There is nothing else you need to do at the moment.",
    ],
};

/// A reply to `question` of exactly `tokens` words (at least one), a function of its arguments. Mentions the
/// question's first number of four or more digits as the order.
pub fn reply(question: &str, tokens: usize, random: &mut Random) -> Vec<String> {
    let lower = question.to_lowercase();
    let topic = TOPICS
        .iter()
        .find(|topic| topic.words.iter().any(|word| lower.contains(word)))
        .unwrap_or(&GENERAL);
    let mut words: Vec<String> = Vec::with_capacity(tokens + 16);
    push_sentence(&mut words, topic.openings, random);
    if let Some(order) = order_number(question) {
        words.extend(["Your", "order", "is"].map(str::to_owned));
        words.push(format!("{order}."));
    }
    while words.len() < tokens {
        push_sentence(&mut words, topic.steps, random);
    }
    words.truncate(tokens.max(1));
    for (index, word) in words.iter_mut().enumerate() {
        if index > 0 {
            word.insert(0, ' ');
        }
    }
    if let Some(last) = words.last_mut() {
        let end = last.trim_end_matches([',', '.']).len();
        last.truncate(end);
        last.push('.');
    }
    words
}

fn push_sentence(words: &mut Vec<String>, sentences: &[&str], random: &mut Random) {
    if let Some(sentence) = sentences.get(random.below(sentences.len())) {
        words.extend(sentence.split(' ').map(str::to_owned));
    }
}

fn order_number(question: &str) -> Option<&str> {
    question
        .split(|c: char| !c.is_ascii_digit())
        .find(|digits| (4..=16).contains(&digits.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_fits_its_topic_and_names_the_order() {
        for (question, word) in [
            ("My blender came damaged, order 48213", "damage"),
            ("Why was I charged twice?", "charge"),
            ("Where is my parcel?", "package|delivery|order"),
            ("Hello", "you"),
        ] {
            let text = reply(question, 40, &mut Random::new(3)).concat().to_lowercase();
            assert!(
                word.split('|').any(|word| text.contains(word)),
                "{question}: {text}"
            );
        }
        let text = reply("My blender came damaged, order 48213", 40, &mut Random::new(3)).concat();
        assert!(text.contains("order is 48213."), "{text}");
    }

    #[test]
    fn a_reply_has_exactly_the_tokens_asked_for_and_is_a_function_of_the_seed() {
        for tokens in [1, 2, 5, 17, 400] {
            let words = reply("late", tokens, &mut Random::new(9));
            assert_eq!(words.len(), tokens);
            assert_eq!(words, reply("late", tokens, &mut Random::new(9)));
            assert!(words.concat().ends_with('.'));
        }
        assert_eq!(reply("late", 0, &mut Random::new(9)).len(), 1);
        assert_ne!(
            reply("late", 40, &mut Random::new(9)),
            reply("late", 40, &mut Random::new(10))
        );
    }

    #[test]
    fn input_is_counted_by_bytes_and_messages() {
        assert_eq!(input_tokens(["12345678", "1"]), 4 + 2 + 4 + 1);
        assert_eq!(input_tokens([]), 0);
    }
}

//! Counts are found where they belong, wherever the bytes are cut.

use super::*;
use proptest::prelude::*;

fn json(text: &str) -> Found {
    let mut reader = JsonReader::default();
    reader.feed(text.as_bytes());
    reader.found().clone()
}

fn found(model: &str, input: u64, output: u64) -> Found {
    Found {
        model: Some(model.into()),
        input_tokens: Some(input),
        output_tokens: Some(output),
        ..Found::default()
    }
}

const CHAT: &str = r#"{"id":"x","model":"gpt-5-mini","choices":[{"message":{"content":"\"usage\":{\"prompt_tokens\":9}","model":"no"}}],
    "usage":{"prompt_tokens":12,"completion_tokens":34,"total_tokens":46,"prompt_tokens_details":{"input_tokens":7}}}"#;
const RESPONSES: &str =
    r#"{"type":"response.completed","response":{"model":"m","usage":{"input_tokens":5,"output_tokens":6}}}"#;
#[test]
fn counts_are_found_where_they_belong() {
    assert_eq!(json(CHAT), found("gpt-5-mini", 12, 34));
    assert_eq!(json(RESPONSES), found("m", 5, 6));
    for text in [
        r#"[{"model":"m","usage":{"prompt_tokens":1}}]"#,
        r#"{"x":{"model":"m","usage":{"prompt_tokens":1}}}"#,
        r#"{"usage":[1,2],"usage":{"prompt_tokens":1.5,"completion_tokens":-3}}"#,
        r#"}}{"model":"m"}"#,
        "",
    ] {
        assert_eq!(json(text), Found::default(), "{text}");
    }
}

#[test]
fn deep_nesting_and_long_names_cost_nothing() {
    let deep = format!(
        "{{\"a\":{}{},\"model\":\"m\"}}",
        "[".repeat(5000),
        "]".repeat(5000)
    );
    assert_eq!(json(&deep).model.as_deref(), Some("m"));
    assert_eq!(
        json(&format!("{{\"model\":\"{}\"}}", "x".repeat(300))).model,
        None
    );
}

#[test]
fn cached_tokens_are_among_the_input_or_beside_it() {
    let call = |input, cached, cache_write, output| TokenUsage {
        input,
        cached,
        cache_write,
        output,
    };
    for (texts, expected) in [
        (
            &[
                r#"{"usage":{"prompt_tokens":100,"prompt_tokens_details":{"cached_tokens":80,"audio_tokens":1},"completion_tokens":5,"completion_tokens_details":{"cached_tokens":9}}}"#,
            ][..],
            Some(call(100, 80, 0, 5)),
        ),
        (
            &[
                r#"{"type":"response.completed","response":{"usage":{"input_tokens":100,"input_tokens_details":{"cached_tokens":80},"output_tokens":5}}}"#,
            ],
            Some(call(100, 80, 0, 5)),
        ),
        (
            &[r#"{"usage":{"prompt_tokens":7,"prompt_cache_hit_tokens":6,"completion_tokens":1}}"#],
            Some(call(7, 6, 0, 1)),
        ),
        (
            &[r#"{"object":"list","usage":{"prompt_tokens":8,"total_tokens":8}}"#],
            Some(call(8, 0, 0, 0)),
        ),
        (
            &[
                r#"{"type":"message","usage":{"input_tokens":10,"cache_creation_input_tokens":20,"cache_read_input_tokens":30,"output_tokens":4,"cache_creation":{"ephemeral_5m_input_tokens":20}}}"#,
            ],
            Some(call(60, 30, 20, 4)),
        ),
        (
            &[
                r#"{"type":"message_start","message":{"model":"claude","usage":{"input_tokens":10,"cache_creation_input_tokens":0,"cache_read_input_tokens":30,"output_tokens":1}}}"#,
                r#"{"type":"content_block_delta","delta":{"text":"\"usage\":{\"output_tokens\":99}"}}"#,
                r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":15}}"#,
                r#"{"type":"message_stop"}"#,
            ],
            Some(call(40, 30, 0, 15)),
        ),
        (&[r#"{"usage":null}"#], None),
    ] {
        let mut reader = JsonReader::default();
        for text in texts {
            reader.feed(text.as_bytes());
            reader.restart();
        }
        assert_eq!(reader.found().usage(), expected, "{texts:?}");
    }
}

#[test]
fn a_usage_chunk_has_usage_and_no_choices() {
    for (text, choices, usage) in [
        (r#"{"choices":[],"usage":{"prompt_tokens":1}}"#, false, true),
        (r#"{"usage":{},"x":{"choices":[1]},"choices":[ ]}"#, false, true),
        (r#"{"choices":[{}],"usage":{"prompt_tokens":1}}"#, true, false),
        (r#"{"choices":[],"usage":null}"#, false, false),
        (r#"{"choices":null,"usage":{}}"#, false, false),
        (r#"{"usage":{}}"#, false, false),
        (r#"[{"choices":[],"usage":{}}]"#, false, false),
        (r#"{"a":"choices\":[],","usage":{}}"#, false, false),
    ] {
        let mut reader = JsonReader::default();
        reader.feed(text.as_bytes());
        assert_eq!(
            (reader.has_choices(), reader.is_usage_chunk()),
            (choices, usage),
            "{text}"
        );
        reader.restart();
        assert!(!reader.has_choices() && !reader.is_usage_chunk());
    }
}

proptest! {
    #[test]
    fn pieces_of_any_size_give_the_same(text in prop_oneof![Just(CHAT), Just(RESPONSES)], cut in 1usize..40) {
        let (mut whole, mut pieces) = (JsonReader::default(), JsonReader::default());
        whole.feed(text.as_bytes());
        for piece in text.as_bytes().chunks(cut) {
            pieces.feed(piece);
        }
        prop_assert_eq!(whole.found(), pieces.found());
    }

    #[test]
    fn nothing_makes_it_panic(bytes: Vec<u8>) {
        JsonReader::default().feed(&bytes);
    }

    #[test]
    fn json_like_nonsense_does_not_either(text in r#"[{}\[\]",:\\a0-9mdeluso ]{0,200}"#) {
        json(&text);
    }
}

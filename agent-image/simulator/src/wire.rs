//! How answers look: whole, and as a stream's events, in each protocol.

use bytes::BytesMut;
use flotilla_serve::sse_event;
use serde::Serialize;
use serde_json::{Value, json};

use crate::api::Protocol;
use crate::random::Random;

/// Numbers in an embedding.
const DIMENSIONS: usize = 8;

/// Tokens used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Input.
    pub prompt_tokens: u64,
    /// Output.
    pub completion_tokens: u64,
    /// Both.
    pub total_tokens: u64,
}

impl Usage {
    /// Usage of `input` and `output` tokens.
    pub fn new(input: u64, output: u64) -> Self {
        Self {
            prompt_tokens: input,
            completion_tokens: output,
            total_tokens: input + output,
        }
    }

    fn of_response(self) -> Value {
        json!({
            "input_tokens": self.prompt_tokens, "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": self.completion_tokens, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.total_tokens,
        })
    }

    fn of_message(self) -> Value {
        json!({
            "input_tokens": self.prompt_tokens, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
            "output_tokens": self.completion_tokens,
        })
    }
}

/// What every part of one answer shares.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// The protocol.
    pub protocol: Protocol,
    /// Digits that make the answer's name.
    pub id: u64,
    /// Seconds since 1970.
    pub created: u64,
    /// The model as the client named it.
    pub model: String,
    /// A stream's usage is asked for (chat completions only; the others tell it always).
    pub include_usage: bool,
}

impl Envelope {
    /// A whole answer. `finish_reason` is that of chat completions: `stop` or `length`.
    pub fn whole(&self, text: &str, finish_reason: &str, usage: Usage) -> Value {
        match self.protocol {
            Protocol::ChatCompletions => json!({
                "id": self.name(), "object": "chat.completion", "created": self.created, "model": self.model,
                "choices": [{
                    "index": 0, "finish_reason": finish_reason, "logprobs": null,
                    "message": {"role": "assistant", "content": text, "refusal": null},
                }],
                "usage": usage,
            }),
            Protocol::Responses => self.response("completed", Some((text, usage))),
            Protocol::Messages => self.message(Some((text, finish_reason)), usage),
            Protocol::Embeddings => self.embeddings(1, usage.prompt_tokens),
        }
    }

    /// Embeddings of `texts` texts.
    pub fn embeddings(&self, texts: usize, input: u64) -> Value {
        let mut random = Random::new(self.id);
        let data = (0..texts).map(|index| {
            let numbers: Vec<f64> = (0..DIMENSIONS).map(|_| random.unit() * 2.0 - 1.0).collect();
            json!({"object": "embedding", "index": index, "embedding": numbers})
        });
        json!({
            "object": "list", "data": data.collect::<Vec<_>>(), "model": self.model,
            "usage": {"prompt_tokens": input, "total_tokens": input},
        })
    }

    fn name(&self) -> String {
        let prefix = match self.protocol {
            Protocol::ChatCompletions => "chatcmpl-",
            Protocol::Responses => "resp_",
            Protocol::Messages => "msg_",
            Protocol::Embeddings => "embd-",
        };
        format!("{prefix}{:016x}", self.id)
    }

    fn response(&self, status: &str, done: Option<(&str, Usage)>) -> Value {
        let output: Vec<Value> = done
            .iter()
            .map(|(text, _)| self.output_item("completed", Some(text)))
            .collect();
        json!({
            "id": self.name(), "object": "response", "created_at": self.created, "status": status, "model": self.model,
            "error": null, "output": output, "usage": done.map(|(_, usage)| usage.of_response()),
        })
    }

    fn output_item(&self, status: &str, text: Option<&str>) -> Value {
        let content: Vec<Value> = text.iter().map(|text| output_text(text)).collect();
        json!({"id": format!("item_{:016x}", self.id), "type": "message", "role": "assistant", "status": status, "content": content})
    }

    fn message(&self, done: Option<(&str, &str)>, usage: Usage) -> Value {
        let content: Vec<Value> = done
            .iter()
            .map(|(text, _)| json!({"type": "text", "text": text}))
            .collect();
        json!({
            "id": self.name(), "type": "message", "role": "assistant", "model": self.model, "content": content,
            "stop_reason": done.map(|(_, reason)| stop_reason(reason)), "stop_sequence": null, "usage": usage.of_message(),
        })
    }

    /// Appends what comes before a stream's first token.
    pub fn begin(&self, out: &mut BytesMut, input: u64) {
        match self.protocol {
            Protocol::ChatCompletions => self.chunk(out, &json!({"role": "assistant", "content": ""}), None),
            Protocol::Responses => {
                named(
                    out,
                    json!({"type": "response.created", "response": self.response("in_progress", None)}),
                );
                named(
                    out,
                    json!({"type": "response.output_item.added", "output_index": 0, "item": self.output_item("in_progress", None)}),
                );
                named(
                    out,
                    self.of_part("response.content_part.added", "part", output_text("")),
                );
            }
            Protocol::Messages => {
                let message = self.message(None, Usage::new(input, 1));
                named(out, json!({"type": "message_start", "message": message}));
                let block = json!({"type": "text", "text": ""});
                named(
                    out,
                    json!({"type": "content_block_start", "index": 0, "content_block": block}),
                );
            }
            Protocol::Embeddings => {}
        }
    }

    /// Appends one token.
    pub fn delta(&self, out: &mut BytesMut, word: &str) {
        match self.protocol {
            Protocol::ChatCompletions => self.chunk(out, &json!({"content": word}), None),
            Protocol::Responses => named(
                out,
                self.of_part("response.output_text.delta", "delta", json!(word)),
            ),
            Protocol::Messages => {
                let delta = json!({"type": "text_delta", "text": word});
                named(
                    out,
                    json!({"type": "content_block_delta", "index": 0, "delta": delta}),
                );
            }
            Protocol::Embeddings => {}
        }
    }

    /// Appends what comes after a stream's last token.
    pub fn finish(&self, out: &mut BytesMut, text: &str, finish_reason: &str, usage: Usage) {
        match self.protocol {
            Protocol::ChatCompletions => {
                self.chunk(out, &json!({}), Some(finish_reason));
                if self.include_usage {
                    self.chat_event(out, json!([]), Some(usage));
                }
                out.extend_from_slice(b"data: [DONE]\n\n");
            }
            Protocol::Responses => {
                named(
                    out,
                    self.of_part("response.output_text.done", "text", json!(text)),
                );
                named(
                    out,
                    self.of_part("response.content_part.done", "part", output_text(text)),
                );
                named(
                    out,
                    json!({"type": "response.output_item.done", "output_index": 0, "item": self.output_item("completed", Some(text))}),
                );
                let response = self.response("completed", Some((text, usage)));
                named(out, json!({"type": "response.completed", "response": response}));
            }
            Protocol::Messages => {
                named(out, json!({"type": "content_block_stop", "index": 0}));
                let delta = json!({"stop_reason": stop_reason(finish_reason), "stop_sequence": null});
                let usage = json!({"output_tokens": usage.completion_tokens});
                named(
                    out,
                    json!({"type": "message_delta", "delta": delta, "usage": usage}),
                );
                named(out, json!({"type": "message_stop"}));
            }
            Protocol::Embeddings => {}
        }
    }

    fn of_part(&self, kind: &str, member: &str, value: Value) -> Value {
        let mut event = json!({"type": kind, "item_id": format!("item_{:016x}", self.id), "output_index": 0, "content_index": 0});
        event[member] = value;
        event
    }

    fn chunk(&self, out: &mut BytesMut, delta: &Value, finish_reason: Option<&str>) {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": null});
        self.chat_event(out, json!([choice]), None);
    }

    fn chat_event(&self, out: &mut BytesMut, choices: Value, usage: Option<Usage>) {
        let mut chunk = json!({
            "id": self.name(), "object": "chat.completion.chunk", "created": self.created, "model": self.model,
            "choices": choices,
        });
        if self.include_usage {
            chunk["usage"] = json!(usage);
        }
        out.extend_from_slice(&sse_event(&chunk.to_string()));
    }
}

fn output_text(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": []})
}

fn stop_reason(finish_reason: &str) -> &'static str {
    match finish_reason {
        "length" => "max_tokens",
        _ => "end_turn",
    }
}

/// An event whose name is its data's type.
fn named(out: &mut BytesMut, data: Value) {
    let name = data["type"].as_str().unwrap_or_default();
    out.extend_from_slice(format!("event: {name}\n").as_bytes());
    out.extend_from_slice(&sse_event(&data.to_string()));
}

//! What a test may change while it runs: what becomes of pods, what users do, what candidates and sources answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flotilla_operator::pool::figures::read::{Question, Read};
use flotilla_operator::pool::trial::ask::{Ask, Miss, Target};
use flotilla_operator::pool::trial::list::Probe;
use flotilla_sim::Cluster;
use flotilla_sim::controllers::Fate;
use flotilla_sim::gateways::{Manner, Traffic};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::Value;

use crate::workloads::result_of;

/// How a candidate answers a test's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With 503.
    Broken,
    /// Never.
    Never,
    /// The node refuses the connection so many more times.
    Refused(usize),
}

/// A number of the source.
#[derive(Clone, Copy, Debug)]
pub enum Number {
    Is(f64),
    /// So much in each second.
    Rises(f64),
}

#[derive(Debug, Default)]
pub struct Script {
    pub fates: BTreeMap<String, Fate>,
    pub rate: f64,
    /// How an image's requests fare, by its tag.
    pub manners: BTreeMap<String, Manner>,
    /// By path; all others are answered with 200.
    pub answers: BTreeMap<String, Answer>,
    /// Numbers of the source by a part of the question, the newest last.
    pub numbers: Vec<(String, Number)>,
    /// What the source was asked.
    pub questions: Vec<String>,
}

#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<Mutex<Script>>);

impl Shared {
    pub fn with<T>(&self, change: impl FnOnce(&mut Script) -> T) -> T {
        change(&mut self.0.lock().expect("no test panics while it holds the script"))
    }
}

impl Traffic for Shared {
    fn rate(&self, _: &Value, _: i64) -> f64 {
        self.with(|script| script.rate)
    }

    fn manner(&self, image: &str, _: i64) -> Manner {
        self.with(|script| script.manners.get(tag(image)).copied().unwrap_or_default())
    }
}

impl Ask for Shared {
    fn ask(&self, probe: Probe, target: Target) -> BoxFuture<'static, Result<String, Miss>> {
        let Probe::Http(test) = probe else {
            panic!("only requests are scripted: {probe:?}")
        };
        assert!(target.name.starts_with("support-"), "{target:?}");
        let answer = self.with(|script| {
            let answer = script.answers.get_mut(&test.path);
            match answer {
                Some(Answer::Refused(0)) => None,
                Some(Answer::Refused(left)) => {
                    *left -= 1;
                    Some(Answer::Refused(*left))
                }
                other => other.copied(),
            }
        });
        async move {
            match answer {
                None => Ok("it was answered with 200".to_owned()),
                Some(Answer::Broken) => Err(Miss::Failed("it was answered with 503, not 200".to_owned())),
                Some(Answer::Never) => std::future::pending().await,
                Some(Answer::Refused(_)) => Err(Miss::Unreached("connection refused".to_owned())),
            }
        }
        .boxed()
    }
}

impl Read for Shared {
    fn read(&self, question: Question) -> BoxFuture<'static, Result<Option<f64>, String>> {
        let number = self.with(|script| {
            script.questions.push(question.text.clone());
            let mut known = script.numbers.iter().rev();
            let found = known.find(|(part, _)| question.text.contains(part));
            found.map(|(_, number)| *number)
        });
        let number = number.map(|number| match number {
            Number::Is(number) => number,
            Number::Rises(number) => (number * question.time as f64).round(),
        });
        let answer = number.map(Some).ok_or_else(|| "it does not answer".to_owned());
        async move { answer }.boxed()
    }
}

pub fn tag(image: &str) -> &str {
    image.rsplit_once(':').map_or(image, |(_, tag)| tag)
}

/// What becomes of a pod: agents become ready, Jobs' commands and load generators come to a good end, unless the script says so.
pub fn fate_of(script: &Shared, cluster: &Cluster, pod: &Value) -> Fate {
    let image = pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
    let told = script.with(|script| script.fates.get(tag(image)).cloned());
    match image.split(':').next() {
        Some("agent") => told.unwrap_or(Fate::Ready(Duration::from_millis(700))),
        Some("smoke") => told.unwrap_or(Fate::Exits {
            after: Duration::from_secs(1),
            code: 0,
            message: String::new(),
        }),
        Some("loadgen") => Fate::Exits {
            after: Duration::from_secs(70),
            code: 0,
            message: result_of(cluster, pod),
        },
        _ => Fate::Ready(Duration::from_millis(700)),
    }
}

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Method;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::*;
use crate::metrics::Metrics;
use crate::runtime::cache::Watch;
use crate::runtime::errors::Error;
use crate::runtime::manager::{Election, Options};
use crate::runtime::readiness::Readiness;
use crate::runtime::testing::{FakeApi, answer, endless, list};
use crate::runtime::time::{Clock, Jitter};

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "a", "uid": format!("uid-{name}"), "resourceVersion": "10", "generation": 1}})
}

/// Lists these ConfigMaps, keeps watches open, echoes writes, and has a Lease that somebody else held once.
fn server(items: Vec<Value>) -> FakeApi {
    FakeApi::new(move |got| {
        let items = items.clone();
        async move {
            if got.is_watch() {
                endless(200)
            } else if got.path.contains("/leases/") && got.method == Method::GET {
                answer(
                    200,
                    &json!({
                        "metadata": {"name": "l", "namespace": "ns", "resourceVersion": "1"},
                        "spec": {"holderIdentity": "other", "leaseDurationSeconds": 15},
                    }),
                )
            } else if got.method == Method::GET {
                list("ConfigMap", "v1", &items)
            } else {
                answer(200, &got.body)
            }
        }
    })
}

type Script = dyn Fn(&str, usize) -> Result<Next, Error> + Send + Sync;

/// Logs each visit and answers by a script of (name, how many visits before).
struct Scripted {
    log: Arc<Mutex<Vec<(String, Instant)>>>,
    counts: Mutex<HashMap<String, usize>>,
    script: Box<Script>,
    work: Duration,
    now: AtomicUsize,
    most: Arc<AtomicUsize>,
    forgotten: Arc<Mutex<Vec<Key>>>,
}

impl Reconciler for Scripted {
    type Kind = ConfigMap;
    type Error = Error;

    async fn reconcile(&self, object: Arc<ConfigMap>, _: &Visit) -> Result<Next, Error> {
        let name = object.name_any();
        self.log.lock().push((name.clone(), Instant::now()));
        let count = {
            let mut counts = self.counts.lock();
            let count = counts.entry(name.clone()).or_default();
            *count += 1;
            *count - 1
        };
        self.most
            .fetch_max(self.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        tokio::time::sleep(self.work).await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        (self.script)(&name, count)
    }

    fn forget(&self, key: &Key) {
        self.forgotten.lock().push(key.clone());
    }
}

struct Run {
    log: Arc<Mutex<Vec<(String, Instant)>>>,
    most: Arc<AtomicUsize>,
    forgotten: Arc<Mutex<Vec<Key>>>,
    trigger: Trigger,
    cache: Cache<ConfigMap>,
    metrics: Metrics,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<bool>,
}

impl Run {
    fn start(
        api: &FakeApi,
        election: Option<Election>,
        work: Duration,
        script: impl Fn(&str, usize) -> Result<Next, Error> + Send + Sync + 'static,
    ) -> Self {
        let mut manager = Manager::new(Options {
            clients: api.clients(),
            clock: Clock::virtual_from(Timestamp::UNIX_EPOCH),
            jitter: Jitter::seeded(1),
            metrics: api.metrics.clone(),
            readiness: Readiness::default(),
            namespaces: Vec::new(),
            election,
        });
        let cache = manager.guarded_cache::<ConfigMap>(Watch::all());
        let log = Arc::<Mutex<Vec<_>>>::default();
        let most = Arc::<AtomicUsize>::default();
        let forgotten = Arc::<Mutex<Vec<_>>>::default();
        let reconciler = Scripted {
            log: Arc::clone(&log),
            counts: Mutex::default(),
            script: Box::new(script),
            work,
            now: AtomicUsize::new(0),
            most: Arc::clone(&most),
            forgotten: Arc::clone(&forgotten),
        };
        let trigger = Controller::new("test", &cache).register(&mut manager, reconciler);
        let stop = CancellationToken::new();
        let run = manager.run(stop.clone());
        let task = tokio::spawn(async move { run.await.is_ok() });
        Self {
            log,
            most,
            forgotten,
            trigger,
            cache,
            metrics: api.metrics.clone(),
            stop,
            task,
        }
    }

    fn visits(&self, name: &str) -> Vec<Instant> {
        self.log
            .lock()
            .iter()
            .filter(|(visited, _)| visited == name)
            .map(|(_, at)| *at)
            .collect()
    }
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_and_an_undecodable_object_stop_nobody_else() {
    let mut bad = map("bad");
    bad["data"] = json!("not a map");
    let api = server(vec![map("good"), bad, map("panics")]);
    let run = Run::start(&api, None, Duration::ZERO, |name, _| {
        assert!(name != "panics", "on purpose");
        Ok(Next::on_change())
    });
    pass(60).await;
    assert_eq!(run.visits("good").len(), 1);
    let panics = run.visits("panics").len();
    assert!(
        (7..=9).contains(&panics),
        "back-off from 0.25 s doubling: {panics} visits in 60 s"
    );
    assert!(run.visits("bad").is_empty() && run.forgotten.lock().is_empty());
    let text = run.metrics.encode();
    assert!(
        text.contains(&format!(
            r#"controller_runtime_reconcile_panics_total{{controller="test"}} {panics}"#
        )),
        "{text}"
    );
    assert!(
        text.contains(r#"flotilla_undecodable_objects{kind="ConfigMap"} 1"#),
        "{text}"
    );
    let marks: Vec<_> = api
        .writes()
        .into_iter()
        .filter(|got| got.path.ends_with("/configmaps/bad/status"))
        .collect();
    assert_eq!(marks.len(), 1, "once per generation");
    assert_eq!(marks[0].body["status"]["conditions"][0]["reason"], "Undecodable");
    let reasons: Vec<_> = api
        .writes()
        .iter()
        .map(|got| got.body["reason"].clone())
        .collect();
    assert!(reasons.contains(&json!("Undecodable")) && reasons.contains(&json!("Panic")));
    run.stop.cancel();
    assert!(run.task.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn at_most_sixteen_objects_are_worked_on_at_once() {
    let items = (0..40).map(|number| map(&format!("m{number}"))).collect();
    let run = Run::start(&server(items), None, Duration::from_secs(1), |_, _| {
        Ok(Next::on_change())
    });
    pass(4).await;
    assert_eq!(
        (run.log.lock().len(), run.most.load(Ordering::SeqCst)),
        (40, CONCURRENCY)
    );
}

#[tokio::test(start_paused = true)]
async fn retries_follow_who_can_act() {
    let api = server(vec![map("user"), map("refused"), map("flaky"), map("bug")]);
    let run = Run::start(&api, None, Duration::ZERO, |name, count| match name {
        "user" => Err(Error::user("InvalidSpec", "write something else")),
        "refused" => Err(Error::Refused {
            action: "x".into(),
            code: 403,
            message: "quota".into(),
        }),
        "flaky" if count < 6 => Err(Error::Conflict { action: "x".into() }),
        "flaky" => Ok(Next::after(Duration::from_secs(600))),
        _ => Err(Error::Bug("x".into())),
    });
    pass(300).await;
    assert_eq!(run.visits("user").len(), 1, "nothing changes until the user acts");
    let gaps = |name: &str| -> Vec<f64> {
        run.visits(name)
            .windows(2)
            .map(|pair| (pair[1] - pair[0]).as_secs_f64())
            .collect()
    };
    for (name, cap) in [("refused", 30.0), ("flaky", 2.0), ("bug", 300.0)] {
        for (number, gap) in gaps(name).iter().enumerate() {
            let expected = (0.25 * f64::from(1 << number.min(16) as u32)).min(cap);
            assert!(
                (0.7 * expected..=1.3 * expected).contains(gap),
                "{name} {number}: {gap} s, not {expected} s"
            );
        }
    }
    assert_eq!(run.visits("flaky").len(), 7);
    pass(700).await;
    assert_eq!(
        run.visits("flaky").len(),
        8,
        "the wish of a success is kept, its failures are forgotten"
    );
    let events: Vec<_> = api
        .writes()
        .iter()
        .filter_map(|got| got.body["reason"].as_str().map(str::to_owned))
        .collect();
    assert!(
        events.iter().any(|reason| reason == "InvalidSpec")
            && !events.iter().any(|reason| reason == "Conflict")
    );
}

#[tokio::test(start_paused = true)]
async fn a_standby_fills_its_caches_and_visits_all_once_it_leads() {
    let election = Election {
        namespace: "ns".into(),
        name: "l".into(),
        identity: "me".into(),
    };
    let api = server(vec![map("x"), map("y")]);
    let run = Run::start(&api, Some(election), Duration::ZERO, |_, _| Ok(Next::on_change()));
    pass(10).await;
    assert_eq!((run.cache.len(), run.log.lock().len()), (2, 0));
    run.trigger.now(Key::new("a", "x"));
    pass(1).await;
    assert!(run.log.lock().is_empty());
    pass(10).await;
    assert_eq!(run.log.lock().len(), 2);
    run.stop.cancel();
    assert!(run.task.await.unwrap());
    let last = api.writes().pop().unwrap();
    assert_eq!(
        last.body["spec"]["holderIdentity"], "",
        "the lease is given up at the end"
    );
}

#[tokio::test(start_paused = true)]
async fn triggers_timers_and_deletions() {
    let run = Run::start(&server(vec![map("x")]), None, Duration::ZERO, |_, count| {
        Ok(if count == 0 {
            Next::after(Duration::from_secs(5))
        } else {
            Next::on_change()
        })
    });
    pass(7).await;
    assert_eq!(run.visits("x").len(), 2);
    run.trigger.after(Key::new("a", "x"), Duration::from_secs(3));
    run.trigger.now(Key::new("a", "gone"));
    pass(4).await;
    assert_eq!(run.visits("x").len(), 3);
    assert_eq!(*run.forgotten.lock(), [Key::new("a", "gone")]);
}

#[tokio::test(start_paused = true)]
async fn steady_state_makes_no_requests_but_watches() {
    let api = server((0..50).map(|number| map(&format!("m{number}"))).collect());
    let run = Run::start(&api, None, Duration::ZERO, |_, _| Ok(Next::on_change()));
    pass(5).await;
    let before = api.got().len();
    pass(120).await;
    let later = api.got();
    assert!(later[before..].iter().all(super::super::testing::Got::is_watch));
    assert!(
        later.len() - before <= 5,
        "{} watches in two minutes",
        later.len() - before
    );
    assert_eq!(run.log.lock().len(), 50);
}

#[tokio::test(start_paused = true)]
async fn the_shutdown_waits_for_running_visits() {
    let run = Run::start(&server(vec![map("x")]), None, Duration::from_secs(3), |_, _| {
        Ok(Next::on_change())
    });
    pass(1).await;
    let stopped = Instant::now();
    run.stop.cancel();
    assert!(run.task.await.unwrap());
    assert!(stopped.elapsed() >= Duration::from_secs(2) && stopped.elapsed() < Duration::from_secs(10));
    assert!(
        run.metrics
            .encode()
            .contains(r#"controller_runtime_reconcile_total{controller="test",result="success"} 1"#)
    );
}

#[test]
fn pauses_double_up_to_the_cap() {
    let cap = Duration::from_secs(8);
    let pauses: Vec<u128> = [1, 2, 3, 6, 7, 40]
        .iter()
        .map(|count| pause_after(*count, cap).as_millis())
        .collect();
    assert_eq!(pauses, [250, 500, 1000, 8000, 8000, 8000]);
}

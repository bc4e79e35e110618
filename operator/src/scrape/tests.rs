use super::*;
use serde_json::json;
use std::sync::atomic::{AtomicU32, Ordering};

/// Answers with the number of questions as the report's time; addresses ending in .9 never answer.
#[derive(Default)]
struct Counting(Arc<AtomicU32>);

impl Fetch for Counting {
    fn fetch(&self, address: IpAddr) -> BoxFuture<'static, Result<Stats, String>> {
        let count = self.0.fetch_add(1, Ordering::SeqCst) + 1;
        let stats = Stats {
            version: stats::VERSION,
            time_milliseconds: count.into(),
            ..Stats::default()
        };
        let answers = !address.to_string().ends_with(".9");
        async move {
            if answers {
                Ok(stats)
            } else {
                Err("connection refused".to_owned())
            }
        }
        .boxed()
    }
}

fn gateway(name: &str, address: &str, ready: bool) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"namespace": "shop", "name": name, "uid": name, "labels": {names::APP_NAME: names::GATEWAY}},
        "status": {"podIP": address, "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
    }))
    .unwrap()
}

fn started() -> (Scraper, Arc<AtomicU32>) {
    let count = Arc::new(AtomicU32::new(0));
    let scraper = Scraper::new(Arc::new(Counting(Arc::clone(&count))));
    tokio::spawn(scraper.clone().run());
    (scraper, count)
}

#[tokio::test(start_paused = true)]
async fn idle_gateways_are_asked_rarely_and_eager_ones_every_second() {
    let (scraper, count) = started();
    scraper.take_in(&gateway("g-1", "10.0.0.1", true));
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!(count.load(Ordering::SeqCst), 2);
    let who = Key::new("shop", "support");
    scraper.set_eager(&who, true);
    tokio::time::sleep(Duration::from_millis(4500)).await;
    assert_eq!(count.load(Ordering::SeqCst), 7);
    scraper.set_eager(&who, false);
    tokio::time::sleep(Duration::from_secs(14)).await;
    assert_eq!(count.load(Ordering::SeqCst), 8);
}

#[tokio::test(start_paused = true)]
async fn a_view_says_what_is_known_and_whether_it_is_fresh() {
    let (scraper, _) = started();
    scraper.take_in(&gateway("g-1", "10.0.0.1", true));
    scraper.take_in(&gateway("g-9", "10.0.0.9", false));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let views = scraper.views("shop");
    assert_eq!(
        (views[0].ready, views[0].fresh, views[0].stats.is_some()),
        (true, true, true)
    );
    assert_eq!(
        (views[1].ready, views[1].problem.as_deref()),
        (false, Some("connection refused"))
    );
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!scraper.views("shop")[0].fresh);
    assert!(scraper.views("other").is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_is_eager_is_told_and_who_is_gone_is_forgotten() {
    let (scraper, _) = started();
    let told = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&told);
    scraper.on_report(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    let pod = gateway("g-1", "10.0.0.1", true);
    scraper.take_in(&pod);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(told.load(Ordering::SeqCst), 0);
    scraper.set_eager(&Key::new("shop", "support"), true);
    tokio::time::sleep(LEAST_PACE).await;
    assert_eq!(told.load(Ordering::SeqCst), 1);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(told.load(Ordering::SeqCst), 1, "nothing new was said");
    scraper.forget(&pod);
    assert_eq!(told.load(Ordering::SeqCst), 2);
    assert!(scraper.views("shop").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_dead_address_is_asked_more_rarely() {
    let (scraper, count) = started();
    scraper.set_eager(&Key::new("shop", "support"), true);
    scraper.take_in(&gateway("g-9", "10.0.0.9", true));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let asked = count.load(Ordering::SeqCst);
    assert!((15..=25).contains(&asked), "{asked} questions in a minute");
}

#[tokio::test(start_paused = true)]
async fn a_crowd_that_becomes_eager_does_not_drown_a_gateway() {
    let (scraper, count) = started();
    scraper.take_in(&gateway("g-1", "10.0.0.1", true));
    for pool in 0..1000 {
        scraper.set_eager(&Key::new("shop", format!("p{pool}")), true);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let asked = count.load(Ordering::SeqCst);
    assert!((9..=12).contains(&asked), "{asked} questions in 2 s");
}

#[test]
fn only_what_a_release_moves_on_is_news() {
    let report = |endpoints: &[&str], in_flight: &[&str]| PoolStats {
        traffic_generation: 3,
        revisions: [(
            "r".to_owned(),
            RevisionStats {
                endpoints: endpoints.iter().map(|address| (*address).to_owned()).collect(),
                in_flight: in_flight.len() as u64,
                in_flight_by_address: in_flight
                    .iter()
                    .map(|address| ((*address).to_owned(), 1))
                    .collect(),
                ..RevisionStats::default()
            },
        )]
        .into(),
        ..PoolStats::default()
    };
    let before = report(&["a"], &["a"]);
    let mut busier = before.clone();
    busier.queued = 7;
    busier.revisions.get_mut("r").unwrap().in_flight = 9;
    assert!(says_the_same(Some(&before), Some(&busier)));
    for (after, why) in [
        (Some(report(&["a", "b"], &["a"])), "an endpoint came"),
        (Some(report(&["a"], &[])), "nothing is in flight any more"),
        (Some(report(&["a"], &["b"])), "another replica works"),
        (None, "the pool is gone"),
    ] {
        assert!(!says_the_same(Some(&before), after.as_ref()), "{why}");
    }
    let weighted = PoolStats {
        traffic_generation: 4,
        ..before.clone()
    };
    assert!(!says_the_same(Some(&before), Some(&weighted)));
}

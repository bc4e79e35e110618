//! The operator's metrics, under the names that dashboards for controller-runtime and client-go already use.
//!
//! No series here depends on the number of objects: labels are kinds, verbs, codes and results, never names; those of
//! [pools](crate::pool::metrics) are read at the scrape. What the controllers measure themselves goes under `flotilla_`
//! through [`Metrics::register`].

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    families: Families,
}

#[derive(Clone)]
struct Families {
    reconciles: Family<ResultLabels, Counter>,
    reconcile_errors: Family<ErrorLabels, Counter>,
    reconcile_panics: Family<ControllerLabels, Counter>,
    reconcile_time: Family<ControllerLabels, Histogram, fn() -> Histogram>,
    active_workers: Family<ControllerLabels, Gauge>,
    max_concurrent: Family<ControllerLabels, Gauge>,
    depth: Family<QueueLabels, Gauge>,
    adds: Family<QueueLabels, Counter>,
    retries: Family<QueueLabels, Counter>,
    queue_duration: Family<QueueLabels, Histogram, fn() -> Histogram>,
    work_duration: Family<QueueLabels, Histogram, fn() -> Histogram>,
    leader: Family<LeaderLabels, Gauge>,
    requests: Family<RequestLabels, Counter>,
    request_time: Family<VerbLabels, Histogram, fn() -> Histogram>,
    request_retries: Family<VerbLabels, Counter>,
    watch_errors: Family<KindLabels, Counter>,
    relists: Family<KindLabels, Counter>,
    events: Family<EventLabels, Counter>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabels {
    controller: &'static str,
    result: ReconcileResult,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ErrorLabels {
    controller: &'static str,
    category: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ControllerLabels {
    controller: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct QueueLabels {
    name: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LeaderLabels {
    name: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    code: CodeLabel,
    method: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct VerbLabels {
    verb: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabels {
    kind: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct EventLabels {
    outcome: EventOutcome,
}

/// The HTTP status of an answer, or `<error>` when there was none (as client-go writes it).
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct CodeLabel(pub Option<u16>);

impl EncodeLabelValue for CodeLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self.0 {
            Some(code) => write!(encoder, "{code}"),
            None => encoder.write_str("<error>"),
        }
    }
}

/// How a reconcile ended, in controller-runtime's words.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum ReconcileResult {
    /// Done until something changes.
    Success,
    /// Done, with a time for the next visit.
    RequeueAfter,
    /// Failed; tried again with back-off.
    Error,
    /// Failed for a reason only the user can mend; not tried again.
    TerminalError,
}

impl EncodeLabelValue for ReconcileResult {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(match self {
            Self::Success => "success",
            Self::RequeueAfter => "requeue_after",
            Self::Error => "error",
            Self::TerminalError => "terminal_error",
        })
    }
}

/// What became of a Kubernetes Event.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum EventOutcome {
    /// Created or counted up.
    Sent,
    /// The same was sent a short while ago.
    Repeated,
    /// The budget was used up, or the API server refused it.
    Dropped,
}

impl EncodeLabelValue for EventOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(match self {
            Self::Sent => "sent",
            Self::Repeated => "repeated",
            Self::Dropped => "dropped",
        })
    }
}

fn reconcile_seconds() -> Histogram {
    Histogram::new([
        0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    ])
}

fn queue_seconds() -> Histogram {
    Histogram::new(exponential_buckets(1e-5, 10.0, 8))
}

fn request_seconds() -> Histogram {
    Histogram::new([
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0,
    ])
}

// === impl Metrics ===

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All families registered, none with a value yet.
    pub fn new() -> Self {
        let families = Families::new();
        let mut registry = Registry::default();
        families.register(&mut registry);
        let build = Family::<BuildLabels, Gauge>::default();
        build
            .get_or_create(&BuildLabels {
                version: env!("CARGO_PKG_VERSION"),
            })
            .set(1);
        registry.register("flotilla_build_info", "Version of the running operator", build);
        Self {
            registry: Arc::new(Mutex::new(registry)),
            families,
        }
    }

    /// Adds metrics of the controllers; names given inside get the prefix `flotilla_`.
    pub fn register(&self, with: impl FnOnce(&mut Registry)) {
        with(self.registry.lock().sub_registry_with_prefix("flotilla"));
    }

    /// Adds values that are read at the time of the scrape; names are as the collector gives them.
    pub fn register_collector(&self, collector: Box<dyn Collector>) {
        self.registry.lock().register_collector(collector);
    }

    /// Everything, as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry.lock());
        text
    }

    /// The handles of one controller; every series exists from now on, at zero.
    pub fn controller(&self, name: &'static str, concurrency: usize) -> ControllerMetrics {
        let families = &self.families;
        let labels = ControllerLabels { controller: name };
        let queue = QueueLabels { name };
        for result in [
            ReconcileResult::Success,
            ReconcileResult::RequeueAfter,
            ReconcileResult::Error,
            ReconcileResult::TerminalError,
        ] {
            families
                .reconciles
                .get_or_create(&ResultLabels {
                    controller: name,
                    result,
                })
                .inc_by(0);
        }
        families
            .max_concurrent
            .get_or_create(&labels)
            .set(i64::try_from(concurrency).unwrap_or(i64::MAX));
        ControllerMetrics {
            name,
            families: families.clone(),
            active: families.active_workers.get_or_create_owned(&labels),
            panics: families.reconcile_panics.get_or_create_owned(&labels),
            reconcile_time: families.reconcile_time.get_or_create_owned(&labels),
            depth: families.depth.get_or_create_owned(&queue),
            adds: families.adds.get_or_create_owned(&queue),
            retries: families.retries.get_or_create_owned(&queue),
            queue_duration: families.queue_duration.get_or_create_owned(&queue),
            work_duration: families.work_duration.get_or_create_owned(&queue),
        }
    }

    /// 1 while this replica leads, else 0.
    pub fn set_leader(&self, lease: &str, leads: bool) {
        self.families
            .leader
            .get_or_create(&LeaderLabels {
                name: lease.to_owned(),
            })
            .set(i64::from(leads));
    }

    /// One HTTP request to the API server: its method, its status (none when it was not answered), how long it took.
    pub fn request(&self, method: &http::Method, verb: &'static str, code: Option<u16>, took: Duration) {
        let labels = RequestLabels {
            code: CodeLabel(code),
            method: method.to_string(),
        };
        self.families.requests.get_or_create(&labels).inc();
        self.families
            .request_time
            .get_or_create(&VerbLabels { verb })
            .observe(took.as_secs_f64());
    }

    /// A request that is sent once more.
    pub fn request_retry(&self, verb: &'static str) {
        self.families
            .request_retries
            .get_or_create(&VerbLabels { verb })
            .inc();
    }

    /// A watch or list that failed.
    pub fn watch_error(&self, kind: &str) {
        self.families
            .watch_errors
            .get_or_create(&KindLabels {
                kind: kind.to_owned(),
            })
            .inc();
    }

    /// A complete list of a kind.
    pub fn relist(&self, kind: &str) {
        self.families
            .relists
            .get_or_create(&KindLabels {
                kind: kind.to_owned(),
            })
            .inc();
    }

    /// What became of an Event.
    pub fn event(&self, outcome: EventOutcome) {
        self.families.events.get_or_create(&EventLabels { outcome }).inc();
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
}

/// The metrics of one controller and its queue.
#[derive(Clone)]
pub struct ControllerMetrics {
    name: &'static str,
    families: Families,
    /// `controller_runtime_active_workers`.
    pub active: Gauge,
    /// `controller_runtime_reconcile_panics_total`.
    pub panics: Counter,
    /// `controller_runtime_reconcile_time_seconds`.
    pub reconcile_time: Histogram,
    /// `workqueue_depth`.
    pub depth: Gauge,
    /// `workqueue_adds_total`.
    pub adds: Counter,
    /// `workqueue_retries_total`.
    pub retries: Counter,
    /// `workqueue_queue_duration_seconds`.
    pub queue_duration: Histogram,
    /// `workqueue_work_duration_seconds`.
    pub work_duration: Histogram,
}

impl ControllerMetrics {
    /// One finished reconcile.
    pub fn finished(&self, result: ReconcileResult) {
        self.families
            .reconciles
            .get_or_create(&ResultLabels {
                controller: self.name,
                result,
            })
            .inc();
    }

    /// One failed reconcile; `category` is the error's stable word.
    pub fn failed(&self, category: &'static str) {
        self.families
            .reconcile_errors
            .get_or_create(&ErrorLabels {
                controller: self.name,
                category,
            })
            .inc();
    }
}

impl Families {
    fn new() -> Self {
        Self {
            reconciles: Family::default(),
            reconcile_errors: Family::default(),
            reconcile_panics: Family::default(),
            reconcile_time: Family::new_with_constructor(reconcile_seconds),
            active_workers: Family::default(),
            max_concurrent: Family::default(),
            depth: Family::default(),
            adds: Family::default(),
            retries: Family::default(),
            queue_duration: Family::new_with_constructor(queue_seconds),
            work_duration: Family::new_with_constructor(queue_seconds),
            leader: Family::default(),
            requests: Family::default(),
            request_time: Family::new_with_constructor(request_seconds),
            request_retries: Family::default(),
            watch_errors: Family::default(),
            relists: Family::default(),
            events: Family::default(),
        }
    }

    /// Suffixes `_total` and `_seconds` are added by the encoder.
    fn register(&self, registry: &mut Registry) {
        let runtime = registry.sub_registry_with_prefix("controller_runtime");
        runtime.register(
            "reconcile",
            "Reconciles by controller and result",
            self.reconciles.clone(),
        );
        runtime.register(
            "reconcile_errors",
            "Failed reconciles by controller and category of the error",
            self.reconcile_errors.clone(),
        );
        runtime.register(
            "reconcile_panics",
            "Panics caught in reconciles",
            self.reconcile_panics.clone(),
        );
        runtime.register_with_unit(
            "reconcile_time",
            "Length of reconciles",
            Unit::Seconds,
            self.reconcile_time.clone(),
        );
        runtime.register(
            "active_workers",
            "Reconciles under way",
            self.active_workers.clone(),
        );
        runtime.register(
            "max_concurrent_reconciles",
            "Most reconciles at once",
            self.max_concurrent.clone(),
        );

        let queue = registry.sub_registry_with_prefix("workqueue");
        queue.register("depth", "Keys waiting for a worker", self.depth.clone());
        queue.register("adds", "Keys added to the queue", self.adds.clone());
        queue.register(
            "retries",
            "Keys queued again after a failure",
            self.retries.clone(),
        );
        queue.register_with_unit(
            "queue_duration",
            "How long keys wait for a worker",
            Unit::Seconds,
            self.queue_duration.clone(),
        );
        queue.register_with_unit(
            "work_duration",
            "How long keys are worked on",
            Unit::Seconds,
            self.work_duration.clone(),
        );

        registry.register(
            "leader_election_master_status",
            "1 while this replica leads, else 0",
            self.leader.clone(),
        );

        let client = registry.sub_registry_with_prefix("rest_client");
        client.register(
            "requests",
            "HTTP requests to the API server by status code and method",
            self.requests.clone(),
        );
        client.register_with_unit(
            "request_duration",
            "Latency of requests by verb; of a watch, until it is open",
            Unit::Seconds,
            self.request_time.clone(),
        );
        client.register(
            "request_retries",
            "Requests sent once more by verb",
            self.request_retries.clone(),
        );

        let own = registry.sub_registry_with_prefix("flotilla");
        own.register(
            "watch_errors",
            "Failed lists and watches by kind",
            self.watch_errors.clone(),
        );
        own.register("relists", "Complete lists by kind", self.relists.clone());
        own.register(
            "events",
            "Kubernetes Events by what became of them",
            self.events.clone(),
        );
    }
}

/// A gauge of values that are read at the time of the scrape.
pub struct ScrapeGauge<F> {
    name: &'static str,
    help: &'static str,
    label: &'static str,
    read: F,
}

impl<F> ScrapeGauge<F>
where
    F: Fn() -> Vec<(String, f64)> + Send + Sync + 'static,
{
    /// A gauge `name{label="…"}`; `read` gives pairs of label value and value.
    pub fn new(name: &'static str, help: &'static str, label: &'static str, read: F) -> Self {
        Self {
            name,
            help,
            label,
            read,
        }
    }
}

impl<F> std::fmt::Debug for ScrapeGauge<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ScrapeGauge({})", self.name)
    }
}

impl<F> Collector for ScrapeGauge<F>
where
    F: Fn() -> Vec<(String, f64)> + Send + Sync + 'static,
{
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let family = Family::<[(&'static str, String); 1], Gauge<f64, AtomicU64>>::default();
        for (value, number) in (self.read)() {
            family.get_or_create(&[(self.label, value)]).set(number);
        }
        use prometheus_client::encoding::EncodeMetric as _;
        let metric = encoder.encode_descriptor(self.name, self.help, None, family.metric_type())?;
        family.encode(metric)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_controller_runtime() {
        let metrics = Metrics::new();
        let controller = metrics.controller("agentpool", 16);
        controller.finished(ReconcileResult::RequeueAfter);
        controller.failed("Conflict");
        controller.panics.inc();
        controller.reconcile_time.observe(0.1);
        controller.adds.inc();
        controller.retries.inc();
        controller.depth.set(2);
        metrics.set_leader("flotilla-operator", true);
        metrics.request(&http::Method::GET, "GET", Some(200), Duration::from_millis(3));
        metrics.request(&http::Method::POST, "POST", None, Duration::from_secs(5));
        metrics.register_collector(Box::new(ScrapeGauge::new(
            "flotilla_objects",
            "Cached",
            "kind",
            || vec![("Pod".to_owned(), 3.0)],
        )));
        let text = metrics.encode();
        for line in [
            r#"controller_runtime_reconcile_total{controller="agentpool",result="requeue_after"} 1"#,
            r#"controller_runtime_reconcile_total{controller="agentpool",result="success"} 0"#,
            r#"controller_runtime_reconcile_errors_total{controller="agentpool",category="Conflict"} 1"#,
            r#"controller_runtime_reconcile_panics_total{controller="agentpool"} 1"#,
            r#"controller_runtime_reconcile_time_seconds_count{controller="agentpool"} 1"#,
            r#"controller_runtime_active_workers{controller="agentpool"} 0"#,
            r#"controller_runtime_max_concurrent_reconciles{controller="agentpool"} 16"#,
            r#"workqueue_depth{name="agentpool"} 2"#,
            r#"workqueue_adds_total{name="agentpool"} 1"#,
            r#"workqueue_retries_total{name="agentpool"} 1"#,
            r#"workqueue_queue_duration_seconds_count{name="agentpool"} 0"#,
            r#"workqueue_work_duration_seconds_count{name="agentpool"} 0"#,
            r#"leader_election_master_status{name="flotilla-operator"} 1"#,
            r#"rest_client_requests_total{code="200",method="GET"} 1"#,
            r#"rest_client_requests_total{code="<error>",method="POST"} 1"#,
            r#"rest_client_request_duration_seconds_count{verb="GET"} 1"#,
            r#"flotilla_objects{kind="Pod"} 3.0"#,
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}

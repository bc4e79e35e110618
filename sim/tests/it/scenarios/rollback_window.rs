//! Back to revisions that have served: inside the window without being judged, outside of it like any other.

use serde_json::json;

use super::{Scene, canary, merged, scenario};

/// Releases an image, passing its step by command.
async fn release(s: &mut Scene, tag: &str) {
    s.image(tag);
    s.judged_at(50).await;
    s.does("PromoteFull").await;
    s.until(&format!("{tag}=2@100")).await;
    s.says("Ready").await;
}

#[test]
fn inside_the_window() {
    scenario(canary(2, &[50]), async |s: &mut Scene| {
        release(s, "2").await;
        release(s, "3").await;
        s.image("1");
        // Nobody gives a command: it is not judged.
        s.until("1=2@100").await;
        s.says("Ready").await;
    });
}

#[test]
fn outside_of_the_window() {
    let spec = merged(
        canary(2, &[50]),
        json!({"rollout": {"rollbackWindowRevisions": 1}}),
    );
    scenario(spec, async |s: &mut Scene| {
        release(s, "2").await;
        release(s, "3").await;
        release(s, "1").await;
        s.image("3");
        s.until("3=2@100").await;
        s.says("Ready").await;
    });
}

#[test]
fn a_window_of_nothing_judges_every_one() {
    let spec = merged(
        canary(2, &[50]),
        json!({"rollout": {"rollbackWindowRevisions": 0}}),
    );
    scenario(spec, async |s: &mut Scene| {
        release(s, "2").await;
        release(s, "1").await;
    });
}

#[test]
fn a_revision_is_pinned_by_name() {
    scenario(canary(2, &[50]), async |s: &mut Scene| {
        let first = s.revision("1");
        release(s, "2").await;
        s.set(json!({"rollout": {"pinnedRevision": first}}));
        s.until("1=2@100").await;
        s.says("Ready").await;
        s.set(json!({"rollout": {"pinnedRevision": null}}));
        s.until("2=2@100").await;
        s.says("Ready").await;
    });
}

//! A former revision is kept for its conversations.

use super::*;

/// The candidate has all the traffic, and the former revision has conversations.
fn taken_over(former: Arm, new: Arm) -> Situation {
    let mut situation = pool(4).releasing(former, new, 100);
    situation.max_drain = Some(SignedDuration::from_secs(300));
    situation.members[0].has_conversations = true;
    situation
}

fn former(situation: &mut Situation) -> &mut Member {
    &mut situation.members[0]
}

fn is_promoted(decision: &Decision) -> bool {
    decision.stable.as_deref() == Some(CANDIDATE) && decision.candidate.is_none()
}

fn scale_of(decision: &Decision, revision: &str) -> Option<i32> {
    let named = decision.scale.iter().find(|(name, _)| name == revision);
    named.map(|(_, replicas)| *replicas)
}

fn listed(revision: &str, weight: i32) -> (String, i32) {
    (revision.to_owned(), weight)
}

#[test]
fn the_release_ends_and_the_last_batch_stays() {
    let decision = decide(&taken_over(ready(1), ready(4)));
    assert!(is_promoted(&decision), "{decision:?}");
    assert_eq!(scale_of(&decision, STABLE), None, "its pods stay as they are");
    assert_eq!(decision.traffic, [listed(CANDIDATE, 100), listed(STABLE, 0)]);
    assert_eq!(decision.draining, [(STABLE.to_owned(), at(1300))]);
    assert_eq!(decision.state, State::Ready, "nobody waits for it");
}

#[test]
fn it_goes_with_its_last_conversation_or_at_the_end_of_its_time() {
    for (has_conversations, drain_until, stays) in [
        (true, Some(at(1001)), true),
        (true, Some(at(1000)), false),
        (false, Some(at(1200)), false),
        // A longer time than the spec has now.
        (true, Some(at(9999)), true),
    ] {
        let mut situation = taken_over(ready(1), ready(4));
        situation.members[1].standing = Standing::Stable;
        let member = former(&mut situation);
        (member.standing, member.weight) = (Standing::Verified, Some(0));
        (member.has_conversations, member.drain_until) = (has_conversations, drain_until);
        let decision = decide(&situation);
        let is_listed = decision.traffic.contains(&listed(STABLE, 0));
        assert_eq!(
            is_listed, stays,
            "{has_conversations} {drain_until:?}: {decision:?}"
        );
        assert_eq!(
            scale_of(&decision, STABLE),
            None,
            "first the gateways have to know"
        );
        if !stays {
            former(&mut situation).weight = None;
            assert_eq!(scale_of(&decide(&situation), STABLE), Some(0));
            let waits = situation.gateways(Gateways::Pending);
            assert_eq!(scale_of(&decide(&waits), STABLE), None, "and confirm it");
        }
    }
}

#[test]
fn without_sessions_or_when_stopped_nothing_is_kept() {
    let mut situation = taken_over(ready(1), ready(4));
    situation.max_drain = None;
    assert_eq!(decide(&situation).draining, []);
    let mut situation = taken_over(ready(1), ready(4));
    situation.max_drain = Some(SignedDuration::ZERO);
    assert_eq!(decide(&situation).draining, []);
    assert_eq!(decide(&taken_over(ready(1), ready(4)).stopped()).draining, []);
}

#[test]
fn the_next_release_has_its_room_and_only_two_are_kept() {
    let mut situation = taken_over(ready(4), ready(4));
    situation.members[1].standing = Standing::Stable;
    let member = former(&mut situation);
    (member.standing, member.weight) = (Standing::Verified, Some(0));
    for name in ["support-third", "support-fourth"] {
        situation = situation.with(name, Standing::Verified, ready(2), Some(0));
        let member = situation.members.last_mut().unwrap();
        member.has_conversations = true;
        // Older than the one that serves.
        member.order = -1;
    }
    let decision = decide(&situation);
    let kept: Vec<&str> = decision.draining.iter().map(|(name, _)| name.as_str()).collect();
    assert!(kept.len() <= 3 && kept.contains(&STABLE), "{kept:?}");
    situation.members[3].order = -2;
    let decision = decide(&situation);
    let kept: Vec<&str> = decision.draining.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(kept, [STABLE, "support-third"]);
    situation.members[3].arm = Arm::default();
    // Another revision is released beside them as if they were not there.
    let next =
        situation
            .asking("support-next")
            .with("support-next", Standing::Candidate, Arm::default(), None);
    let decision = decide(&next);
    assert_eq!(scale_of(&decision, "support-next"), Some(1), "{decision:?}");
    assert_eq!(
        decision.traffic.iter().map(|(_, weight)| weight).sum::<i32>(),
        100
    );
}

#[test]
fn a_canary_keeps_it_listed_from_all_the_traffic_on() {
    let mut situation = taken_over(ready(4), ready(4));
    situation.ladder = Some(Ladder {
        rungs: Vec::new(),
        least_pods: 1,
        keeps_stable: false,
        scale_down_delay: SignedDuration::ZERO,
        bake: SignedDuration::from_secs(60),
        on_undecided: OnUndecided::Hold,
        ..Ladder::default()
    });
    let decision = decide(&situation);
    assert_eq!(decision.state, State::Baking);
    assert_eq!(scale_of(&decision, STABLE), Some(4));
    assert!(decision.traffic.contains(&listed(STABLE, 0)), "{decision:?}");
    situation.reached = decision.reached;
    situation.now = at(1061);
    former(&mut situation).weight = Some(0);
    former(&mut situation).drain_until = Some(at(1300));
    let decision = decide(&situation);
    assert!(
        is_promoted(&decision),
        "the bake does not wait for conversations: {decision:?}"
    );
    assert_eq!(decision.draining, [(STABLE.to_owned(), at(1300))]);
}

//! What a release will do, before it begins: the pods of each step, and the weight that these stand for.

use super::ladder::Ladder;
use super::shift::carried;

/// A step of a release to come.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// The weight asked for, in percent; 100 for all the traffic.
    pub weight: i32,
    /// The weight that the candidate has in truth, in percent.
    pub percent: f64,
    /// The candidate's pods.
    pub candidate: i32,
    /// The stable revision's pods.
    pub stable: i32,
    /// A person has to agree before it goes on.
    pub needs_approval: bool,
}

/// The steps of a release of a pool of `replicas`, all the traffic at last; without a ladder (batch by batch) only that.
pub fn forecast(ladder: Option<&Ladder>, replicas: i32) -> Vec<Stage> {
    let rungs = ladder.map(|ladder| (ladder, ladder.rungs.as_slice()));
    let rungs = rungs
        .into_iter()
        .flat_map(|(ladder, rungs)| rungs.iter().map(move |rung| (ladder, rung)));
    let mut stages: Vec<Stage> = rungs
        .map(|(ladder, rung)| {
            let split = ladder.split(rung.weight, replicas);
            let (candidate, stable, percent) = if ladder.by_number {
                (split.candidate, split.stable, split.percent())
            } else {
                let candidate = ladder.pods(Some(rung), replicas);
                let gone = if ladder.keeps_stable {
                    0
                } else {
                    carried(rung.weight, replicas).min(candidate)
                };
                (candidate, replicas - gone, f64::from(rung.weight))
            };
            Stage {
                weight: rung.weight,
                percent,
                candidate,
                stable,
                needs_approval: rung.needs_approval,
            }
        })
        .collect();
    stages.push(Stage {
        weight: 100,
        percent: 100.0,
        candidate: replicas,
        stable: 0,
        needs_approval: false,
    });
    stages
}

#[cfg(test)]
mod tests {
    use super::super::ladder::{OnUndecided, Rung};
    use super::*;
    use jiff::SignedDuration;

    fn ladder(keeps_stable: bool, by_number: bool) -> Ladder {
        let rung = |weight| Rung {
            weight,
            pods: None,
            needs_approval: weight == 50,
        };
        Ladder {
            rungs: vec![rung(1), rung(50)],
            least_pods: 2,
            keeps_stable,
            by_number,
            scale_down_delay: SignedDuration::ZERO,
            bake: SignedDuration::ZERO,
            on_undecided: OnUndecided::Hold,
            ..Ladder::default()
        }
    }

    #[test]
    fn pods_and_true_weights_of_each_step() {
        for (keeps, by_number, expected) in [
            (true, false, ["1:1.0 2+10", "50:50.0 5+10", "100:100.0 10+0"]),
            (false, false, ["1:1.0 2+10", "50:50.0 5+5", "100:100.0 10+0"]),
            (true, true, ["1:16.7 2+10", "50:50.0 10+10", "100:100.0 10+0"]),
            (false, true, ["1:18.2 2+9", "50:50.0 5+5", "100:100.0 10+0"]),
        ] {
            let shown: Vec<_> = forecast(Some(&ladder(keeps, by_number)), 10)
                .iter()
                .map(|stage| {
                    let Stage {
                        weight,
                        percent,
                        candidate,
                        stable,
                        ..
                    } = stage;
                    format!("{weight}:{percent:.1} {candidate}+{stable}")
                })
                .collect();
            assert_eq!(shown, expected, "{keeps} {by_number}");
        }
        let approvals: Vec<_> = forecast(Some(&ladder(true, false)), 10)
            .iter()
            .map(|stage| stage.needs_approval)
            .collect();
        assert_eq!(approvals, [false, true, false]);
        assert_eq!(forecast(None, 4).len(), 1);
    }
}

//! Who gets how many permits: weighted max-min fairness, whole requests, and slack where there is room.

/// What one holder would like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Demand {
    /// At least 1.
    pub(super) weight: u64,
    /// Units in use and wanted.
    pub(super) wanted: u64,
    /// Units of its largest waiting request: less than this is of no use to it.
    pub(super) need: u64,
    /// Since when it waits, any scale; smaller is longer ago.
    pub(super) since: u64,
    /// What it has.
    pub(super) claim: u64,
}

/// Shares of `capacity`, one per demand, together at most `capacity`.
///
/// With too little for all, shares follow weighted max-min: nobody gets more than it wants while another that wants
/// more has less per weight. But those that have waited longest get at least what their request needs, as many of them as
/// there is enough for, because fractions of a request are waste; the next one's turn comes when one of them is served. That
/// order is the same for all limits, so that a request which needs several does not wait for one while another request,
/// which waits for the next, has what it needs. With enough for all, half of what is left over is spread as slack, at most
/// `slack` each, so that small changes of demand move nothing.
pub(super) fn split(capacity: u64, demands: &[Demand], slack: u64) -> Vec<u64> {
    let wanted: u128 = demands.iter().map(|demand| u128::from(demand.wanted)).sum();
    if wanted <= u128::from(capacity) {
        let left = capacity - wanted as u64;
        let spread = (left / (2 * demands.len() as u64).max(1)).min(slack);
        return demands
            .iter()
            .map(|demand| {
                let keeps = demand.wanted..=demand.wanted + 2 * spread;
                if keeps.contains(&demand.claim) {
                    demand.claim
                } else {
                    demand.wanted + spread
                }
            })
            .collect();
    }
    let mut by_age: Vec<usize> = (0..demands.len()).collect();
    by_age.sort_by_key(|&i| demands[i].since);
    let (mut left, mut least) = (capacity, vec![0; demands.len()]);
    for &i in &by_age {
        if demands[i].need <= left {
            least[i] = demands[i].need;
            left -= demands[i].need;
        }
    }
    let (mut left, mut open) = (capacity, by_age);
    loop {
        let mut shares = max_min(left, demands, &open);
        let (enough, less): (Vec<usize>, Vec<usize>) = open.iter().partition(|&&i| shares[i] >= least[i]);
        if less.is_empty() {
            for i in (0..demands.len()).filter(|i| !open.contains(i)) {
                shares[i] = least[i];
            }
            return shares;
        }
        left -= less.iter().map(|&i| least[i]).sum::<u64>();
        open = enough;
    }
}

/// Shares of those at `places`; what cannot be divided goes to the first of them.
fn max_min(capacity: u64, demands: &[Demand], places: &[usize]) -> Vec<u64> {
    let mut order = places.to_vec();
    order.sort_by(|&a, &b| {
        let (a, b) = (&demands[a], &demands[b]);
        let left = u128::from(a.wanted) * u128::from(b.weight);
        left.cmp(&(u128::from(b.wanted) * u128::from(a.weight)))
    });
    let mut weight: u128 = places.iter().map(|&i| u128::from(demands[i].weight)).sum();
    let (mut left, mut shares) = (capacity, vec![0; demands.len()]);
    let fair = |left: u64, weight: u128, i: usize| {
        (u128::from(left) * u128::from(demands[i].weight) / weight.max(1)) as u64
    };
    let mut wanting = order.as_slice();
    while let Some((&i, others)) = wanting.split_first()
        && demands[i].wanted <= fair(left, weight, i)
    {
        shares[i] = demands[i].wanted;
        left -= shares[i];
        weight -= u128::from(demands[i].weight);
        wanting = others;
    }
    let all = left;
    for &i in wanting {
        shares[i] = fair(all, weight, i);
        left -= shares[i];
    }
    for &i in places {
        if left > 0 && shares[i] < demands[i].wanted {
            shares[i] += 1;
            left -= 1;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn demand(weight: u64, wanted: u64) -> Demand {
        Demand {
            weight,
            wanted,
            need: 0,
            since: 0,
            claim: 0,
        }
    }

    #[test]
    fn cases() {
        for (name, capacity, demands, shares) in [
            (
                "small ones get all",
                100,
                vec![demand(1, 10), demand(1, 500), demand(1, 500)],
                vec![10, 45, 45],
            ),
            (
                "by weight",
                90,
                vec![demand(1, 500), demand(2, 500)],
                vec![30, 60],
            ),
            (
                "remainders go somewhere",
                10,
                vec![demand(1, 9); 3],
                vec![4, 3, 3],
            ),
            (
                "half of the rest is slack",
                100,
                vec![demand(1, 10), demand(1, 30)],
                vec![25, 45],
            ),
            ("alone", 100, vec![demand(1, 1000)], vec![100]),
        ] {
            assert_eq!(split(capacity, &demands, u64::MAX), shares, "{name}");
        }
        let keeps = Demand {
            claim: 30,
            ..demand(1, 10)
        };
        assert_eq!(
            split(100, &[keeps, demand(1, 30)], u64::MAX),
            [30, 45],
            "slack is kept as it is"
        );
        let large = |since| Demand {
            need: 60,
            since,
            ..demand(1, 100)
        };
        assert_eq!(split(100, &[large(2), large(1), demand(1, 100)], 0), [20, 60, 20]);
        let one = |since| Demand {
            need: 1,
            since,
            ..demand(1, 1)
        };
        assert_eq!(split(1, &[one(1), one(2), one(3)], 0), [1, 0, 0]);
        assert_eq!(split(1, &[one(3), one(2), one(1)], 0), [0, 0, 1]);
        let busy = |since| Demand {
            wanted: 50,
            ..one(since)
        };
        assert_eq!(
            split(3, &[busy(3), one(1), busy(4), busy(2)], 0),
            [1, 1, 0, 1],
            "who was served last has to wait, however little the others want"
        );
    }

    proptest! {
        #[test]
        fn never_more_than_there_is_and_fair(
            capacity in 0u64..10_000,
            raw in prop::collection::vec((1u64..5, 0u64..5_000, 0u64..20, 0u64..3_000), 0..8),
        ) {
            let mut demands: Vec<Demand> = raw
                .iter()
                .map(|&(weight, wanted, since, claim)| Demand { weight, wanted, need: 0, since, claim })
                .collect();
            let shares = split(capacity, &demands, u64::MAX);
            prop_assert!(shares.iter().sum::<u64>() <= capacity);
            if demands.iter().map(|demand| demand.wanted).sum::<u64>() > capacity {
                prop_assert_eq!(shares.iter().sum::<u64>(), capacity, "nothing is left while somebody wants more");
                for (a, share_a) in demands.iter().zip(&shares) {
                    for (b, share_b) in demands.iter().zip(&shares) {
                        // a has not all it wants: nobody has more per weight, but for rounding.
                        if *share_a < a.wanted {
                            prop_assert!(share_b / b.weight <= share_a / a.weight + demands.len() as u64);
                        }
                    }
                }
            }
            for demand in &mut demands {
                demand.need = demand.wanted / 2;
            }
            prop_assert!(split(capacity, &demands, 10).iter().sum::<u64>() <= capacity);
        }
    }
}

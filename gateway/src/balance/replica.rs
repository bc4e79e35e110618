//! The replica of a request.
//!
//! `LeastLoaded` compares two replicas picked at random (Mitzenmacher, "The power of two choices", 2001): with many
//! gateways that each see only their own share of the load, taking the least loaded of *all* sends every gateway to the
//! same replica at once. Whatever the strategy, a replica whose slots are taken is passed over while another has one.

/// Tries `replicas` in turn from the `tick`-th on; `take` claims a slot or says no.
pub fn round_robin(replicas: usize, tick: usize, mut take: impl FnMut(usize) -> bool) -> Option<usize> {
    if replicas == 0 {
        return None;
    }
    let start = tick % replicas;
    (start..replicas).chain(0..start).find(|index| take(*index))
}

/// Tries the less busy of two replicas named by `random`, then the other one, then all in turn.
pub fn least_loaded(
    replicas: usize,
    random: u64,
    load: impl Fn(usize) -> u32,
    mut take: impl FnMut(usize) -> bool,
) -> Option<usize> {
    let (first, second) = pair(replicas, random)?;
    let (better, worse) = if load(second) < load(first) {
        (second, first)
    } else {
        (first, second)
    };
    if take(better) {
        return Some(better);
    }
    if worse != better && take(worse) {
        return Some(worse);
    }
    if replicas <= 2 {
        return None;
    }
    round_robin(replicas, first, |index| {
        index != better && index != worse && take(index)
    })
}

/// Two different indices below `replicas` (the same one twice if there is only one).
fn pair(replicas: usize, random: u64) -> Option<(usize, usize)> {
    let first = scale(random as u32, replicas)?;
    let Some(offset) = scale((random >> 32) as u32, replicas - 1) else {
        return Some((first, first));
    };
    Some((first, (first + 1 + offset) % replicas))
}

/// Maps a uniform `u32` to `0..below`.
fn scale(random: u32, below: usize) -> Option<usize> {
    (below > 0).then(|| ((u64::from(random) * below as u64) >> 32) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn round_robin_takes_turns_and_passes_over_the_full() {
        let picks: Vec<_> = (0..4)
            .filter_map(|tick| round_robin(3, tick, |index| index != 1))
            .collect();
        assert_eq!(picks, [0, 2, 2, 0]);
        assert_eq!(round_robin(0, 7, |_| true), None);
    }

    proptest! {
        #[test]
        fn two_different_replicas_are_compared(replicas in 2usize..50, random: u64) {
            let (first, second) = pair(replicas, random).expect("more than one");
            prop_assert!(first < replicas && second < replicas && first != second);
        }

        #[test]
        fn a_free_slot_anywhere_is_found_and_a_full_one_never_taken(
            loads in proptest::collection::vec(0u32..4, 0..12),
            random: u64,
            tick: usize,
        ) {
            let free = |index: usize| loads[index] < 3;
            let any = (0..loads.len()).any(free);
            let least = least_loaded(loads.len(), random, |index| loads[index], free);
            let robin = round_robin(loads.len(), tick, free);
            prop_assert_eq!(least.is_some(), any);
            prop_assert_eq!(robin.is_some(), any);
            prop_assert!(least.into_iter().chain(robin).all(free));
        }

        #[test]
        fn the_busier_of_the_two_is_not_taken(random: u64, busy in 0usize..2) {
            let pick = least_loaded(2, random, |index| u32::from(index == busy), |_| true);
            prop_assert_eq!(pick, Some(1 - busy));
        }
    }
}

//! The revision of a request, by weight.
//!
//! The order of one whole cycle is laid out when weights change (smooth weighted round robin, as nginx does it: each
//! turn every entry gains its weight, the richest is taken and pays the total). A request then costs one atomic addition
//! and one array read, without a lock, and any `n` successive requests are within one of their exact share. Drawing at
//! random would need the square of that many requests for the same accuracy, which a 1 % step does not have.

/// A cycle of choices in proportion to weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WeightTable {
    order: Box<[u8]>,
}

impl WeightTable {
    /// The cycle for `weights`, each 0 to 100, at most 255 of them. All zero (or none) gives an empty table.
    pub fn new(weights: &[u32]) -> Self {
        let weights: Vec<i64> = weights
            .iter()
            .take(255)
            .map(|weight| i64::from((*weight).min(100)))
            .collect();
        let divisor = weights.iter().copied().fold(0, greatest_common_divisor);
        if divisor == 0 {
            return Self::default();
        }
        let total: i64 = weights.iter().sum();
        let mut credit = vec![0i64; weights.len()];
        let order = (0..total / divisor)
            .map(|_| {
                let mut richest = 0;
                for index in 0..weights.len() {
                    credit[index] += weights[index];
                    if credit[index] > credit[richest] || (weights[richest] == 0 && weights[index] > 0) {
                        richest = index;
                    }
                }
                credit[richest] -= total;
                richest as u8
            })
            .collect();
        Self { order }
    }

    /// The entry for the `tick`-th request, or the next one in the cycle for which `usable` holds.
    pub fn pick(&self, tick: usize, mut usable: impl FnMut(usize) -> bool) -> Option<usize> {
        let length = self.order.len();
        if length == 0 {
            return None;
        }
        let start = tick % length;
        let (before, from) = self.order.split_at(start);
        from.iter()
            .chain(before)
            .map(|index| usize::from(*index))
            .find(|index| usable(*index))
    }

    /// The entry for the `tick`-th request, whether usable or not.
    pub fn first(&self, tick: usize) -> Option<usize> {
        self.pick(tick, |_| true)
    }
}

fn greatest_common_divisor(a: i64, b: i64) -> i64 {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(table: &WeightTable, from: usize, n: usize, entries: usize) -> Vec<usize> {
        let mut counts = vec![0; entries];
        for tick in from..from + n {
            counts[table.first(tick).expect("not empty")] += 1;
        }
        counts
    }

    #[test]
    fn no_weight_gives_no_choice() {
        for weights in [vec![], vec![0], vec![0, 0]] {
            assert_eq!(WeightTable::new(&weights).first(3), None, "{weights:?}");
        }
    }

    #[test]
    fn an_unusable_entry_is_skipped_in_proportion_to_the_rest() {
        let table = WeightTable::new(&[50, 30, 20]);
        let mut seen = [0; 3];
        for tick in 0..100 {
            seen[table.pick(tick, |index| index != 0).expect("two are left")] += 1;
        }
        assert_eq!(seen[0], 0);
        assert!(seen[1] > seen[2], "{seen:?}");
        assert_eq!(table.pick(0, |_| false), None);
    }

    proptest! {
        #[test]
        fn a_cycle_is_exact_and_every_stretch_is_close(
            weights in proptest::collection::vec(0u32..=100, 1..8),
            from in 0usize..1000,
            n in 1usize..400,
        ) {
            let total: u32 = weights.iter().sum();
            let table = WeightTable::new(&weights);
            prop_assume!(total > 0);
            let cycle = counts(&table, from, total as usize, weights.len());
            for (index, weight) in weights.iter().enumerate() {
                prop_assert_eq!(cycle[index], *weight as usize);
            }
            let stretch = counts(&table, from, n, weights.len());
            for (index, weight) in weights.iter().enumerate() {
                let exact = n as f64 * f64::from(*weight) / f64::from(total);
                prop_assert!((stretch[index] as f64 - exact).abs() <= weights.len() as f64, "{stretch:?} of {weights:?}");
                prop_assert!(*weight > 0 || stretch[index] == 0);
            }
        }
    }
}

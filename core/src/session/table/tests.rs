use super::*;
use crate::session::route::{Route, Share};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn key(n: u64) -> SessionKey {
    SessionKey::from_random(mix(n), mix(n + 1))
}

fn record(n: u64, revision: &str) -> Record {
    Record {
        key: key(n),
        root: None,
        revision: revision.into(),
        replica: None,
        epoch: 1,
        number: 1,
        age: 0,
    }
}

fn route(generation: i64, revisions: &[&str]) -> Route {
    let share = |name: &&str| Share {
        revision: (*name).into(),
        weight: 1,
        keeps: true,
        since: 0,
    };
    Route {
        generation,
        shares: revisions.iter().map(share).collect(),
    }
}

fn table(max_entries: usize) -> Table {
    let mut table = Table::new(max_entries, 1000, 7);
    table.revisions.apply(&route(1, &["a", "b"]));
    table
}

/// What the module's documentation says of memory.
#[test]
fn an_entry_is_as_small_as_documented() {
    assert!(
        size_of::<Option<Entry>>() <= 144,
        "{}",
        size_of::<Option<Entry>>()
    );
    assert_eq!(size_of::<(SessionKey, u32)>(), 24);
}

#[test]
fn addresses_survive() {
    for address in ["10.0.0.1:80", "[fd00::2]:8080", "[::ffff:10.0.0.1]:80"] {
        let address: SocketAddr = address.parse().unwrap();
        let expected = SocketAddr::new(address.ip().to_canonical(), address.port());
        assert_eq!(Replica::new(address).unwrap().address(), expected);
    }
    assert_eq!(Replica::new("10.0.0.1:0".parse().unwrap()), None);
}

#[test]
fn remembered_ones_go_before_homes_and_the_idle_before_all() {
    let mut table = table(8);
    for n in 0..6 {
        table.put(&record(n, "a"), true, n);
    }
    table.put(&record(6, "a"), false, 6);
    table.put(&record(7, "a"), false, 7);
    // Two remembered ones are more than an eighth, so the older of them goes.
    table.put(&record(8, "a"), true, 8);
    assert!(table.get(key(6)).is_none() && table.get(key(7)).is_some());
    // One is not: now the least recently used home goes, and that is not the one just used.
    assert!(table.touch(key(0), 9).is_some());
    table.put(&record(9, "a"), true, 9);
    assert!(table.get(key(0)).is_some() && table.get(key(1)).is_none());
    assert_eq!(
        table.removed,
        Removed {
            idle: 0,
            remembered: 1,
            homes: 1
        }
    );
    // After their time the idle ones go, and only these.
    assert!(table.touch(key(7), 1200).is_some());
    table.put(&record(10, "a"), true, 1255);
    assert_eq!(table.removed.idle, 1);
    assert!(table.get(key(7)).is_some() && table.get(key(2)).is_none());
    table.expire(1300, 100);
    assert_eq!((table.len(), table.homes()), (2, 1));
    assert_eq!(table.revisions.entries("a"), 2);
}

#[test]
fn an_entry_dies_with_its_time_and_with_its_revision() {
    let mut table = table(8);
    table.put(&record(1, "a"), true, 0);
    table.put(&record(2, "b"), true, 0);
    assert!(table.touch(key(1), 1250).is_some());
    assert!(table.touch(key(2), 1251).is_none());
    table.revisions.apply(&route(2, &["b"]));
    assert!(table.touch(key(1), 1250).is_none());
    assert!(table.get(key(1)).is_some(), "still known, to be moved");
}

#[test]
fn merges() {
    let newer = |record: Record| Record { number: 2, ..record };
    let later = |record: Record| Record { epoch: 2, ..record };
    for (own, other, merged, revision) in [
        (None, record(1, "a"), Merged::Taken, "a"),
        (Some(record(1, "a")), record(1, "a"), Merged::Same, "a"),
        (Some(record(1, "a")), record(1, "b"), Merged::Kept, "a"),
        (Some(record(1, "b")), record(1, "a"), Merged::Taken, "a"),
        (Some(record(1, "a")), newer(record(1, "b")), Merged::Taken, "b"),
        (Some(newer(record(1, "b"))), record(1, "a"), Merged::Kept, "b"),
        (Some(later(record(1, "a"))), record(1, "b"), Merged::Taken, "b"),
        (Some(record(1, "b")), later(record(1, "a")), Merged::Kept, "b"),
        (Some(record(1, "a")), newer(record(1, "gone")), Merged::Kept, "a"),
        (Some(newer(record(1, "gone"))), record(1, "a"), Merged::Taken, "a"),
    ] {
        let mut table = table(8);
        if let Some(own) = &own {
            table.put(own, true, 0);
        }
        assert_eq!(table.merge(&other, true, 0), merged, "{own:?} and {other:?}");
        let entry = table.get(key(1)).unwrap();
        assert_eq!(&*table.revisions.name(entry.revision), revision);
    }
    let mut table = table(8);
    assert_eq!(table.merge(&record(1, "gone"), true, 0), Merged::Refused);
    let old = Record {
        age: 1251,
        ..record(1, "a")
    };
    assert_eq!(table.merge(&old, true, 2000), Merged::Refused);
    assert_eq!(table.len(), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Put(u64, bool, bool),
    Merge(u64, bool, u32, i64),
    Touch(u64),
    Home(u64, bool),
    Remove(u64),
    Expire,
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let n = 0u64..24;
    let step = prop_oneof![
        4 => (n.clone(), any::<bool>(), any::<bool>()).prop_map(|(n, b, home)| Step::Put(n, b, home)),
        3 => (n.clone(), any::<bool>(), 1u32..4, 1i64..4).prop_map(|(n, b, number, epoch)| Step::Merge(n, b, number, epoch)),
        4 => n.clone().prop_map(Step::Touch),
        2 => (n.clone(), any::<bool>()).prop_map(|(n, home)| Step::Home(n, home)),
        1 => n.prop_map(Step::Remove),
        1 => Just(Step::Expire),
        2 => (0u64..700).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 0..200)
}

/// Walks both lists and compares them with the index and the counts by revision.
fn check(table: &Table) {
    let mut seen = BTreeMap::new();
    for (list, home) in [(table.homes, true), (table.remembered, false)] {
        let (mut slot, mut previous, mut length) = (list.head, END, 0);
        while slot != END {
            let entry = table.at(slot as usize).expect("a linked slot is taken");
            assert_eq!((entry.home, entry.previous), (home, previous));
            assert_eq!(table.index.get(&entry.key), Some(&slot));
            *seen.entry(entry.revision).or_insert(0u32) += 1;
            (previous, slot, length) = (slot, entry.next, length + 1);
        }
        assert_eq!((list.tail, list.length), (previous, length));
    }
    assert_eq!(seen.values().sum::<u32>() as usize, table.len());
    assert_eq!(table.slots.len(), table.len() + table.free.len());
    for (revision, count) in seen {
        assert_eq!(table.revisions.entries(&table.revisions.name(revision)), count);
    }
    assert!(table.len() <= table.max_entries && table.slots.len() <= table.max_entries);
}

proptest! {
    #[test]
    fn lists_index_and_counts_agree_after_anything(steps in steps(), max in 1usize..20) {
        let mut table = table(max);
        let mut now = 0;
        for step in steps {
            match step {
                Step::Put(n, b, home) => { table.put(&record(n, if b { "b" } else { "a" }), home, now); }
                Step::Merge(n, b, number, epoch) => {
                    let record = Record { number, epoch, ..record(n, if b { "b" } else { "a" }) };
                    table.merge(&record, b, now);
                }
                Step::Touch(n) => { table.touch(key(n), now); }
                Step::Home(n, home) => table.set_home(key(n), home),
                Step::Remove(n) => table.remove(key(n)),
                Step::Expire => table.expire(now, 3),
                Step::Wait(time) => now += time,
            }
            check(&table);
        }
    }

    /// Whatever the order and repetition, two homes that heard the same end up with the same.
    #[test]
    fn merging_is_commutative_and_idempotent(
        records in proptest::collection::vec((1u32..3, 1i64..4, any::<bool>()), 1..6),
        order in any::<prop::sample::Index>(),
    ) {
        let all: Vec<Record> = records
            .iter()
            .map(|(number, epoch, b)| Record { number: *number, epoch: *epoch, ..record(1, if *b { "b" } else { "a" }) })
            .collect();
        let merge = |records: &[Record]| {
            let mut table = table(4);
            for record in records {
                table.merge(record, true, 0);
            }
            table.get(key(1)).map(|entry| table.record(entry, 0))
        };
        let mut other = all.clone();
        other.rotate_left(order.index(all.len()));
        other.extend(all.iter().rev().cloned());
        prop_assert_eq!(merge(&all), merge(&other));
    }
}

//! `docs/measurements.md`: a section a part, each with the day and the commit that it was measured at, so that a part can
//! be measured again without the others.

use crate::report::{Row, markdown};

const INTRODUCTION: &str = "# Measurements\n\nMade by `make acceptance`, a section a part (`make acceptance ONLY=pool,rest` repeats only those), \
on one machine that also ran the whole cluster: Kubernetes, gateways, agents, simulator and clients.\n";

/// When, where and of what a part was measured.
#[derive(Clone, Debug)]
pub struct Made {
    /// The day, `2026-11-22`.
    pub day: String,
    /// The commit, short; `-dirty` where the tree had changes.
    pub commit: String,
    /// The machine, in short.
    pub machine: String,
}

impl Made {
    fn section(&self, part: &str, rows: &[Row]) -> String {
        let Self { day, commit, machine } = self;
        format!(
            "## {part}\n\n{day}, commit {commit}, {machine}.\n\n{}",
            markdown(rows)
        )
    }
}

/// The page with the sections of `measured` made new. Sections of other parts in `order` stay as they were, what is no part
/// goes.
pub fn renew(page: &str, order: &[&str], made: &Made, measured: &[(&str, Vec<Row>)]) -> String {
    let old = |part: &str| {
        let sections = page.split("\n## ").skip(1);
        let mut ours = sections.filter(|section| section.lines().next() == Some(part));
        ours.next().map(|section| format!("## {}\n", section.trim_end()))
    };
    let sections = order.iter().filter_map(|part| {
        let new = measured.iter().find(|(name, _)| name == part);
        new.map(|(name, rows)| made.section(name, rows))
            .or_else(|| old(part))
    });
    std::iter::once(INTRODUCTION.to_owned())
        .chain(sections)
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(day: &str) -> Made {
        Made {
            day: day.into(),
            commit: "abc".into(),
            machine: "9 cores".into(),
        }
    }

    #[test]
    fn a_part_is_made_new_and_the_others_stay() {
        let order = ["pool", "rest", "load"];
        let rows = |figure: &str| vec![Row::new("failed", figure, "0", figure == "0")];
        let first = renew(
            "",
            &order,
            &made("Monday"),
            &[("rest", rows("0")), ("pool", rows("3"))],
        );
        let second = renew(&first, &order, &made("Tuesday"), &[("pool", rows("0"))]);
        assert_eq!(
            second,
            format!(
                "{INTRODUCTION}\n## pool\n\nTuesday, commit abc, 9 cores.\n\n| what | measured | goal | |\n|---|---|---|---|\n| failed | 0 | 0 | ok |\n\
                 \n## rest\n\nMonday, commit abc, 9 cores.\n\n| what | measured | goal | |\n|---|---|---|---|\n| failed | 0 | 0 | ok |\n"
            )
        );
        assert_eq!(renew(&second, &order, &made("Friday"), &[]), second);
    }
}

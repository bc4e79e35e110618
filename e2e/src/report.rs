//! Rows of a report: what was measured, the goal, and whether it was reached.

use std::fmt;

/// One measured figure against its goal.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// The figure, with its unit.
    pub measured: String,
    /// The goal, with its unit.
    pub goal: String,
    /// Whether the goal was reached; `None` for a figure without a goal.
    pub reached: Option<bool>,
}

impl Row {
    /// A figure against a goal.
    pub fn new(
        name: impl Into<String>,
        measured: impl Into<String>,
        goal: impl Into<String>,
        reached: bool,
    ) -> Self {
        Self {
            name: name.into(),
            measured: measured.into(),
            goal: goal.into(),
            reached: Some(reached),
        }
    }

    /// A figure to know, without a goal.
    pub fn note(name: impl Into<String>, measured: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            measured: measured.into(),
            goal: "-".into(),
            reached: None,
        }
    }

    /// `ok`, `short`, or `-` where there is no goal.
    pub fn mark(&self) -> &'static str {
        match self.reached {
            Some(true) => "ok",
            Some(false) => "short",
            None => "-",
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<58}  {:>22}  {:>18}  {}",
            self.name,
            self.measured,
            self.goal,
            self.mark()
        )
    }
}

/// A Markdown table of `rows`.
pub fn markdown(rows: &[Row]) -> String {
    let mut text = String::from("| what | measured | goal | |\n|---|---|---|---|\n");
    for row in rows {
        text += &format!(
            "| {} | {} | {} | {} |\n",
            cell(&row.name),
            cell(&row.measured),
            cell(&row.goal),
            row.mark()
        );
    }
    text
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

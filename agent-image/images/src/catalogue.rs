//! Which images there are.

/// The user and group that every image runs as: the number that distroless images use for `nonroot`.
pub const USER: u32 = 65_532;

/// The images' names begin with this.
pub const PREFIX: &str = "flotilla.dev";

/// A program and its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    /// The image's name without prefix and tag.
    pub name: &'static str,
    /// The program's file, and its crate.
    pub binary: &'static str,
    /// What the image is, for its label.
    pub description: &'static str,
}

impl Program {
    /// Where the program is in its image.
    pub fn entrypoint(&self) -> String {
        format!("/usr/local/bin/{}", self.binary)
    }

    /// The image's name, as pods write it.
    pub fn image(&self, tag: &str) -> String {
        format!("{PREFIX}/{}:{tag}", self.name)
    }
}

/// All of them.
pub const PROGRAMS: &[Program] = &[
    Program {
        name: "operator",
        binary: "flotilla-operator",
        description: "The Flotilla operator",
    },
    Program {
        name: "gateway",
        binary: "flotilla-gateway",
        description: "The Flotilla gateway",
    },
    Program {
        name: "loadgen",
        binary: "flotilla-loadgen",
        description: "The Flotilla load generator",
    },
    Program {
        name: "agent",
        binary: "flotilla-agent",
        description: "The Flotilla reference agent",
    },
    Program {
        name: "simulator",
        binary: "flotilla-simulator",
        description: "A simulated model provider",
    },
];

/// The programs called `names` (images' names); all when there are none.
///
/// # Errors
/// The first name that is unknown, as a sentence.
pub fn select(names: &[String]) -> Result<Vec<&'static Program>, String> {
    if names.is_empty() {
        return Ok(PROGRAMS.iter().collect());
    }
    let known = || {
        PROGRAMS
            .iter()
            .map(|program| program.name)
            .collect::<Vec<_>>()
            .join(", ")
    };
    names
        .iter()
        .map(|name| {
            PROGRAMS
                .iter()
                .find(|program| program.name == name)
                .ok_or_else(|| format!("there is no image '{name}'; there are {}", known()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_selected_by_name() {
        assert_eq!(select(&[]).map(|programs| programs.len()), Ok(5));
        let names: Vec<&str> = select(&["agent".to_owned()])
            .expect("known")
            .iter()
            .map(|program| program.binary)
            .collect();
        assert_eq!(names, ["flotilla-agent"]);
        assert!(
            select(&["shell".to_owned()])
                .expect_err("unknown")
                .contains("there are operator, gateway")
        );
        assert_eq!(PROGRAMS[3].image("dev"), "flotilla.dev/agent:dev");
    }
}

//! Builds the container images without a container engine; see the library.

use clap::Parser;
use flotilla_images::cli::{Cli, run};

fn main() -> anyhow::Result<()> {
    run(Cli::parse())
}

//! The command line.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::{Args, Parser, Subcommand};

use crate::{base, build, catalogue, megabytes, program};

/// Builds Flotilla's container images without a container engine.
#[derive(Debug, Parser)]
#[command(name = "flotilla-images", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write one docker-archive for each image and print its name, size and digest
    Build {
        #[command(flatten)]
        from: From,
        /// Folder to write the archives to
        #[arg(long, default_value = ".local/images", value_name = "FOLDER")]
        out: PathBuf,
        /// The images' tag
        #[arg(long, default_value = "dev")]
        tag: String,
        /// Fail when an archive is larger than this many MB (10^6 bytes)
        #[arg(long, default_value_t = 40, value_name = "MB")]
        max_megabytes: u64,
    },
    /// Write the layers as folders (base/ and one for each image), for the Containerfile
    Rootfs {
        #[command(flatten)]
        from: From,
        /// Folder to write to; it should be empty
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
    },
}

#[derive(Debug, Args)]
struct From {
    /// Folder with the programs
    #[arg(long, value_name = "FOLDER")]
    binaries: PathBuf,
    /// Only this image, may be repeated: operator, gateway, loadgen, agent, simulator
    #[arg(long = "only", value_name = "IMAGE")]
    only: Vec<String>,
}

/// Does what the command line says; what was built goes to standard output, a line an image.
///
/// # Errors
/// An unknown image, or what [`build`] and [`base`] fail with.
pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Build {
            from,
            out,
            tag,
            max_megabytes,
        } => {
            let programs = catalogue::select(&from.only).map_err(|error| anyhow!(error))?;
            for image in build(
                &from.binaries,
                &out,
                &tag,
                &programs,
                max_megabytes.saturating_mul(1_000_000),
            )? {
                println!(
                    "{:<28} {:>6.1} MB  {}",
                    image.name,
                    megabytes(image.bytes),
                    image.digest
                );
            }
        }
        Command::Rootfs { from, out } => {
            let programs = catalogue::select(&from.only).map_err(|error| anyhow!(error))?;
            base(&from.binaries, &programs)?.write(&out.join("base"))?;
            for entry in programs {
                program(&from.binaries, entry)?.write(&out.join(entry.name))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}

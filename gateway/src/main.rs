//! `flotilla-gateway`: see the library.

use clap::Parser as _;
use flotilla_gateway::args::Args;

/// Many short-lived allocations on several threads: measured as the best of the common allocators for proxies.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // The allocator asks for huge pages; a few live objects then keep 2 MiB each resident. Without the right to say so
    // only memory is lost.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    // The first worker; the others have runtimes of their own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(flotilla_gateway::run(args))
}

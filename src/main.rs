//! The `aefusion` program; see [`aefusion::cli`].

use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;

/// Reading Parquet allocates and frees many large buffers, and the system's allocator returns each one to the kernel.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    aefusion::cli::Cli::parse().run()
}

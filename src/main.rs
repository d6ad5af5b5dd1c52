//! The program; see [`aefusion::cli`].

use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;

/// Reading Parquet takes and frees many large buffers; the system's allocator gives each back to the kernel.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    aefusion::cli::Cli::parse().run()
}

//! The `aefusion` program; see [`aefusion::cli`].

use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;

/// Reading Parquet allocates and frees many large buffers, and the system's allocator returns each one to the kernel.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Smallest allocation of C code, such as ONNX Runtime, that the system takes back when it is freed, bytes. By default,
/// glibc raises it to the size of what was freed, and then keeps as much as a copy of the weights.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const GIVEN_BACK: libc::c_int = 4 << 20;

fn main() -> ExitCode {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call only changes a setting of the allocator, and no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, GIVEN_BACK);
    }
    aefusion::cli::Cli::parse().run()
}

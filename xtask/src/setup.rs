//! `cargo xtask setup` fetches the official ONNX Runtime from its Python wheel.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use xtask::remove;

use crate::{root, run};

const VERSION: &str = "1.31.1";

/// A wheel: its platform in pip, the SHA-256 of the file, and the name of the library in it.
struct Wheel {
    platform: &'static str,
    sha256: &'static str,
    library: &'static str,
}

fn wheel() -> Result<Wheel> {
    Ok(match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => Wheel {
            platform: "manylinux_2_28_x86_64",
            sha256: "1f3dea47f2f0e5117c2404cea7d21fd253ae7836a3bf167a501cdfbb2600d536",
            library: "libonnxruntime.so.1.31.1",
        },
        ("linux", "aarch64") => Wheel {
            platform: "manylinux_2_28_aarch64",
            sha256: "0b9a492176886992e0e875f06bc0367e333f5fff11711a2d642e18b02f3009cc",
            library: "libonnxruntime.so.1.31.1",
        },
        ("macos", "aarch64") => Wheel {
            platform: "macosx_14_0_arm64",
            sha256: "96dd2564b10ea7153ad9c207e7cd8e5917cb3ba521e0e0a62ac03486fdc8d56c",
            library: "libonnxruntime.1.31.1.dylib",
        },
        (os, arch) => bail!(
            "ONNX Runtime {VERSION} has no wheel for {os} on {arch}: build or install it, and set ORT_DYLIB_PATH to its \
             shared library"
        ),
    })
}

/// Fetches the library, if this version is not there.
pub(crate) fn fetch() -> Result<()> {
    let folder = root().join(".onnxruntime");
    let stamp = folder.join(VERSION);
    // one name on all platforms, because .cargo/config.toml has only one
    let library = folder.join("lib").join("libonnxruntime.so");
    if stamp.exists() && library.exists() {
        return Ok(());
    }
    let wheel = wheel()?;
    say(&format!("fetching ONNX Runtime {VERSION} for {}", wheel.platform))?;
    let unpacked = folder.join("unpacked");
    remove(&unpacked)?;
    std::fs::create_dir_all(&unpacked)?;
    let file = download(&wheel, &unpacked)?;
    run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&file).arg(&unpacked))?;
    let capi = unpacked.join("onnxruntime").join("capi");
    std::fs::create_dir_all(folder.join("lib"))?;
    std::fs::rename(capi.join(wheel.library), &library)
        .with_context(|| format!("the wheel holds no {}", capi.join(wheel.library).display()))?;
    for notice in ["LICENSE", "ThirdPartyNotices.txt"] {
        std::fs::rename(unpacked.join("onnxruntime").join(notice), folder.join(notice))?;
    }
    remove(&unpacked)?;
    std::fs::write(&stamp, "")?;
    say(&format!("ONNX Runtime is at {}", library.display()))
}

/// Downloads the wheel. pip refuses a file with another checksum.
fn download(wheel: &Wheel, folder: &Path) -> Result<PathBuf> {
    let requirements = folder.join("requirements.txt");
    std::fs::write(&requirements, format!("onnxruntime=={VERSION} --hash=sha256:{}\n", wheel.sha256))?;
    let pip = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"];
    let target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", "3.12", "--abi", "cp312"];
    run(Command::new("python3")
        .args(pip)
        .args(target)
        .args(["--platform", wheel.platform, "--requirement"])
        .arg(&requirements)
        .arg("--dest")
        .arg(folder))
    .context(
        "pip could not download ONNX Runtime: it needs python3 with pip (on Debian: apt-get install python3-pip)",
    )?;
    let is_wheel = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "whl");
    let mut files = std::fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path()));
    files.find(is_wheel).context("pip downloaded no wheel")
}

fn say(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stderr(), "{text}")?)
}

//! An object store that speaks S3.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::process::{Child, Command, Stdio};

use crate::harness::needed;
use crate::program::is_installed;

/// An object store that speaks S3, with an empty bucket, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Bucket {
    process: Child,
    address: String,
}

impl Bucket {
    pub(crate) fn new() -> Self {
        needed(is_installed("python3"));
        let scripts = xtask::root().join("tests").join("common");
        let python = xtask::python::environment("s3", &scripts.join("requirements.txt")).unwrap();
        let mut command = Command::new(python);
        command.arg(scripts.join("s3.py")).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().unwrap();
        let mut address = String::new();
        std::io::BufReader::new(process.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Self { process, address: address.trim().to_owned() }
    }

    /// What the program needs to know of it.
    pub(crate) fn environment(&self) -> BTreeMap<&'static str, String> {
        let settings = [
            ("AWS_ENDPOINT", self.address.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "b"),
        ];
        settings.map(|(name, value)| (name, value.to_owned())).into()
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

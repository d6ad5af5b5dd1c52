//! The tutorial of `docs/streaming.md`: its commands run in one shell, and print what the page says.
//!
//! `UPDATE_DOCS=1 cargo test --test kafka -- tutorial` writes the outputs anew.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use xtask::kafka::Broker;

use crate::clone;
use crate::harness::needed;
use crate::page_text::{self, Page};
use crate::program::is_installed;

pub(crate) const TESTS: &[(&str, crate::Test)] = &[("commands_print_what_the_page_says", run)];

/// Ends the output of a block.
const END: &str = "-- end of the block --";

/// What the test does itself: it has built the program, and has started a broker.
const DONE: [&str; 6] =
    ["cargo xtask setup", "cargo build", "export PATH=", "docker ", "export KAFKA_BOOTSTRAP_SERVERS=", "sleep "];

fn run(_: &Broker) {
    needed(is_installed("curl"));
    // topics have the names of the page
    let broker = crate::own_broker();
    let page = Page::read(Path::new("docs/streaming.md"));
    let mut shell = Shell::start(&broker);
    let (mut wrong, mut anew) = (Vec::new(), Vec::new());
    for (i, block) in page.blocks.iter().enumerate().filter(|(_, block)| block.language == "sh") {
        let expected = page.blocks.get(i + 1).filter(|next| next.language == "text");
        let mut found = shell.run(&block.text);
        let Some(expected) = expected else { continue };
        // the pipeline is still at work
        let begun = Instant::now();
        let asks = block.text.lines().rfind(|line| line.starts_with("curl ")).unwrap_or_default().to_owned();
        while !asks.is_empty()
            && !page_text::matches(&expected.text, &found)
            && begun.elapsed() < Duration::from_secs(60)
        {
            std::thread::sleep(Duration::from_millis(200));
            found = shell.run(&asks);
        }
        match page_text::matches(&expected.text, &found) || found.trim().ends_with(expected.text.trim()) {
            true => {}
            false if std::env::var_os("UPDATE_DOCS").is_some() => anew.push((expected, found)),
            false => wrong.push(format!("{}\nprints\n{found}\nThe page says\n{}", block.shown(), expected.text)),
        }
    }
    page.write(anew);
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// A shell that runs one block after another.
struct Shell {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    address: String,
    _folder: tempfile::TempDir,
}

impl Shell {
    fn start(broker: &Broker) -> Self {
        let folder = clone::folder();
        let mut command = clone::command(&folder, "bash");
        command.env("KAFKA_BOOTSTRAP_SERVERS", broker.bootstrap()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut shell = Self { process, input, output: BufReader::new(output), address, _folder: folder };
        // jobs have numbers, and all output is one
        shell.run("set -m; exec 2>&1");
        shell
    }

    /// Runs commands, and gives what they print.
    fn run(&mut self, block: &str) -> String {
        let lines = block.lines().filter(|line| !DONE.iter().any(|done| line.starts_with(done)));
        let script: String = lines.flat_map(|line| [line, "\n"]).collect();
        // a free port, and all readings at once
        let script = script.replace("127.0.0.1:8080", &self.address).replace("replay.sh 2500 ", "replay.sh 22695 ");
        self.input.write_all(format!("{script}\necho; echo '{END}'\n").as_bytes()).unwrap();
        let mut printed = String::new();
        loop {
            let mut line = String::new();
            let read = self.output.read_line(&mut line).unwrap();
            assert!(read > 0, "the shell ended: {printed}");
            if line.trim() == END {
                return printed;
            }
            printed += &line;
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        drop(self.input.write_all(b"kill %1\nwait\nexit\n"));
        drop(self.process.wait());
    }
}

//! Shell commands of a page: which run in a test, and whether the others name what exists.

use std::path::Path;

/// What a test does with a command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It runs, in this form.
    Runs(String),
    /// The names in it exist.
    Checked,
}

/// Small programs that a page uses beside `aefusion`.
const HARMLESS: [&str; 9] = ["cat", "cp", "echo", "export", "head", "ls", "mkdir", "printf", "sort"];

/// Programs of the reader's machine.
const OTHERS: [&str; 14] = [
    "apt-get",
    "brew",
    "cd",
    "curl",
    "git",
    "kafka-consumer-groups.sh",
    "kafka-topics.sh",
    "kill",
    "pip",
    "python3",
    "source",
    "sudo",
    "systemctl",
    "tar",
];

/// The commands of a block, comments left out. Quotes, `\` at the end of a line and `<<WORD` join lines.
pub(super) fn split(block: &str) -> Result<Vec<String>, String> {
    let (mut commands, mut command) = (Vec::new(), String::new());
    let mut quote: Option<char> = None;
    let mut document: Option<String> = None;
    for line in block.lines() {
        if let Some(end) = &document {
            command += &format!("{line}\n");
            if line.trim() == end {
                document = None;
                commands.push(std::mem::take(&mut command));
            }
            continue;
        }
        let line = without_comment(line, &mut quote);
        if command.is_empty() && line.trim().is_empty() {
            continue;
        }
        command += line.trim_end();
        match (quote, line.split_once("<<")) {
            (Some(_), _) => command.push('\n'),
            (None, Some((_, word))) => {
                document = Some(word.trim().trim_matches(['\'', '"']).to_owned());
                command.push('\n');
            }
            (None, None) if command.ends_with('\\') => command.truncate(command.len() - 1),
            (None, None) => commands.push(std::mem::take(&mut command)),
        }
    }
    match command.is_empty() {
        true => Ok(commands),
        false => Err(format!("the command does not end: {command}")),
    }
}

/// A line up to its comment; keeps whether a quote is open at its end.
fn without_comment<'a>(line: &'a str, quote: &mut Option<char>) -> &'a str {
    let mut before = ' ';
    for (at, c) in line.char_indices() {
        match (*quote, c) {
            (None, '#') if before.is_whitespace() => return &line[..at],
            (None, '\'' | '"') => *quote = Some(c),
            (Some(open), c) if c == open => *quote = None,
            _ => {}
        }
        before = c;
    }
    line
}

/// Whether a command runs; an error if it names what does not exist.
pub(super) fn kind(command: &str) -> Result<Kind, String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let program = words.iter().find(|word| !word.contains('=')).copied().unwrap_or_default();
    match program {
        "aefusion" => Ok(Kind::Runs(command.to_owned())),
        "cargo" if words.get(1) == Some(&"run") && !has_package(&words) => match command.split_once(" -- ") {
            Some((_, arguments)) => Ok(Kind::Runs(format!("aefusion {arguments}"))),
            None => Err(format!("cargo run without -- and arguments: {command}")),
        },
        "cargo" => cargo(&words).map(|()| Kind::Checked),
        "bash" | "sh" => exists(words.get(1).copied().unwrap_or_default()),
        "docker" => docker(&words),
        program if HARMLESS.contains(&program) => Ok(Kind::Runs(command.to_owned())),
        program if OTHERS.contains(&program) => Ok(Kind::Checked),
        program => Err(format!("tests/it/docs/commands.rs does not know the program '{program}'")),
    }
}

fn exists(file: &str) -> Result<Kind, String> {
    match Path::new(file).exists() {
        true => Ok(Kind::Checked),
        false => Err(format!("there is no file {file}")),
    }
}

fn docker(words: &[&str]) -> Result<Kind, String> {
    match words.get(1) {
        Some(&"compose") => exists("docker-compose.yml"),
        Some(&"build") => exists("Dockerfile"),
        _ => Ok(Kind::Checked),
    }
}

fn has_package(words: &[&str]) -> bool {
    words.iter().any(|word| matches!(*word, "-p" | "--package"))
}

/// Checks tasks of `cargo xtask`, and the packages, features and tests that a command of cargo names.
fn cargo(words: &[&str]) -> Result<(), String> {
    if words.get(1) == Some(&"xtask") {
        let tasks = tasks();
        // a task and what it is to do: `demo stream`
        let named =
            words[2..].iter().take(2).take_while(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-'));
        return match named.clone().find(|name| !name.starts_with('-') && !tasks.contains(**name)) {
            Some(unknown) => Err(format!("cargo xtask has no task {unknown}")),
            None => Ok(()),
        };
    }
    for pair in words.windows(2) {
        let known = match pair[0] {
            "-p" | "--package" => manifests().contains(&format!("\nname = \"{}\"\n", pair[1])),
            "--test" => Path::new("tests").join(pair[1]).join("main.rs").exists(),
            "--features" => {
                let known = manifests();
                pair[1].split(',').all(|feature| known.contains(&format!("\n{feature} = [")))
            }
            _ => true,
        };
        if !known {
            return Err(format!("{} {}: there is none", pair[0], pair[1]));
        }
    }
    Ok(())
}

/// All manifests of the workspace.
fn manifests() -> String {
    let members = ["", "udfs", "train", "stream", "xtask", "examples/embedded", "benches/stream"];
    members.iter().filter_map(|member| std::fs::read_to_string(Path::new(member).join("Cargo.toml")).ok()).collect()
}

/// The subcommands of `cargo xtask`, at any depth: variants of its enums as clap names them.
fn tasks() -> std::collections::BTreeSet<String> {
    let folder = std::fs::read_dir("xtask/src").unwrap().map(|entry| entry.unwrap().path());
    let sources: String = folder.filter_map(|path| std::fs::read_to_string(path).ok()).collect();
    let mut tasks = std::collections::BTreeSet::new();
    for list in sources.split("Subcommand)]").skip(1) {
        let body = list.split_once('{').map_or("", |(_, body)| body);
        let body = body.split_once("\n}").map_or("", |(body, _)| body);
        let variants = body.lines().filter_map(|line| line.strip_prefix("    "));
        let names = variants.filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()));
        tasks.extend(names.map(|line| {
            let name: String = line.chars().take_while(char::is_ascii_alphanumeric).collect();
            let dashed = name.chars().enumerate().map(|(i, c)| match c.is_ascii_uppercase() && i > 0 {
                true => format!("-{}", c.to_ascii_lowercase()),
                false => c.to_ascii_lowercase().to_string(),
            });
            dashed.collect::<String>()
        }));
    }
    tasks
}

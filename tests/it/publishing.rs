//! Publishing is atomic: a reader sees a whole version or none, whoever is killed or publishes at the same time.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};

use crate::random_model::RandomModel;

crate::harness::tests! {
    fn a_killed_publication_leaves_a_whole_version_or_none,
    fn two_publishers_get_versions_of_their_own,
}

/// A file of 2.5 MB, whose writing takes a while.
fn large_model(folder: &Path) -> PathBuf {
    let file = folder.join("large.onnx");
    std::fs::write(&file, RandomModel::new([500, 600, 30], "Relu", [3; 32]).onnx()).unwrap();
    file
}

fn publish(store: &Path, file: &Path, times: usize) -> Command {
    let statement = format!("CREATE OR REPLACE MODEL m OPTIONS (model_path = '{}')", file.display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_aefusion"));
    command.env_remove("AEFUSION_MODELS").args(["sql", "--quiet", "--models"]).arg(store);
    command.args(std::iter::repeat_n(["-c", &statement], times).flatten());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// The lines of a query over a store, by a program that has just started.
fn query(store: &Path, sql: &str) -> Vec<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aefusion"));
    command.env_remove("AEFUSION_MODELS").args(["sql", "--quiet", "--format", "csv", "--models"]).arg(store);
    let output = command.args(["-c", sql]).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().skip(1).map(str::to_owned).collect()
}

/// The versions that a reader sees. Each must be the whole file, and load.
fn whole_versions(store: &Path) -> BTreeSet<u64> {
    let listed = query(store, "SELECT version, sha256, problem IS NULL AS loads FROM ae_models()");
    let rows: Vec<Vec<&str>> = listed.iter().map(|line| line.split(',').collect()).collect();
    for row in &rows {
        assert_eq!((row[1], row[2]), (rows[0][1], "true"), "all versions are of one file: {listed:?}");
    }
    let versions: BTreeSet<u64> = rows.iter().map(|row| row[0].parse().unwrap()).collect();
    assert_eq!(versions.len(), rows.len(), "{listed:?}");
    versions
}

/// Whether the store holds a file that is being written: it has another name until it is whole.
fn is_writing(store: &Path) -> bool {
    let versions = std::fs::read_dir(store.join("m")).into_iter().flatten().flatten();
    let files = versions.flat_map(|version| std::fs::read_dir(version.path()).into_iter().flatten().flatten());
    files.into_iter().any(|file| file.file_name() != "model.onnx")
}

fn clear_unfinished(store: &Path) {
    let versions = std::fs::read_dir(store.join("m")).into_iter().flatten().flatten();
    for version in versions {
        for file in std::fs::read_dir(version.path()).into_iter().flatten().flatten() {
            if file.file_name() != "model.onnx" {
                std::fs::remove_file(file.path()).unwrap();
            }
        }
    }
}

fn a_killed_publication_leaves_a_whole_version_or_none() {
    const KILLS: usize = 16;
    let folder = tempfile::tempdir().unwrap();
    let (file, store) = (large_model(folder.path()), folder.path().join("models"));
    assert!(publish(&store, &file, 1).status().unwrap().success());
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[11; 32]);
    let (mut published, mut while_writing) = (1, 0);
    for kill in 0..KILLS {
        clear_unfinished(&store);
        let mut program = publish(&store, &file, 1).spawn().unwrap();
        // up to the moment at which the file is being written, and a random while more
        while !is_writing(&store) && program.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(50));
        }
        let (begun, wait) = (Instant::now(), Duration::from_micros(u64::from(random.next_u32() % 3_000)));
        while begun.elapsed() < wait && kill % 4 > 0 {
            std::hint::spin_loop();
        }
        program.kill().unwrap();
        program.wait().unwrap();
        while_writing += usize::from(is_writing(&store));
        let versions = whole_versions(&store);
        let last = *versions.last().unwrap();
        assert!(last == published || last == published + 1, "{versions:?} after {published}");
        assert_eq!(versions.len(), usize::try_from(last).unwrap(), "versions have no gap: {versions:?}");
        published = last;
    }
    // kills hit the publication, or the test shows nothing
    assert!(while_writing >= KILLS / 4, "{while_writing} of {KILLS} kills came while the file was written");
    assert_eq!(query(&store, "SELECT count(*) FROM ae_models() WHERE problem IS NOT NULL"), ["0"]);
    assert!(publish(&store, &file, 1).status().unwrap().success(), "what was left behind is in nobody's way");
}

fn two_publishers_get_versions_of_their_own() {
    const EACH: usize = 5;
    let folder = tempfile::tempdir().unwrap();
    let (file, store) = (large_model(folder.path()), folder.path().join("models"));
    let mut programs = [publish(&store, &file, EACH).spawn().unwrap(), publish(&store, &file, EACH).spawn().unwrap()];
    let mut seen = BTreeSet::new();
    while programs.iter_mut().any(|program| program.try_wait().unwrap().is_none()) {
        seen.extend(whole_versions(&store));
    }
    for program in programs {
        let output = program.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let all: BTreeSet<u64> = (1..=2 * EACH as u64).collect();
    assert_eq!(whole_versions(&store), all);
    assert!(seen.is_subset(&all) && !seen.is_empty(), "{seen:?}");
}

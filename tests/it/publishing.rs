//! Publishing is atomic: a reader sees a whole version or none, whoever is killed or publishes at the same time.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aefusion_udfs::SessionStateBuilderExt;
use aefusion_udfs::catalog::Models;
use aefusion_udfs::sql::{SessionContextExt, Trainer, TrainerHandle, TrainingJob};
use aefusion_udfs::store::{ModelStore, Publish};
use async_trait::async_trait;
use datafusion::error::Result;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};
use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};
use prost::bytes::Bytes;

use crate::bucket::Bucket;
use crate::random_model::RandomModel;

crate::harness::tests! {
    fn a_killed_publication_leaves_a_whole_version_or_none,
    fn two_publishers_get_versions_of_their_own,
    fn writers_in_a_folder_at_once,
    fn writers_in_a_bucket_at_once,
    fn if_not_exists_succeeds_for_all_at_once,
    fn drops_at_once_succeed_and_leave_no_folder,
    async a_model_that_another_version_replaced_meanwhile_is_not_published,
}

/// A file of 2.5 MB, whose writing takes a while.
fn large_model(folder: &Path) -> PathBuf {
    let file = folder.join("large.onnx");
    std::fs::write(&file, RandomModel::new([500, 600, 30], "Relu", [3; 32]).onnx()).unwrap();
    file
}

fn publish(store: &Path, file: &Path, times: usize) -> Command {
    let statement = format!("CREATE OR REPLACE MODEL m OPTIONS (model_path = '{}')", file.display());
    let mut command = program(store, &vec![statement; times]);
    command.stdout(Stdio::null());
    command
}

/// The program with statements over a store.
fn program(store: impl AsRef<OsStr>, statements: &[impl AsRef<str>]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aefusion"));
    command.env_remove("AEFUSION_MODELS").args(["sql", "--quiet", "--format", "csv", "--models"]).arg(store);
    command.args(statements.iter().flat_map(|statement| ["-c", statement.as_ref()]));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the same statement in several processes at once, and returns their output. All succeed.
fn at_once(store: &Path, statement: &str, processes: usize) -> Vec<String> {
    let start = |_| program(store, &[statement]).spawn().unwrap();
    let programs: Vec<_> = (0..processes).map(start).collect();
    let output = |program: std::process::Child| {
        let output = program.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    programs.into_iter().map(output).collect()
}

/// The lines of a query over a store, by a program that has just started.
fn query(store: &Path, sql: &str) -> Vec<String> {
    let output = program(store, &[sql]).output().unwrap();
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

fn writers_in_a_folder_at_once() {
    let folder = tempfile::tempdir().unwrap();
    writers_at_once(folder.path().join("models").to_str().unwrap(), &BTreeMap::new());
}

fn writers_in_a_bucket_at_once() {
    let bucket = Bucket::new();
    writers_at_once("s3://bucket/models", &bucket.environment());
}

/// Publishes from 20 processes at once, and kills some of them. Each answer must show the version that the statement
/// published, and each version must be whole.
fn writers_at_once(store: &str, environment: &BTreeMap<&str, String>) {
    const WRITERS: u8 = 20;
    const EACH: usize = 2;
    const KILLED: usize = 4;
    let folder = tempfile::tempdir().unwrap();
    let create = |writer: u8| {
        let file = folder.path().join(format!("{writer}.onnx"));
        std::fs::write(&file, RandomModel::new([4, 8, 2], "Tanh", [writer; 32]).onnx()).unwrap();
        format!("CREATE OR REPLACE MODEL m OPTIONS (model_path = '{}')", file.display())
    };
    assert!(program(store, &[create(WRITERS)]).envs(environment).status().unwrap().success());
    let mut programs: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let statement = match writer % 5 {
                4 => format!("ALTER MODEL m SET OPTIONS (contamination = 0.{})", writer + 10),
                _ => create(writer),
            };
            program(store, &vec![statement; EACH]).envs(environment).spawn().unwrap()
        })
        .collect();
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[12; 32]);
    for _ in 0..KILLED {
        std::thread::sleep(Duration::from_millis(u64::from(20 + random.next_u32() % 300)));
        let mut running: Vec<_> =
            programs.iter_mut().filter_map(|p| p.try_wait().unwrap().is_none().then_some(p)).collect();
        if !running.is_empty() {
            let victim = random.next_u32() as usize % running.len();
            running[victim].kill().unwrap();
        }
    }
    let mut n_killed = 0;
    let mut answers: BTreeMap<u64, (usize, String)> = BTreeMap::new();
    for (writer, program) in programs.into_iter().enumerate() {
        let output = program.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        let is_killed = output.status.code().is_none();
        n_killed += usize::from(is_killed);
        let is_late = writer % 5 == 4 && error.contains("but this statement started from version");
        assert!(output.status.success() || is_killed || is_late, "writer {writer}: {error}");
        // model,features,code,sha256
        let lines = String::from_utf8(output.stdout).unwrap();
        let rows: Vec<_> = lines.lines().filter_map(|line| line.strip_prefix("m@")?.split_once(',')).collect();
        assert!(rows.len() == EACH || !output.status.success(), "writer {writer}: {lines}");
        for (version, row) in rows {
            let sha = row.rsplit(',').next().unwrap();
            let before = answers.insert(version.parse().unwrap(), (writer, sha.to_owned()));
            assert_eq!(before, None, "two statements answered version {version}");
        }
    }
    assert!(n_killed > 0, "no kill came before its program ended");
    let listed =
        program(store, &["SELECT version, sha256, problem FROM ae_models()"]).envs(environment).output().unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let listed = String::from_utf8(listed.stdout).unwrap();
    let rows = listed.lines().skip(1).map(|row| row.splitn(3, ',').collect::<Vec<_>>());
    let stored: BTreeMap<u64, Vec<&str>> = rows.map(|row| (row[0].parse().unwrap(), row[1..].to_vec())).collect();
    for (version, (writer, sha)) in &answers {
        assert_eq!(stored[version], [sha, ""], "version {version} of writer {writer}");
    }
    assert!(stored.values().all(|row| row[1].is_empty()), "all versions load: {stored:?}");
    assert!(stored.keys().copied().eq(1..=stored.len() as u64), "no version is missing: {stored:?}");
    for writer in (0..usize::from(WRITERS)).filter(|writer| writer % 5 < 4) {
        let shas: BTreeSet<_> = answers.values().filter(|answer| answer.0 == writer).map(|answer| &answer.1).collect();
        assert!(shas.len() <= 1, "writer {writer} published one file: {answers:?}");
    }
}

fn if_not_exists_succeeds_for_all_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("models");
    let statement = "CREATE MODEL IF NOT EXISTS m OPTIONS (model_path = 'tests/models/mean.onnx')";
    for answer in at_once(&store, statement, 4) {
        assert!(answer.contains("m@1,2,1,"), "{answer}");
    }
    assert_eq!(query(&store, "SELECT model, version FROM ae_models()"), ["m,1"]);
}

fn drops_at_once_succeed_and_leave_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("models");
    let create = "CREATE OR REPLACE MODEL m OPTIONS (model_path = 'tests/models/mean.onnx')";
    assert!(program(&store, &[create; 3]).status().unwrap().success());
    at_once(&store, "DROP MODEL IF EXISTS m", 3);
    assert!(!store.join("m").exists(), "the folder of the model is gone");
    let answer = String::from_utf8(program(&store, &[create]).output().unwrap().stdout).unwrap();
    assert!(answer.contains("m@4,"), "the number of a dropped version is not used again: {answer}");
}

/// A trainer that takes long: another process publishes in the meantime.
#[derive(Debug)]
struct SlowTrainer(Models);

#[async_trait]
impl Trainer for SlowTrainer {
    async fn train(&self, _: &SessionContext, job: TrainingJob) -> Result<Bytes> {
        let file = Bytes::from(RandomModel::new([2, 8, 1], "Tanh", [7; 32]).onnx());
        self.0.store().publish(&job.name, file.clone(), Publish::NextVersion).await?;
        Ok(file)
    }
}

async fn a_model_that_another_version_replaced_meanwhile_is_not_published() {
    let models = Models::new(ModelStore::in_memory());
    let config = SessionConfig::new().with_extension(Arc::new(TrainerHandle(Arc::new(SlowTrainer(models.clone())))));
    let state = SessionStateBuilder::new().with_config(config).with_default_features().with_autoencoders(models);
    let session = SessionContext::new_with_state(state.build());
    session.ae_sql("CREATE MODEL m OPTIONS (model_path = 'tests/models/mean.onnx')").await.unwrap();
    let warm = "CREATE OR REPLACE MODEL m OPTIONS (warm_start = true) AS SELECT 1.0 AS a, 2.0 AS b";
    let error = session.ae_sql(warm).await.unwrap_err().to_string();
    assert!(
        error.contains("the newest version of model m is now 2, but this statement started from version 1"),
        "{error}"
    );
    let cold = "CREATE OR REPLACE MODEL m AS SELECT 1.0 AS a, 2.0 AS b";
    let published = session.ae_sql(cold).await.unwrap().to_string().await.unwrap();
    assert!(published.contains("m@4"), "{published}");
}

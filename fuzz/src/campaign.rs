//! All mutants of a run, by several jobs.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aefusion_model::onnx::declared_tensor;
use aefusion_model::onnx::proto::ModelProto;
use anyhow::{Context, Result, anyhow};
use prost::Message;

use crate::mutant::{Corpus, Mutant};
use crate::summary::{Finding, Summary, kind};
use crate::trial::{self, Outcome, Results};
use crate::watch::{Failure, Watched, survives};

/// Longest time of a mutant in a worker.
const WORKER_LIMIT: Duration = Duration::from_secs(15);
/// Longest time of a mutant in the oracle.
const ORACLE_LIMIT: Duration = Duration::from_secs(30);
/// Longest time of a mutant in the program.
const PROGRAM_LIMIT: Duration = Duration::from_secs(60);
/// Address space of a worker, and of the oracle, KiB.
const WORKER_MEMORY: u64 = 6 << 20;
/// Address space of the program, KiB.
const PROGRAM_MEMORY: u64 = 24 << 20;
/// Largest difference of a row in other blocks that the documentation allows as rounding, as a share of its largest number.
const ROUNDING: f64 = 1e-5;
/// Files of remarks that each job keeps, of each kind.
const KEPT: u64 = 40;
/// Verdicts of the oracle that are no findings: ONNX Runtime itself gives other numbers for a row alone.
const HARMLESS: [&str; 5] = ["same", "optimised", "kernel", "rounding", "refused"];

/// What a run is asked to do.
#[derive(Debug, Clone)]
pub struct Campaign {
    /// The repository.
    pub root: PathBuf,
    /// The seed.
    pub seed: u64,
    /// The first mutant.
    pub first: u64,
    /// The number of mutants.
    pub runs: u64,
    /// Mutants at the same time.
    pub jobs: usize,
    /// Where files of findings are kept.
    pub keep: PathBuf,
    /// The program `aefusion`.
    pub program: PathBuf,
    /// A Python with onnx, onnxruntime and numpy.
    pub python: PathBuf,
}

/// Answers the numbers of mutants, one a line, with their outcomes.
///
/// # Errors
/// If the files of the corpus cannot be read.
pub fn work(root: &Path, seed: u64) -> Result<()> {
    // a panic is an outcome: its text is not printed
    std::panic::set_hook(Box::new(|_| {}));
    let corpus = Corpus::read(root)?;
    let mut stdout = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let mutant = corpus.mutant(seed, line?.trim().parse()?);
        writeln!(stdout, "{}", serde_json::to_string(&trial::run(&mutant.bytes))?)?;
        stdout.flush()?;
    }
    Ok(())
}

impl Campaign {
    /// Tries all mutants.
    ///
    /// # Errors
    /// If a process cannot be started, or a file cannot be written.
    pub fn run(&self) -> Result<Summary> {
        std::fs::create_dir_all(&self.keep)?;
        let next = AtomicU64::new(self.first);
        let mut summary = Summary::default();
        std::thread::scope(|scope| -> Result<()> {
            let jobs: Vec<_> = (0..self.jobs.max(1))
                .map(|job| {
                    scope.spawn({
                        let next = &next;
                        move || Job::new(self, job)?.run(next)
                    })
                })
                .collect();
            for job in jobs {
                summary.add(job.join().map_err(|_| anyhow!("a job panicked"))??);
            }
            Ok(())
        })?;
        Ok(summary)
    }
}

struct Job<'a> {
    campaign: &'a Campaign,
    corpus: Corpus,
    worker: Watched,
    oracle: Watched,
    file: PathBuf,
    summary: Summary,
}

impl<'a> Job<'a> {
    fn new(campaign: &'a Campaign, number: usize) -> Result<Self> {
        let this = std::env::current_exe()?.display().to_string();
        let (root, seed) = (campaign.root.display().to_string(), campaign.seed.to_string());
        let script = campaign.root.join("fuzz/oracle.py").display().to_string();
        let arguments = vec!["work".to_owned(), root, seed];
        Ok(Self {
            campaign,
            corpus: Corpus::read(&campaign.root)?,
            worker: Watched::new(this, arguments, WORKER_LIMIT, WORKER_MEMORY),
            oracle: Watched::new(campaign.python.display().to_string(), vec![script], ORACLE_LIMIT, WORKER_MEMORY),
            file: campaign.keep.join(format!("job-{number}.onnx")),
            summary: Summary::default(),
        })
    }

    fn run(mut self, next: &AtomicU64) -> Result<Summary> {
        let end = self.campaign.first + self.campaign.runs;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= end {
                // the last file is no finding
                drop(std::fs::remove_file(&self.file));
                return Ok(self.summary);
            }
            self.mutant(&self.corpus.mutant(self.campaign.seed, number))?;
        }
    }

    fn mutant(&mut self, mutant: &Mutant) -> Result<()> {
        self.summary.mutants += 1;
        match self.worker.ask(&mutant.number.to_string())? {
            Err(failure) => self.failed(mutant, &failure),
            Ok(answer) => {
                let outcome: Outcome = serde_json::from_str(&answer).context("the worker answered something else")?;
                self.outcome(mutant, outcome)
            }
        }
    }

    /// A worker died or hung: the program must not.
    fn failed(&mut self, mutant: &Mutant, failure: &Failure) -> Result<()> {
        let (place, what) = match failure {
            Failure::Died(how) => (0, format!("the worker died ({how})")),
            Failure::Hung => (1, "the worker hung".to_owned()),
        };
        self.summary.workers[place] += 1;
        std::fs::write(&self.file, &mutant.bytes)?;
        let program = self.campaign.program.display().to_string();
        let ended = survives(&program, &arguments(&self.file, &mutant.bytes), PROGRAM_LIMIT, PROGRAM_MEMORY)?;
        match ended {
            None => {
                *self.summary.remarks.entry(format!("{}, the program did not", kind(&what))).or_default() += 1;
                Ok(())
            }
            Some(Failure::Hung) => self.found(mutant, "hung", &format!("{what}, and the program hung")),
            Some(Failure::Died(how)) => self.found(mutant, "died", &format!("{what}, and the program: {how}")),
        }
    }

    fn outcome(&mut self, mutant: &Mutant, outcome: Outcome) -> Result<()> {
        match outcome {
            Outcome::Refused { why } => {
                *self.summary.refused.entry(kind(&why)).or_default() += 1;
                Ok(())
            }
            // the program registers files in a process of its own
            Outcome::Panicked { why } => self.failed(mutant, &Failure::Died(format!("panic: {why}"))),
            Outcome::Unusable { why } => {
                self.summary.accepted += 1;
                *self.summary.remarks.entry(format!("no function runs: {}", kind(&why))).or_default() += 1;
                Ok(())
            }
            Outcome::TooWide => {
                self.summary.accepted += 1;
                *self.summary.remarks.entry("too wide to compare".to_owned()).or_default() += 1;
                Ok(())
            }
            Outcome::Accepted(results) => {
                self.summary.accepted += 1;
                self.compare(mutant, &results)
            }
        }
    }

    fn compare(&mut self, mutant: &Mutant, results: &Results) -> Result<()> {
        for failed in &results.failed {
            *self.summary.remarks.entry(format!("one function fails: {}", kind(failed))).or_default() += 1;
        }
        std::fs::write(&self.file, &mutant.bytes)?;
        let request = serde_json::json!({"file": self.file.display().to_string(), "results": results});
        let (verdict, detail) = match self.oracle.ask(&request.to_string())? {
            Ok(answer) => {
                let answer: serde_json::Value = serde_json::from_str(&answer)?;
                let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
                (text("verdict"), text("detail"))
            }
            Err(Failure::Died(how)) => ("oracle died".to_owned(), how),
            Err(Failure::Hung) => ("oracle hung".to_owned(), String::new()),
        };
        *self.summary.verdicts.entry(verdict.clone()).or_default() += 1;
        if verdict == "refused" {
            *self.summary.remarks.entry(format!("one row alone: {}", kind(&detail))).or_default() += 1;
        }
        if !HARMLESS.contains(&verdict.as_str()) {
            self.found(mutant, &verdict, &detail)?;
        } else if verdict != "same" && self.summary.verdicts.get(&verdict).is_some_and(|n| *n <= KEPT) {
            self.keep(mutant, &format!("remark-{verdict}"), &detail)?;
        }
        match &results.blocks {
            Some((share, place)) if *share > ROUNDING => {
                self.found(mutant, "blocks", &format!("{place} ({share:.1e} of the row)"))
            }
            Some(_) => {
                *self.summary.remarks.entry("other bits in other blocks, by rounding".to_owned()).or_default() += 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn found(&mut self, mutant: &Mutant, kind: &str, detail: &str) -> Result<()> {
        self.keep(mutant, kind, detail)?;
        self.summary.findings.push(Finding {
            kind: kind.to_owned(),
            mutant: mutant.number,
            origin: mutant.origin.clone(),
            detail: detail.to_owned(),
        });
        Ok(())
    }

    fn keep(&self, mutant: &Mutant, kind: &str, detail: &str) -> Result<()> {
        let name = format!("{}-{}", kind.replace(' ', "-"), mutant.number);
        std::fs::write(self.campaign.keep.join(format!("{name}.onnx")), &mutant.bytes)?;
        std::fs::write(self.campaign.keep.join(format!("{name}.txt")), format!("{}\n{detail}\n", mutant.origin))?;
        Ok(())
    }
}

/// Statements that register a file and run its functions.
fn arguments(file: &Path, bytes: &[u8]) -> Vec<String> {
    let path = file.display().to_string().replace('\'', "''");
    let n = n_features(bytes).unwrap_or(4);
    let zeros = vec!["0.5"; n].join(", ");
    let statements = [
        "SET ae.registration_seconds = 20".to_owned(),
        format!("CREATE MODEL m OPTIONS (model_type = 'onnx', model_path = '{path}')"),
        "SELECT * FROM ae_models()".to_owned(),
        format!("SELECT ae_encode('m', [{zeros}])"),
        format!("SELECT ae_reconstruct('m', [{zeros}]), ae_error('m', [{zeros}])"),
    ];
    let options = ["sql", "--quiet", "--models", "memory:///", "--format", "csv"].map(str::to_owned);
    options.into_iter().chain(statements.into_iter().flat_map(|text| ["--command".to_owned(), text])).collect()
}

/// Numbers of a row of the first input.
fn n_features(bytes: &[u8]) -> Option<usize> {
    let graph = ModelProto::decode(bytes).ok()?.graph?;
    let (_, dims) = declared_tensor(graph.input.first()?)?;
    let row = dims?.into_iter().skip(1).map(|dim| usize::try_from(dim?).ok());
    row.product::<Option<usize>>().filter(|n| *n <= 1000)
}

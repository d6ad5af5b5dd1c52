//! Runs pipelines, until they are asked to stop or cannot go on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aefusion_udfs::config::AeOptions;
use aefusion_udfs::model::catalog::Models;
use aefusion_udfs::model::store::ModelRef;
use datafusion::common::plan_err;
use datafusion::common::runtime::SpawnedTask;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::sql::parser::Statement;
use futures::future::OptionFuture;
use tokio::sync::mpsc;

use super::failure::Failure;
use super::format::{Encoder, Malformed};
use super::kafka::{Batch, ReaderOptions, Consumer, OnMalformed, Reader, malformed_error};
use super::pipelines::check_name;
use super::query::{Insert, Query};
use super::records::Records;
use super::settings::{Delivery, Settings};
use super::sink::{DeadLetter, DeadLetters, FileSink, Output, Scored, Sink, Target, TopicSink};
use super::stats::{Counts, Stats};
use super::stop::Stop;
use aefusion_udfs::message;

/// How long a pipeline waits before it tries again: at first, and at most.
const FIRST_DELAY: Duration = Duration::from_millis(200);
const MAX_DELAY: Duration = Duration::from_secs(15);
/// A pipeline whose place is taken twice within this time gives it up.
const FENCED_WINDOW: Duration = Duration::from_secs(60);

/// One pipeline of a file.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) name: String,
    insert: Insert,
    target: Target,
    settings: Settings,
    limits: aefusion_udfs::model::Limits,
}

impl Plan {
    /// A pipeline of an INSERT; `file` is the name of the file that it stands in.
    ///
    /// # Errors
    /// A planning error if it cannot be one, with the reason.
    pub(crate) async fn try_new(state: &SessionState, statement: Statement, file: &str) -> Result<Self> {
        let settings = Settings::of(state.config_options())?;
        let insert = Insert::try_new(state, statement).await?;
        let target = Target::of(&insert.sink, state)?;
        let name = settings.name.clone().unwrap_or_else(|| format!("{file}-{}", insert.sink_name));
        check_name("the name of a pipeline", &name)?;
        if let (Target::Topic(sink), Delivery::ExactlyOnce) = (&target, settings.delivery)
            && sink.connection.brokers != insert.source.connection.brokers
        {
            return plan_err!(
                "exactly once from {} to {} cannot be had: one transaction does not span two clusters; write their brokers \
                 alike if they are one, or SET stream.delivery = 'at_least_once'",
                insert.source.connection,
                sink.connection
            );
        }
        let is_at_least_once = matches!((&target, settings.delivery), (Target::Topic(_), Delivery::AtLeastOnce));
        if !is_at_least_once && insert.source.connection.reads_uncommitted() {
            return plan_err!(
                "exactly once cannot be had from {} with isolation.level = 'read_uncommitted': an instance that takes \
                 partitions over would not wait for offsets that are being committed; leave the setting out",
                insert.source.connection
            );
        }
        let limits = AeOptions::of(state.config_options()).limits();
        Ok(Self { name, insert, target, settings, limits })
    }

    /// What it does, for a person.
    pub(crate) fn describe(&self) -> String {
        format!("{} → {}", self.insert.source.connection, self.insert.sink_name)
    }
}

/// A pipeline that runs.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) plan: Plan,
    pub(crate) models: Models,
    /// Which of the instances of the pipeline this is.
    pub(crate) instance: String,
    /// End when the topic was read up to its end.
    pub(crate) until_end: bool,
    pub(crate) stop: Stop,
    pub(crate) stats: Arc<Stats>,
}

impl Job {
    /// Runs until it is asked to stop, or until the end of the topic.
    ///
    /// # Errors
    /// What a person must mend.
    pub(crate) async fn run(&self) -> Result<()> {
        let what = format!("pipeline '{}'", self.plan.name);
        let ended = self.run_with_retries().await.map_err(|e| aefusion_udfs::sql::explain(what, e));
        self.stats.ended();
        ended
    }

    async fn run_with_retries(&self) -> Result<()> {
        let mut query = self.plan.insert.plan(&self.stats).await?;
        self.fits(&query)?;
        let mut wait = FIRST_DELAY;
        let mut taken: Option<Instant> = None;
        loop {
            let began = Instant::now();
            let failure = match self.once(&mut query).await {
                Ok(()) => return Ok(()),
                Err(Failure::Permanent(error)) => return Err(error),
                Err(Failure::Transient(error)) => error,
                Err(Failure::Fenced(error)) => match taken.replace(Instant::now()) {
                    Some(before) if before.elapsed() < FENCED_WINDOW => return Err(error),
                    _ => error,
                },
            };
            if self.stop.is_requested() {
                return Err(failure);
            }
            let text = message(&failure);
            tracing::warn!(pipeline = self.plan.name, "{text}; trying again from what is committed");
            self.stats.waiting(text);
            // what ran well for a while has not failed twice in a row
            wait = if began.elapsed() > MAX_DELAY * 2 { FIRST_DELAY } else { wait };
            let stop = self.stop.clone();
            let slept = SpawnedTask::spawn_blocking(move || stop.sleep(wait)).join().await;
            slept.map_err(|e| DataFusionError::External(Box::new(e)))?;
            if self.stop.is_requested() {
                return Ok(());
            }
            wait = (wait * 2).min(MAX_DELAY);
        }
    }

    /// That the rows of the query can be written, before any was read.
    fn fits(&self, query: &Query) -> Result<()> {
        let empty = datafusion::arrow::array::RecordBatch::new_empty(query.schema());
        match &self.plan.target {
            Target::Topic(table) => table.encoder()?.encode(&empty).map(drop),
            Target::Files(folder) => folder.check(),
        }
    }

    /// Opens everything, and runs until something fails.
    async fn once(&self, query: &mut Query) -> Result<(), Failure> {
        // the sink first: it ends what an instance before this one had begun, and then offsets stand
        let mut sink = self.sink().await?;
        let reader = self.reader().await?;
        sink.tell(Arc::clone(&reader.consumer));
        let consumer = Arc::clone(&reader.consumer);
        let (to_query, mut batches) = mpsc::channel::<Batch>(1);
        let (to_sink, scored) = mpsc::channel::<Scored>(1);
        let reading = SpawnedTask::spawn_blocking(move || reader.run(&to_query));
        let runtime = tokio::runtime::Handle::current();
        let writing = SpawnedTask::spawn_blocking(move || write(sink, scored, &consumer, &runtime));
        let queried = self.query(query, &mut batches, to_sink).await;
        drop(batches);
        let written = joined(writing).await;
        let read = joined(reading).await;
        written.and(queried).and(read)
    }

    async fn sink(&self) -> Result<Box<dyn Sink>, Failure> {
        let plan = &self.plan;
        let source = plan.insert.source.connection.clone();
        let letters = plan.insert.source.dead_letters.clone();
        let (stop, stats) = (self.stop.clone(), Arc::clone(&self.stats));
        match &plan.target {
            Target::Topic(table) => {
                let (topic, delivery) = (table.connection.clone(), plan.settings.delivery);
                let name = format!("{}.{}", plan.name, self.instance);
                let open = move || TopicSink::open(&source, &topic, letters.as_ref(), delivery, &name, &stop, &stats);
                Ok(Box::new(joined(SpawnedTask::spawn_blocking(open)).await?))
            }
            Target::Files(folder) => {
                let letters = match letters {
                    Some(letters) => {
                        let open = move || DeadLetters::open(&letters, &stop);
                        Some(joined(SpawnedTask::spawn_blocking(open)).await?)
                    }
                    None => None,
                };
                let names = (plan.name.as_str(), self.instance.as_str());
                let sink = FileSink::open(folder.clone(), names, &plan.settings, &source, letters, &stats).await?;
                Ok(Box::new(sink))
            }
        }
    }

    async fn reader(&self) -> Result<Reader, Failure> {
        let plan = &self.plan;
        let (source, name, settings) = (plan.insert.source.clone(), plan.name.clone(), plan.settings.clone());
        let starts = plan.target.starts(&plan.name, &plan.insert.source.connection.topic);
        let (until_end, stop, stats) = (self.until_end, self.stop.clone(), Arc::clone(&self.stats));
        let open = move || {
            let what = ReaderOptions {
                connection: &source.connection,
                group: &name,
                with_headers: source.with_headers(),
                max_rows: settings.max_batch_rows,
                max_age: settings.max_batch,
                until_end,
                starts,
            };
            Reader::open(what, stop, stats)
        };
        joined(SpawnedTask::spawn_blocking(open)).await
    }

    /// Runs the query over micro-batches as they come.
    async fn query(
        &self,
        query: &mut Query,
        batches: &mut mpsc::Receiver<Batch>,
        to_sink: mpsc::Sender<Scored>,
    ) -> Result<(), Failure> {
        let encoder = match &self.plan.target {
            Target::Topic(table) => Some(table.encoder()?),
            Target::Files(_) => None,
        };
        let reload = self.plan.settings.reload;
        let (mut looking, mut refused) = (reload.map(|every| self.look(query, every)), Vec::new());
        loop {
            let batch = tokio::select! {
                batch = batches.recv() => batch,
                // it has failed, and says why
                () = to_sink.closed() => return Ok(()),
                Some(found) = OptionFuture::from(looking.as_mut()) => {
                    let found = found.unwrap_or_else(|e| Err(DataFusionError::External(Box::new(e))));
                    self.reload(query, found, &mut refused).await;
                    looking = reload.map(|every| self.look(query, every));
                    continue;
                }
            };
            let Some(batch) = batch else { return Ok(()) };
            let begun = Instant::now();
            let stop_at_first = self.plan.insert.source.on_malformed == OnMalformed::Fail;
            let outcome = query.run(&batch.records, stop_at_first).await?;
            let dead = self.judge(&batch.records, &outcome.malformed)?;
            let rows = outcome.rows.iter().map(|rows| rows.num_rows()).sum();
            let output = match &encoder {
                Some(encoder) => Output::Records(encode(encoder, &outcome.rows)?),
                None => Output::Rows(outcome.rows),
            };
            tracing::debug!(records = batch.records.len(), rows, took = ?begun.elapsed(), "queried");
            let Batch { records, spans, epoch, group, since, in_flight } = batch;
            let (malformed, dead_lettered) = (outcome.malformed.len(), dead.len());
            let counts = Counts { since, records: records.len(), skipped: malformed - dead_lettered, dead_lettered };
            let scored = Scored { output, rows, dead, counts, spans, epoch, group, in_flight };
            if to_sink.send(scored).await.is_err() {
                return Ok(());
            }
        }
    }

    /// What is to be done with malformed records.
    fn judge(&self, records: &Records, malformed: &[Malformed]) -> Result<Vec<DeadLetter>> {
        let Some(first) = malformed.first() else { return Ok(Vec::new()) };
        let source = &self.plan.insert.source;
        let topic = &source.connection.topic;
        let error = malformed_error(topic, records, first);
        let n = malformed.len();
        match source.on_malformed {
            OnMalformed::Fail => Err(error),
            OnMalformed::Skip => {
                tracing::warn!(
                    pipeline = self.plan.name,
                    "{n} malformed records skipped, the first: {}",
                    message(&error)
                );
                Ok(Vec::new())
            }
            OnMalformed::DeadLetter => {
                tracing::warn!(
                    pipeline = self.plan.name,
                    "{n} malformed records set aside, the first: {}",
                    message(&error)
                );
                Ok(malformed.iter().map(|m| DeadLetter::of(&self.plan.name, topic, records, m)).collect())
            }
        }
    }

    /// Waits, and looks for the newest version of each model of a query: what is found is malformed_error by hashes. A store that does
    /// not answer holds up nothing.
    fn look(&self, query: &Query, after: Duration) -> SpawnedTask<Result<Vec<String>>> {
        let newest: Vec<_> = query.models().iter().map(|model| ModelRef::parse(model.name())).collect();
        let (models, limits) = (self.models.clone(), self.plan.limits);
        SpawnedTask::spawn(async move {
            tokio::time::sleep(after).await;
            let mut found = Vec::new();
            for newest in newest {
                found.push(models.find(&newest?, &limits).await?.sha256_hex());
            }
            Ok(found)
        })
    }

    /// Plans the query anew if a model has a new version; if that cannot be done it stays as it is.
    async fn reload(&self, query: &mut Query, found: Result<Vec<String>>, refused: &mut Vec<String>) {
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                let pipeline = &self.plan.name;
                return tracing::warn!(pipeline, "could not look for a new version of a model: {}", message(&error));
            }
        };
        let is_in_use = query.models().iter().map(|model| model.sha256_hex()).eq(found.iter().cloned());
        if is_in_use || found == *refused {
            return;
        }
        match self.plan.insert.plan(&self.stats).await {
            Ok(planned) => {
                let names: Vec<String> = planned.models().iter().map(ToString::to_string).collect();
                tracing::info!(pipeline = self.plan.name, models = names.join(", "), "new version of a model");
                *query = planned;
            }
            Err(error) => {
                let text = message(&error);
                // what may pass is tried again
                if let Failure::Permanent(_) = Failure::from(error) {
                    *refused = found;
                }
                tracing::error!(
                    pipeline = self.plan.name,
                    "a new version of a model cannot be used, the one before stays: {text}"
                );
            }
        }
    }
}

/// Writes micro-batches as they come, and commits them when it is time.
fn write(
    mut sink: Box<dyn Sink>,
    mut scored: mpsc::Receiver<Scored>,
    consumer: &Consumer,
    runtime: &tokio::runtime::Handle,
) -> Result<(), Failure> {
    use rdkafka::consumer::Consumer as _;
    let mut written = None;
    loop {
        let deadline = sink.deadline();
        let next = runtime.block_on(async {
            match deadline {
                Some(at) => tokio::time::timeout_at(at.into(), scored.recv()).await.ok(),
                None => Some(scored.recv().await),
            }
        });
        let epoch = consumer.context().epoch();
        if written != Some(epoch) {
            // partitions have moved since: what was written of them and is not committed is read again
            sink.discard();
        }
        match next {
            None => sink.commit()?,
            Some(None) => return sink.commit(),
            Some(Some(batch)) if batch.epoch != epoch => continue,
            Some(Some(batch)) => {
                written = Some(epoch);
                sink.write(batch)?;
                if sink.deadline().is_some_and(|at| at <= Instant::now()) {
                    sink.commit()?;
                }
            }
        }
    }
}

fn encode(encoder: &Encoder, rows: &[datafusion::arrow::array::RecordBatch]) -> Result<Vec<Records>> {
    rows.iter().map(|rows| encoder.encode(rows)).collect()
}

async fn joined<T: Send + 'static>(task: SpawnedTask<Result<T, Failure>>) -> Result<T, Failure> {
    match task.join().await {
        Ok(done) => done,
        Err(error) => Err(Failure::Permanent(DataFusionError::External(Box::new(error)))),
    }
}

impl DeadLetter {
    /// A malformed record as it was, with headers that say why and where it stood.
    fn of(pipeline: &str, topic: &str, records: &Records, malformed: &Malformed) -> Self {
        use datafusion::arrow::array::Array;
        let i = malformed.record;
        let bytes =
            |column: &datafusion::arrow::array::BinaryArray| column.is_valid(i).then(|| column.value(i).to_vec());
        let mut headers = records.headers_of(i);
        let malformed_error = [
            ("aefusion.reason", malformed.reason.clone()),
            ("aefusion.pipeline", pipeline.to_owned()),
            ("aefusion.topic", topic.to_owned()),
            ("aefusion.partition", records.partitions().value(i).to_string()),
            ("aefusion.offset", records.offsets().value(i).to_string()),
        ];
        headers.extend(malformed_error.map(|(key, value)| (key.to_owned(), Some(value.into_bytes()))));
        Self { key: bytes(records.keys()), value: bytes(records.values()), headers }
    }
}

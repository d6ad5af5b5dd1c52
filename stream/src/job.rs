//! Runs a pipeline until it is stopped, reaches the end of its topic or fails permanently.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aefusion_udfs::catalog::Models;
use aefusion_udfs::config::AeOptions;
use aefusion_udfs::store::ModelRef;
use datafusion::common::plan_err;
use datafusion::common::runtime::SpawnedTask;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::sql::parser::Statement;
use futures::future::OptionFuture;
use tokio::sync::mpsc;

use super::failure::Failure;
use super::format::{Encoder, Malformed};
use super::kafka::{Batch, Consumer, OnMalformed, Reader, ReaderOptions, malformed_error};
use super::pipelines::check_name;
use super::query::{Insert, Query};
use super::records::Records;
use super::settings::{Delivery, Settings};
use super::sink::{DeadLetter, DeadLetters, FileSink, Output, Processed, Sink, Target, TopicSink};
use super::stats::{Counts, Stats};
use super::stop::StopHandle;
use aefusion_udfs::message;

/// Delay before a retry: the first one, and the maximum.
const FIRST_DELAY: Duration = Duration::from_millis(200);
const MAX_DELAY: Duration = Duration::from_secs(15);
/// A pipeline that is fenced twice within this time ends.
const FENCED_WINDOW: Duration = Duration::from_secs(60);

/// A planned pipeline.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) name: String,
    insert: Insert,
    target: Target,
    settings: Settings,
    limits: aefusion_udfs::model::Limits,
}

impl Plan {
    /// Plans an INSERT as a pipeline. Without `SET stream.name`, the name of the pipeline is `script_name-SINK`.
    ///
    /// # Errors
    /// A planning error with the reason if the INSERT cannot be a pipeline.
    pub(crate) async fn try_new(state: &SessionState, statement: Statement, script_name: &str) -> Result<Self> {
        let settings = Settings::of(state.config_options())?;
        let insert = Insert::try_new(state, statement).await?;
        let target = Target::of(&insert.sink, state)?;
        let name = settings.name.clone().unwrap_or_else(|| format!("{script_name}-{}", insert.sink_name));
        check_name("the pipeline name", &name)?;
        if let (Target::Topic(sink), Delivery::ExactlyOnce) = (&target, settings.delivery)
            && sink.connection.brokers != insert.source.connection.brokers
        {
            return plan_err!(
                "exactly-once delivery from {} to {} is not possible: one transaction cannot span two clusters; if \
                 they are one cluster, write the same brokers in both tables; otherwise \
                 SET stream.delivery = 'at_least_once'",
                insert.source.connection,
                sink.connection
            );
        }
        let is_at_least_once = matches!((&target, settings.delivery), (Target::Topic(_), Delivery::AtLeastOnce));
        if !is_at_least_once && insert.source.connection.reads_uncommitted() {
            return plan_err!(
                "exactly-once delivery from {} is not possible with isolation.level = 'read_uncommitted': an instance \
                 that takes over partitions would not wait for open commits; remove the option",
                insert.source.connection
            );
        }
        let limits = AeOptions::of(state.config_options()).limits();
        Ok(Self { name, insert, target, settings, limits })
    }

    /// Source and sink, for the log.
    pub(crate) fn describe(&self) -> String {
        format!("{} → {}", self.insert.source.connection, self.insert.sink_name)
    }
}

/// A pipeline with all that it needs to run.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) plan: Plan,
    pub(crate) models: Models,
    /// Name of this instance of the pipeline.
    pub(crate) instance: String,
    /// Whether to end after the topic was read to its end.
    pub(crate) until_end: bool,
    pub(crate) stop: StopHandle,
    pub(crate) stats: Arc<Stats>,
}

impl Job {
    /// Runs until a stop is requested, or until the end of the topic.
    ///
    /// # Errors
    /// The error of a permanent failure.
    pub(crate) async fn run(&self) -> Result<()> {
        let what = format!("pipeline '{}'", self.plan.name);
        let ended = self.run_with_retries().await.map_err(|e| aefusion_udfs::explain(what, e));
        self.stats.ended();
        ended
    }

    async fn run_with_retries(&self) -> Result<()> {
        let mut query = self.plan.insert.plan(&self.stats).await?;
        self.check_schema(&query)?;
        let mut delay = FIRST_DELAY;
        let mut fenced: Option<Instant> = None;
        loop {
            let started = Instant::now();
            let failure = match self.run_once(&mut query).await {
                Ok(()) => return Ok(()),
                Err(Failure::Permanent(error)) => return Err(error),
                Err(Failure::Transient(error)) => error,
                Err(Failure::Fenced(error)) => match fenced.replace(Instant::now()) {
                    Some(before) if before.elapsed() < FENCED_WINDOW => return Err(error),
                    _ => error,
                },
            };
            if self.stop.is_stopping() {
                return Err(failure);
            }
            let text = message(&failure);
            tracing::warn!(pipeline = self.plan.name, "{text}; retrying from the last commit");
            self.stats.waiting(text);
            // after running well for a while, this is a first failure again
            delay = if started.elapsed() > MAX_DELAY * 2 { FIRST_DELAY } else { delay };
            let stop = self.stop.clone();
            let slept = SpawnedTask::spawn_blocking(move || stop.sleep(delay)).join().await;
            slept.map_err(|e| DataFusionError::External(Box::new(e)))?;
            if self.stop.is_stopping() {
                return Ok(());
            }
            delay = (delay * 2).min(MAX_DELAY);
        }
    }

    /// Checks that the sink supports the columns of the query, before any record is read.
    fn check_schema(&self, query: &Query) -> Result<()> {
        let empty = datafusion::arrow::array::RecordBatch::new_empty(query.schema());
        match &self.plan.target {
            Target::Topic(table) => table.encoder()?.encode(&empty).map(drop),
            Target::Files(folder) => folder.check(),
        }
    }

    /// Opens sink and reader, and runs until something fails.
    async fn run_once(&self, query: &mut Query) -> Result<(), Failure> {
        // The sink first: it aborts the open transaction of an earlier run, and afterwards offsets no longer change.
        let mut sink = self.sink().await?;
        let reader = self.reader().await?;
        sink.set_consumer(Arc::clone(&reader.consumer));
        let consumer = Arc::clone(&reader.consumer);
        let (to_query, mut batches) = mpsc::channel::<Batch>(1);
        let (to_sink, processed) = mpsc::channel::<Processed>(1);
        let reading = SpawnedTask::spawn_blocking(move || reader.run(&to_query));
        let runtime = tokio::runtime::Handle::current();
        let writing = SpawnedTask::spawn_blocking(move || write(sink, processed, &consumer, &runtime));
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
        let start_offsets = plan.target.start_offsets(&plan.name, &plan.insert.source.connection.topic);
        let (until_end, stop, stats) = (self.until_end, self.stop.clone(), Arc::clone(&self.stats));
        let open = move || {
            let options = ReaderOptions {
                connection: &source.connection,
                group: &name,
                with_headers: source.with_headers(),
                max_rows: settings.max_batch_rows,
                max_age: settings.max_batch,
                until_end,
                start_offsets,
            };
            Reader::open(options, stop, stats)
        };
        joined(SpawnedTask::spawn_blocking(open)).await
    }

    /// Runs the query over micro-batches as they arrive.
    async fn query(
        &self,
        query: &mut Query,
        batches: &mut mpsc::Receiver<Batch>,
        to_sink: mpsc::Sender<Processed>,
    ) -> Result<(), Failure> {
        let encoder = match &self.plan.target {
            Target::Topic(table) => Some(table.encoder()?),
            Target::Files(_) => None,
        };
        let reload = self.plan.settings.reload;
        let (mut polling, mut refused) = (reload.map(|every| self.poll_models(query, every)), Vec::new());
        loop {
            let batch = tokio::select! {
                batch = batches.recv() => batch,
                // the sink has failed, and its task returns the error
                () = to_sink.closed() => return Ok(()),
                Some(found) = OptionFuture::from(polling.as_mut()) => {
                    let found = found.unwrap_or_else(|e| Err(DataFusionError::External(Box::new(e))));
                    self.reload(query, found, &mut refused).await;
                    polling = reload.map(|every| self.poll_models(query, every));
                    continue;
                }
            };
            let Some(batch) = batch else { return Ok(()) };
            let started = Instant::now();
            let stop_at_first = self.plan.insert.source.on_malformed == OnMalformed::Fail;
            let outcome = query.run(&batch.records, stop_at_first).await?;
            let dead_letters = self.handle_malformed(&batch.records, &outcome.malformed)?;
            let rows = outcome.rows.iter().map(|rows| rows.num_rows()).sum();
            let output = match &encoder {
                Some(encoder) => Output::Records(encode(encoder, &outcome.rows)?),
                None => Output::Rows(outcome.rows),
            };
            tracing::debug!(records = batch.records.len(), rows, took = ?started.elapsed(), "queried");
            let Batch { records, spans, epoch, group, since, in_flight } = batch;
            let (malformed, dead_lettered) = (outcome.malformed.len(), dead_letters.len());
            let counts = Counts { since, records: records.len(), skipped: malformed - dead_lettered, dead_lettered };
            let processed = Processed { output, rows, dead_letters, counts, spans, epoch, group, in_flight };
            if to_sink.send(processed).await.is_err() {
                return Ok(());
            }
        }
    }

    /// Fails, skips malformed records or returns dead letters, as the option `malformed` of the topic requires.
    fn handle_malformed(&self, records: &Records, malformed: &[Malformed]) -> Result<Vec<DeadLetter>> {
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
                    "{n} malformed records dead-lettered, the first: {}",
                    message(&error)
                );
                Ok(malformed.iter().map(|m| DeadLetter::of(&self.plan.name, topic, records, m)).collect())
            }
        }
    }

    /// Waits, and then returns the SHA-256 of the newest version of each model of a query. Runs in the background, so a
    /// slow model store does not delay the pipeline.
    fn poll_models(&self, query: &Query, after: Duration) -> SpawnedTask<Result<Vec<String>>> {
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

    /// Plans the query again if a model has a new version. If this fails, the current query stays.
    async fn reload(&self, query: &mut Query, found: Result<Vec<String>>, refused: &mut Vec<String>) {
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                let pipeline = &self.plan.name;
                return tracing::warn!(pipeline, "could not check for new versions of models: {}", message(&error));
            }
        };
        let is_in_use = query.models().iter().map(|model| model.sha256_hex()).eq(found.iter().cloned());
        if is_in_use || found == *refused {
            return;
        }
        match self.plan.insert.plan(&self.stats).await {
            Ok(planned) => {
                let names: Vec<String> = planned.models().iter().map(ToString::to_string).collect();
                tracing::info!(
                    pipeline = self.plan.name,
                    models = names.join(", "),
                    "switched to a new version of a model"
                );
                *query = planned;
            }
            Err(error) => {
                let text = message(&error);
                // a transient error is retried at the next check
                if let Failure::Permanent(_) = Failure::from(error) {
                    *refused = found;
                }
                tracing::error!(
                    pipeline = self.plan.name,
                    "a new version of a model cannot be used, and the current version stays: {text}"
                );
            }
        }
    }
}

/// Writes micro-batches as they arrive, and commits them at the deadlines of the sink.
fn write(
    mut sink: Box<dyn Sink>,
    mut processed: mpsc::Receiver<Processed>,
    consumer: &Consumer,
    runtime: &tokio::runtime::Handle,
) -> Result<(), Failure> {
    use rdkafka::consumer::Consumer as _;
    let mut written = None;
    loop {
        let deadline = sink.deadline();
        let next = runtime.block_on(async {
            match deadline {
                Some(at) => tokio::time::timeout_at(at.into(), processed.recv()).await.ok(),
                None => Some(processed.recv().await),
            }
        });
        let epoch = consumer.context().epoch();
        if written != Some(epoch) {
            // partitions have moved, and their uncommitted records are read again
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
    /// A copy of a malformed record. Additional headers have the reason and the position of the record.
    fn of(pipeline: &str, topic: &str, records: &Records, malformed: &Malformed) -> Self {
        use datafusion::arrow::array::Array;
        let i = malformed.record;
        let bytes =
            |column: &datafusion::arrow::array::BinaryArray| column.is_valid(i).then(|| column.value(i).to_vec());
        let mut headers = records.headers_of(i);
        let added = [
            ("aefusion.reason", malformed.reason.clone()),
            ("aefusion.pipeline", pipeline.to_owned()),
            ("aefusion.topic", topic.to_owned()),
            ("aefusion.partition", records.partitions().value(i).to_string()),
            ("aefusion.offset", records.offsets().value(i).to_string()),
        ];
        headers.extend(added.map(|(key, value)| (key.to_owned(), Some(value.into_bytes()))));
        Self { key: bytes(records.keys()), value: bytes(records.values()), headers }
    }
}

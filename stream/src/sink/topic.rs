//! The sink for a topic: rows and offsets in one transaction, or at-least-once delivery without transactions.

use std::sync::Arc;
use std::time::Instant;

use rdkafka::consumer::{CommitMode, Consumer as _};

use super::{DeadLetter, Output, Processed, Sink};
use crate::failure::Failure;
use crate::kafka::{Connection, Consumer, Producer, offsets};
use crate::settings::Delivery;
use crate::stats::Stats;
use crate::stop::StopHandle;

/// Writes micro-batches to a topic, and commits each of them immediately.
pub(crate) struct TopicSink {
    source: Connection,
    topic: Connection,
    delivery: Delivery,
    producer: Arc<Producer>,
    dead_letters: Option<DeadLetters>,
    stats: Arc<Stats>,
    /// Commits offsets outside of transactions.
    consumer: Option<Arc<Consumer>>,
}

impl TopicSink {
    /// Opens a producer. `name` is its transactional ID.
    ///
    /// # Errors
    /// See [`Failure`].
    pub(crate) fn open(
        source: &Connection,
        topic: &Connection,
        dead_letters: Option<&Connection>,
        delivery: Delivery,
        name: &str,
        stop: &StopHandle,
        stats: &Arc<Stats>,
    ) -> Result<Self, Failure> {
        let producer = match delivery {
            Delivery::ExactlyOnce => Producer::transactional(topic, name, stop.clone())?,
            Delivery::AtLeastOnce => Producer::idempotent(topic, stop.clone())?,
        };
        let producer = Arc::new(producer);
        let dead_letters = match (dead_letters, delivery) {
            (None, _) => None,
            (Some(letters), Delivery::ExactlyOnce) => {
                producer.check(letters)?;
                Some(DeadLetters { topic: letters.topic.clone(), producer: Arc::clone(&producer) })
            }
            (Some(letters), Delivery::AtLeastOnce) => Some(DeadLetters::open(letters, stop)?),
        };
        Ok(Self {
            source: source.clone(),
            topic: topic.clone(),
            delivery,
            producer,
            dead_letters,
            stats: Arc::clone(stats),
            consumer: None,
        })
    }

    fn send(&self, batch: &Processed) -> Result<(), Failure> {
        if let Output::Records(encoded) = &batch.output {
            for records in encoded {
                self.producer.send(&self.topic.topic, records)?;
            }
        }
        match &self.dead_letters {
            Some(letters) => letters.send(&batch.dead_letters),
            None => Ok(()),
        }
    }

    fn transaction(&self, batch: &Processed) -> Result<(), Failure> {
        let started = Instant::now();
        self.producer.begin()?;
        let sent = self.send(batch);
        let queued = started.elapsed();
        let done = sent.and_then(|()| self.producer.commit(&self.source.topic, &batch.spans, batch.group.as_ref()));
        if done.is_err() {
            self.producer.abort();
        }
        tracing::debug!(rows = batch.rows, ?queued, transaction = ?started.elapsed(), "written");
        done
    }

    fn at_least_once(&self, batch: &Processed) -> Result<(), Failure> {
        self.send(batch)?;
        self.producer.flush()?;
        if let Some(letters) = &self.dead_letters {
            letters.flush()?;
        }
        let Some(consumer) = &self.consumer else { return Ok(()) };
        let committed = consumer.commit(&offsets(&self.source.topic, &batch.spans)?, CommitMode::Sync);
        committed.map_err(|e| Failure::transient(format!("committing offsets: {e}")))
    }
}

impl Sink for TopicSink {
    fn write(&mut self, batch: Processed) -> Result<(), Failure> {
        match self.delivery {
            Delivery::ExactlyOnce => self.transaction(&batch)?,
            Delivery::AtLeastOnce => self.at_least_once(&batch)?,
        }
        self.stats.batch(&batch.counts);
        self.stats.committed(batch.spans.iter().map(|(partition, span)| (*partition, span.to)), batch.rows);
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn commit(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn discard(&mut self) {}

    fn set_consumer(&mut self, consumer: Arc<Consumer>) {
        self.consumer = Some(consumer);
    }
}

/// The dead-letter topic.
#[derive(Debug)]
pub(crate) struct DeadLetters {
    topic: String,
    /// A separate producer, or the producer of the rows: then dead letters are part of its transactions.
    producer: Arc<Producer>,
}

impl DeadLetters {
    /// Opens a separate producer, with at-least-once delivery.
    ///
    /// # Errors
    /// See [`Failure`].
    pub(crate) fn open(letters: &Connection, stop: &StopHandle) -> Result<Self, Failure> {
        let producer = Arc::new(Producer::idempotent(letters, stop.clone())?);
        Ok(Self { topic: letters.topic.clone(), producer })
    }

    /// Queues dead letters.
    pub(super) fn send(&self, letters: &[DeadLetter]) -> Result<(), Failure> {
        for letter in letters {
            let (key, value) = (letter.key.as_deref(), letter.value.as_deref());
            self.producer.send_one(&self.topic, key, value, &letter.headers)?;
        }
        Ok(())
    }

    /// Waits until all dead letters are written.
    pub(super) fn flush(&self) -> Result<(), Failure> {
        self.producer.flush()
    }
}

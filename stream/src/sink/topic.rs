//! Rows to a topic: with their offsets in one transaction, or at least once.

use std::sync::Arc;
use std::time::Instant;

use rdkafka::consumer::{CommitMode, Consumer as _};

use super::{DeadLetter, Output, Scored, Sink};
use crate::failure::Failure;
use crate::kafka::{Connection, Consumer, Producer, offsets};
use crate::settings::Delivery;
use crate::stats::Stats;
use crate::stop::Stop;

/// Writes micro-batches to a topic; each is committed when it is written.
pub(crate) struct TopicSink {
    source: Connection,
    topic: Connection,
    delivery: Delivery,
    producer: Arc<Producer>,
    dead_letters: Option<DeadLetters>,
    stats: Arc<Stats>,
    /// For commits outside of transactions.
    consumer: Option<Arc<Consumer>>,
}

impl TopicSink {
    /// `name` is that of its transactions.
    ///
    /// # Errors
    /// See [`Failure`].
    pub(crate) fn open(
        source: &Connection,
        topic: &Connection,
        dead_letters: Option<&Connection>,
        delivery: Delivery,
        name: &str,
        stop: &Stop,
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

    fn send(&self, scored: &Scored) -> Result<(), Failure> {
        if let Output::Records(batches) = &scored.output {
            for records in batches {
                self.producer.send(&self.topic.topic, records)?;
            }
        }
        match &self.dead_letters {
            Some(letters) => letters.send(&scored.dead),
            None => Ok(()),
        }
    }

    fn transaction(&self, scored: &Scored) -> Result<(), Failure> {
        let begun = Instant::now();
        self.producer.begin()?;
        let sent = self.send(scored);
        let handed_over = begun.elapsed();
        let done = sent.and_then(|()| self.producer.commit(&self.source.topic, &scored.spans, scored.group.as_ref()));
        if done.is_err() {
            self.producer.abort();
        }
        tracing::debug!(rows = scored.rows, ?handed_over, transaction = ?begun.elapsed(), "written");
        done
    }

    fn at_least_once(&self, scored: &Scored) -> Result<(), Failure> {
        self.send(scored)?;
        self.producer.flush()?;
        if let Some(letters) = &self.dead_letters {
            letters.flush()?;
        }
        let Some(consumer) = &self.consumer else { return Ok(()) };
        let committed = consumer.commit(&offsets(&self.source.topic, &scored.spans)?, CommitMode::Sync);
        committed.map_err(|e| Failure::transient(format!("committing offsets: {e}")))
    }
}

impl Sink for TopicSink {
    fn write(&mut self, scored: Scored) -> Result<(), Failure> {
        match self.delivery {
            Delivery::ExactlyOnce => self.transaction(&scored)?,
            Delivery::AtLeastOnce => self.at_least_once(&scored)?,
        }
        self.stats.batch(&scored.counts);
        self.stats.committed(scored.spans.iter().map(|(partition, span)| (*partition, span.to)), scored.rows);
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn commit(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn discard(&mut self) {}

    fn tell(&mut self, consumer: Arc<Consumer>) {
        self.consumer = Some(consumer);
    }
}

/// The topic of malformed records.
#[derive(Debug)]
pub(crate) struct DeadLetters {
    topic: String,
    /// Of their own, or that of the rows, whose transactions they are part of.
    producer: Arc<Producer>,
}

impl DeadLetters {
    /// They are written for themselves, at least once.
    pub(crate) fn open(letters: &Connection, stop: &Stop) -> Result<Self, Failure> {
        let producer = Arc::new(Producer::idempotent(letters, stop.clone())?);
        Ok(Self { topic: letters.topic.clone(), producer })
    }

    pub(super) fn send(&self, dead: &[DeadLetter]) -> Result<(), Failure> {
        for letter in dead {
            let (key, value) = (letter.key.as_deref(), letter.value.as_deref());
            self.producer.send_one(&self.topic, key, value, &letter.headers)?;
        }
        Ok(())
    }

    pub(super) fn flush(&self) -> Result<(), Failure> {
        self.producer.flush()
    }
}

//! Where a topic is, and how to get there.

use std::collections::BTreeMap;
use std::fmt;

use datafusion::common::plan_err;
use datafusion::error::{DataFusionError, Result};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use strum::{EnumString, IntoStaticStr, VariantNames};

use super::cause;
use super::consume::METADATA;
use crate::failure::Failure;

/// Settings of librdkafka that a pipeline makes itself.
const OWN: [&str; 13] = [
    "bootstrap.servers",
    "delivery.report.only.error",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "group.protocol",
    "group.remote.assignor",
    "metadata.broker.list",
    "partition.assignment.strategy",
    "statistics.interval.ms",
    "transactional.id",
];

/// Settings that run code of somebody else.
const CODE: [&str; 6] = [
    "plugin.library.paths",
    "sasl.kerberos.kinit.cmd",
    "ssl.engine.id",
    "ssl.engine.location",
    "ssl.provider",
    "ssl.providers",
];

/// Settings whose values are secrets.
const SECRETS: [&str; 9] = [
    "sasl.oauthbearer.assertion.private.key.pem",
    "sasl.oauthbearer.client.credentials.client.secret",
    "sasl.oauthbearer.assertion.private.key.passphrase",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.config",
    "sasl.password",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.password",
];

/// What is done with a record that no row can be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case", ascii_case_insensitive)]
pub(crate) enum OnMalformed {
    Fail,
    Skip,
    DeadLetter,
}

/// A topic of some brokers. What it shows of itself holds no secret.
#[derive(Clone)]
pub(crate) struct Connection {
    /// `host:port`, several with commas.
    pub(crate) brokers: String,
    pub(crate) topic: String,
    /// Partitions of the topic when it is made because it is missing; none: it is not made.
    partitions: Option<i32>,
    settings: BTreeMap<String, String>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("brokers", &self.brokers).field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kafka://{}/{}", self.brokers, self.topic)
    }
}

impl Connection {
    /// A location, and settings of librdkafka with their secrets already read.
    ///
    /// # Errors
    /// A planning error if the location is none, a setting is unknown or wrong, or is one that pipelines make themselves.
    pub(crate) fn try_new(location: &str, settings: BTreeMap<String, String>) -> Result<Self> {
        let Some((brokers, topic)) = location.strip_prefix("kafka://").and_then(|rest| rest.split_once('/')) else {
            return plan_err!(
                "LOCATION must be 'kafka://host:port/topic', several brokers with commas; found '{location}'"
            );
        };
        let brokers = resolve("LOCATION", brokers.to_owned())?;
        let is_topic = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if brokers.is_empty() || topic.is_empty() || topic.len() > 249 || !topic.chars().all(is_topic) {
            return plan_err!(
                "LOCATION must name brokers and a topic, of letters, digits, '.', '_' and '-'; found '{location}'"
            );
        }
        if let Some(own) = settings.keys().find(|key| OWN.contains(&key.as_str())) {
            return plan_err!("{own} cannot be set: it follows from the table and the pipeline");
        }
        let mut settings = settings;
        let partitions = match settings.remove("partitions").map(|n| (n.parse::<i32>(), n)) {
            None => None,
            Some((Ok(n), _)) if n > 0 => Some(n),
            Some((_, n)) => return plan_err!("the option partitions must be a whole number from 1 up; found '{n}'"),
        };
        if let Some(code) = settings.keys().find(|key| CODE.contains(&key.as_str())) {
            return plan_err!("{code} cannot be set: a statement could run any program with it");
        }
        let connection = Self { brokers, topic: topic.to_owned(), partitions, settings };
        connection.client().create_native_config().map_err(|e| match e {
            // not the value, which may be a secret
            KafkaError::ClientConfig(_, reason, key, _) if !SECRETS.contains(&key.as_str()) => {
                DataFusionError::Plan(format!(
                    "the option '{key}' is neither one of the table's nor a setting that librdkafka takes: {reason}"
                ))
            }
            KafkaError::ClientConfig(_, _, key, _) => {
                DataFusionError::Plan(format!("librdkafka does not take the value of '{key}'"))
            }
            other => DataFusionError::Plan(other.to_string()),
        })?;
        Ok(connection)
    }

    /// Another topic of the same brokers.
    pub(crate) fn to(&self, topic: &str) -> Result<Self> {
        let other = Self::try_new(&format!("kafka://{}/{topic}", self.brokers), self.settings.clone())?;
        Ok(Self { partitions: self.partitions, ..other })
    }

    /// Settings of a client.
    pub(crate) fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers).set("client.id", "aefusion");
        for (key, value) in &self.settings {
            config.set(key, value);
        }
        config
    }

    /// Whether a pipeline makes the topic if it is missing.
    pub(crate) fn creates_topic(&self) -> bool {
        self.partitions.is_some()
    }

    /// Whether records are read before their transactions are committed.
    pub(crate) fn reads_uncommitted(&self) -> bool {
        self.settings.get("isolation.level").is_some_and(|level| level == "read_uncommitted")
    }

    /// Makes the topic if it is missing and the table says with how many partitions.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(crate) fn create_topic(&self) -> Result<(), Failure> {
        let Some(partitions) = self.partitions else { return Ok(()) };
        let admin: AdminClient<DefaultClientContext> =
            self.client().create().map_err(|e| Failure::transient(cause(&e)))?;
        // -1: as often as the brokers have it
        let topic = NewTopic::new(&self.topic, partitions, TopicReplication::Fixed(-1));
        let options = AdminOptions::new().request_timeout(Some(METADATA));
        let made = futures::executor::block_on(admin.create_topics([&topic], &options));
        let made = made.map_err(|e| Failure::transient(format!("no answer from {}: {}", self.brokers, cause(&e))))?;
        for made in made {
            match made {
                Ok(topic) => tracing::info!(topic, partitions, "topic made"),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => return Err(Failure::permanent(format!("could not make the topic '{topic}': {code}"))),
            }
        }
        Ok(())
    }

    /// Sets what the user has not.
    pub(crate) fn set_default(&self, config: &mut ClientConfig, key: &str, value: &str) {
        if !self.settings.contains_key(key) {
            config.set(key, value);
        }
    }
}

/// The value of an option: `env:NAME` is a variable of the environment, `file:PATH` is what a file holds.
///
/// # Errors
/// A planning error if that cannot be read, or if a secret stands in the statement itself.
pub(crate) fn resolve(key: &str, value: String) -> Result<String> {
    if let Some(name) = value.strip_prefix("env:") {
        return std::env::var(name)
            .map_err(|_| DataFusionError::Plan(format!("the option '{key}': the environment has no {name}")));
    }
    if let Some(path) = value.strip_prefix("file:") {
        let text = std::fs::read_to_string(path)
            .map_err(|e| DataFusionError::Plan(format!("the option '{key}': could not read the file '{path}': {e}")))?;
        return Ok(text.trim_end_matches(['\n', '\r']).to_owned());
    }
    if SECRETS.contains(&key) {
        return plan_err!(
            "the option '{key}' is a secret, which would be seen in the statement; give 'env:NAME' for a variable of the \
             environment, or 'file:PATH' for a file"
        );
    }
    Ok(value)
}

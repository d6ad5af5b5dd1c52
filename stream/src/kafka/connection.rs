//! How to connect to a topic: brokers, topic name, and settings of librdkafka.

use std::collections::BTreeMap;
use std::fmt;

use datafusion::common::plan_err;
use datafusion::error::{DataFusionError, Result};
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use strum::{EnumString, IntoStaticStr, VariantNames};

/// Settings of librdkafka that the table and the pipeline determine.
const RESERVED: [&str; 13] = [
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

/// Settings that load or run foreign code.
const RUNS_CODE: [&str; 6] = [
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

/// What a pipeline does with a record that cannot be decoded into a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case", ascii_case_insensitive)]
pub(crate) enum OnMalformed {
    Fail,
    Skip,
    DeadLetter,
}

/// A topic on a cluster. Its `Debug` and `Display` output contains no secrets.
#[derive(Clone)]
pub(crate) struct Connection {
    /// `host:port`, separated by commas if there are several.
    pub(crate) brokers: String,
    pub(crate) topic: String,
    /// Number of partitions for creating a missing topic; none: a missing topic is an error.
    pub(super) partitions: Option<i32>,
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
    /// Checks a location and settings of librdkafka. Secrets in the settings are already resolved.
    ///
    /// # Errors
    /// A planning error if the location is not valid, or if a setting is unknown, wrong or reserved.
    pub(crate) fn try_new(location: &str, settings: BTreeMap<String, String>) -> Result<Self> {
        let Some((brokers, topic)) = location.strip_prefix("kafka://").and_then(|rest| rest.split_once('/')) else {
            return plan_err!(
                "LOCATION must be 'kafka://host:port/topic', with commas between several brokers; found '{location}'"
            );
        };
        let brokers = resolve("LOCATION", brokers.to_owned())?;
        let is_topic = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if brokers.is_empty() || topic.is_empty() || topic.len() > 249 || !topic.chars().all(is_topic) {
            return plan_err!(
                "LOCATION must name brokers and a topic, which may have up to 249 letters, digits, '.', '_' and '-'; \
                 found '{location}'"
            );
        }
        if let Some(reserved) = settings.keys().find(|key| RESERVED.contains(&key.as_str())) {
            return plan_err!("the option '{reserved}' cannot be set: the table and the pipeline determine it");
        }
        let mut settings = settings;
        let partitions = match settings.remove("partitions").map(|n| (n.parse::<i32>(), n)) {
            None => None,
            Some((Ok(n), _)) if n > 0 => Some(n),
            Some((_, n)) => return plan_err!("the option partitions must be a whole number from 1 up; found '{n}'"),
        };
        if let Some(runs_code) = settings.keys().find(|key| RUNS_CODE.contains(&key.as_str())) {
            return plan_err!("the option '{runs_code}' cannot be set: a statement could run any program with it");
        }
        let connection = Self { brokers, topic: topic.to_owned(), partitions, settings };
        connection.client().create_native_config().map_err(|e| match e {
            // without the value, which may be a secret
            KafkaError::ClientConfig(_, reason, key, _) if !SECRETS.contains(&key.as_str()) => {
                DataFusionError::Plan(format!(
                    "the option '{key}' is neither an option of the table nor a setting that librdkafka accepts: \
                     {reason}"
                ))
            }
            KafkaError::ClientConfig(_, _, key, _) => {
                DataFusionError::Plan(format!("librdkafka does not accept the value of '{key}'"))
            }
            other => DataFusionError::Plan(other.to_string()),
        })?;
        Ok(connection)
    }

    /// The same connection with another topic.
    pub(crate) fn to(&self, topic: &str) -> Result<Self> {
        let other = Self::try_new(&format!("kafka://{}/{topic}", self.brokers), self.settings.clone())?;
        Ok(Self { partitions: self.partitions, ..other })
    }

    /// Configuration of a client of librdkafka.
    pub(crate) fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers).set("client.id", "aefusion");
        for (key, value) in &self.settings {
            config.set(key, value);
        }
        config
    }

    /// Whether readers see records of transactions that are not committed.
    pub(crate) fn reads_uncommitted(&self) -> bool {
        self.settings.get("isolation.level").is_some_and(|level| level == "read_uncommitted")
    }

    /// Sets a value that the user has not set.
    pub(crate) fn set_default(&self, config: &mut ClientConfig, key: &str, value: &str) {
        if !self.settings.contains_key(key) {
            config.set(key, value);
        }
    }
}

/// The value of an option: `env:NAME` reads an environment variable, and `file:PATH` reads a file.
///
/// # Errors
/// A planning error if the variable or the file cannot be read, or if a secret is written in the statement itself.
pub(crate) fn resolve(key: &str, value: String) -> Result<String> {
    if let Some(name) = value.strip_prefix("env:") {
        return std::env::var(name).map_err(|_| {
            DataFusionError::Plan(format!("the option '{key}': there is no environment variable {name}"))
        });
    }
    if let Some(path) = value.strip_prefix("file:") {
        let text = std::fs::read_to_string(path)
            .map_err(|e| DataFusionError::Plan(format!("the option '{key}': could not read the file '{path}': {e}")))?;
        return Ok(text.trim_end_matches(['\n', '\r']).to_owned());
    }
    if SECRETS.contains(&key) {
        return plan_err!(
            "the option '{key}' is a secret, and statements are logged and listed; use 'env:NAME' to read an \
             environment variable, or 'file:PATH' to read a file"
        );
    }
    Ok(value)
}

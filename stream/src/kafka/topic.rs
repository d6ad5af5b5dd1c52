//! Topics on their brokers: whether a topic exists, and its creation.

use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{Client, DefaultClientContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::types::RDKafkaRespErr;

use super::{Connection, cause};
use crate::failure::Failure;

/// Timeout of requests for metadata.
pub(crate) const METADATA_TIMEOUT: Duration = Duration::from_secs(10);
/// Time after which every broker should know a new topic.
const TOPIC_PROPAGATION: Duration = Duration::from_secs(3);

/// Creates the topic if it is missing and the table has the option `partitions`.
///
/// # Errors
/// A transient failure if no broker answers, a permanent one if brokers refuse the topic.
pub(crate) fn create_topic(connection: &Connection) -> Result<(), Failure> {
    let Some(partitions) = connection.partitions else { return Ok(()) };
    let admin: AdminClient<DefaultClientContext> =
        connection.client().create().map_err(|e| Failure::transient(cause(&e)))?;
    // -1: the replication factor that the brokers have as their default
    let topic = NewTopic::new(&connection.topic, partitions, TopicReplication::Fixed(-1));
    let options = AdminOptions::new().request_timeout(Some(METADATA_TIMEOUT));
    let created = futures::executor::block_on(admin.create_topics([&topic], &options));
    let created = created.map_err(|e| no_answer(connection, &cause(&e)))?;
    for created in created {
        match created {
            Ok(topic) => tracing::info!(topic, partitions, "topic created"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => {
                return Err(Failure::permanent(format!("could not create the topic '{topic}': {code}")));
            }
        }
    }
    Ok(())
}

/// Partitions of a topic, and an error if the topic does not exist.
///
/// # Errors
/// A transient failure if no broker answers; a permanent one if the topic is missing or access is denied.
pub(crate) fn partitions_of<C: ClientContext>(
    client: &Client<C>,
    connection: &Connection,
) -> Result<Vec<i32>, Failure> {
    let topic = &connection.topic;
    let started = Instant::now();
    let (partitions, error) = loop {
        let metadata =
            client.fetch_metadata(Some(topic), METADATA_TIMEOUT).map_err(|e| no_answer(connection, &cause(&e)))?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let error = match found {
            Some(found) => found.error(),
            None => Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART),
        };
        let is_missing = error == Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART);
        if !is_missing || started.elapsed() > TOPIC_PROPAGATION {
            let partitions = found.map(|found| found.partitions().iter().map(|p| p.id()).collect::<Vec<i32>>());
            break (partitions.unwrap_or_default(), error);
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    match error {
        None => Ok(partitions),
        Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) => Err(missing(connection)),
        Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED) => Err(Failure::permanent(format!(
            "{} does not allow this user to use the topic '{topic}'",
            connection.brokers
        ))),
        Some(error) => Err(Failure::transient(format!("topic '{topic}': {}", RDKafkaErrorCode::from(error)))),
    }
}

fn no_answer(connection: &Connection, cause: &str) -> Failure {
    Failure::transient(format!("no answer from {}: {cause}", connection.brokers))
}

fn missing(connection: &Connection) -> Failure {
    let missing = format!("{} has no topic '{}'", connection.brokers, connection.topic);
    match connection.partitions {
        // the topic was just created, and some broker does not know it yet
        Some(_) => Failure::transient(missing),
        None => Failure::permanent(format!(
            "{missing}; create it, or set the option partitions of the table for a pipeline to create it"
        )),
    }
}

//! Malformed records, and records that make the query fail.

use rdkafka::Message;
use xtask::kafka::Broker;

use crate::faults::{COPY, tables};
use crate::place::Place;
use crate::topics::{Record, consume, headers, number, produce, texts, topic};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("fails_the_pipeline", malformed_fails),
    ("is_skipped", malformed_is_skipped),
    ("goes_to_dead_letters", malformed_goes_to_dead_letters),
    ("poison_goes_to_dead_letters", poison_goes_to_dead_letters),
    ("record_that_a_model_cannot_run", record_that_a_model_cannot_run),
];

/// Every hundredth record is not what the table says.
fn with_malformed(n: usize) -> impl Iterator<Item = Record> {
    const WRONG: [&str; 5] = ["{\"id\":1,\"a\":", "{\"id\":\"no\"}", "[1]", "", "{\"id\":1}{\"id\":2}"];
    (0..n).map(|i| match i % 100 {
        42 => Record { key: Some(i.to_string()), ..Record::of(WRONG[i / 100 % WRONG.len()]) },
        _ => number(i),
    })
}

fn good(n: usize) -> usize {
    n - n / 100
}

fn malformed_fails(broker: &Broker) {
    let (from, to) = (topic(broker, "numbers", 1), topic(broker, "copy", 1));
    produce(broker, &from, with_malformed(1_000));
    let place = Place::new();
    let (status, log) = place.run(&(tables(broker, &from, &to, "") + COPY), &["--until-end"]).wait();
    assert_eq!(status.code(), Some(1));
    let expected = format!("topic '{from}', partition 0, offset 42: the record is malformed");
    assert!(log.contains(&expected), "{log}");
    // its batch is not committed
    assert_eq!(consume(broker, &to).len(), 0);
    let read = place.sql(&(tables(broker, &from, &to, "") + "SELECT count(a) FROM numbers;")).unwrap_err();
    assert!(read.contains(&expected), "{read}");
}

fn malformed_is_skipped(broker: &Broker) {
    let (from, to) = (topic(broker, "numbers", 2), topic(broker, "copy", 2));
    produce(broker, &from, with_malformed(10_000));
    let place = Place::new();
    let log = place.run_to_end(&(tables(broker, &from, &to, ", 'malformed' 'skip'") + COPY));
    assert!(log.contains("10000 records") && log.contains("100 skipped"), "{log}");
    assert_eq!(consume(broker, &to).len(), good(10_000));
}

fn malformed_goes_to_dead_letters(broker: &Broker) {
    let (from, to) = (topic(broker, "numbers", 1), topic(broker, "copy", 1));
    let dead = topic(broker, "dead", 1);
    let with_header = |record: Record| Record { headers: vec![("of".to_owned(), "before".to_owned())], ..record };
    produce(broker, &from, with_malformed(10_000).map(with_header));
    let place = Place::new();
    let options = format!(", 'malformed' 'dead_letter', 'dead_letter_topic' '{dead}'");
    place.run_to_end(&(tables(broker, &from, &to, &options) + COPY));
    assert_eq!(consume(broker, &to).len(), good(10_000));
    let letters = consume(broker, &dead);
    assert_eq!(letters.len(), 100);
    let first = &letters[0];
    assert_eq!(first.key(), Some(b"42".as_slice()));
    assert_eq!(first.payload(), Some(b"{\"id\":1,\"a\":".as_slice()));
    let kept = headers(first);
    assert_eq!(kept["of"], "before");
    assert_eq!(kept["aefusion.topic"], from);
    assert_eq!(kept["aefusion.pipeline"], "pipeline-copy");
    assert_eq!((kept["aefusion.partition"].as_str(), kept["aefusion.offset"].as_str()), ("0", "42"));
    assert_eq!(kept["aefusion.reason"], "the JSON object is incomplete");
}

/// Well-formed records that make the query fail.
fn poison_goes_to_dead_letters(broker: &Broker) {
    let (from, to, dead) = (topic(broker, "texts", 1), topic(broker, "copy", 1), topic(broker, "dead", 1));
    let text = |i: usize| if i % 1_000 == 7 { "x".to_owned() } else { i.to_string() };
    produce(broker, &from, (0..5_000).map(|i| Record::of(format!("{{\"id\":\"{}\"}}", text(i)))));
    let place = Place::new();
    let sql = format!(
        "CREATE EXTERNAL TABLE texts (id VARCHAR) STORED AS KAFKA LOCATION 'kafka://{b}/{from}'
           OPTIONS ('malformed' 'dead_letter', 'dead_letter_topic' '{dead}');
         CREATE EXTERNAL TABLE copy (id BIGINT) STORED AS KAFKA LOCATION 'kafka://{b}/{to}';
         INSERT INTO copy SELECT CAST(id AS BIGINT) FROM texts;",
        b = broker.bootstrap()
    );
    place.run_to_end(&sql);
    assert_eq!(consume(broker, &to).len(), 4_995);
    // in their order
    let expected: Vec<String> = (0..5_000).filter(|i| i % 1_000 != 7).map(|i| format!("{{\"id\":{i}}}")).collect();
    assert_eq!(texts(&consume(broker, &to)), expected);
    let letters = consume(broker, &dead);
    let offsets: Vec<String> = letters.iter().map(|letter| headers(letter)["aefusion.offset"].clone()).collect();
    assert_eq!(offsets, ["7", "1007", "2007", "3007", "4007"]);
    assert!(headers(&letters[0])["aefusion.reason"].contains("Cannot cast string 'x'"), "{:?}", headers(&letters[0]));
}

/// A model that looks up its input has no answer for some.
fn record_that_a_model_cannot_run(broker: &Broker) {
    let (from, to, dead) = (topic(broker, "indices", 1), topic(broker, "errors", 1), topic(broker, "dead", 1));
    produce(broker, &from, (0..4_000).map(|i| Record::of(format!("{{\"id\":{i},\"a\":{}}}", i % 3 + i / 3_999 * 9))));
    let place = Place::new();
    let sql = format!(
        "CREATE MODEL lookup OPTIONS (model_type = 'onnx', model_path = '{}');
         CREATE EXTERNAL TABLE indices (id BIGINT, a REAL) STORED AS KAFKA LOCATION 'kafka://{b}/{from}'
           OPTIONS ('malformed' 'dead_letter', 'dead_letter_topic' '{dead}');
         CREATE EXTERNAL TABLE errors (id BIGINT, error DOUBLE) STORED AS KAFKA LOCATION 'kafka://{b}/{to}';
         INSERT INTO errors SELECT id, ae_error('lookup') FROM indices;",
        xtask::root().join("tests").join("models").join("lookup.onnx").display(),
        b = broker.bootstrap()
    );
    place.run_to_end(&sql);
    // 0 gives 1, 1 gives 3, 2 gives 5
    let expected = (0..3_999).map(|i| format!("{{\"id\":{i},\"error\":{}.0}}", [1, 4, 9][i % 3]));
    assert_eq!(texts(&consume(broker, &to)), expected.collect::<Vec<_>>());
    let letters = consume(broker, &dead);
    assert_eq!(texts(&letters), ["{\"id\":3999,\"a\":9}"]);
    assert!(headers(&letters[0])["aefusion.reason"].contains("indices element out of data bounds"), "{letters:?}");
}

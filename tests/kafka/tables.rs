//! Topics as tables.

use rdkafka::Message;
use xtask::kafka::{Broker, USER};

use crate::place::Place;
use crate::topics::{Record, consume, headers, produce, texts, topic};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("json", json),
    ("csv", csv),
    ("avro", avro),
    ("raw", raw),
    ("what_kafka_knows_of_a_record", metadata),
    ("joins_with_tables", joins_with_tables),
    ("secured", secured),
    ("unknown_topic", unknown_topic),
];

fn table(broker: &Broker, topic: &str, columns: &str, options: &str) -> String {
    let options = if options.is_empty() { String::new() } else { format!("OPTIONS ({options})") };
    format!(
        "CREATE EXTERNAL TABLE t ({columns}) STORED AS KAFKA LOCATION 'kafka://{}/{topic}' {options};",
        broker.bootstrap()
    )
}

fn json(broker: &Broker) {
    let topic = topic(broker, "json", 1);
    let values =
        ["{\"id\":1,\"name\":\"a\\nb\",\"more\":{\"x\":1.5},\"list\":[1,2]}", " {\"id\": 2, \"unknown\": []}\n"];
    produce(broker, &topic, values.map(Record::of));
    // a record without value has columns without value
    produce(broker, &topic, [Record { key: Some("k".to_owned()), ..Record::default() }]);
    let place = Place::new();
    let table = table(broker, &topic, "id BIGINT, name VARCHAR, more STRUCT<x DOUBLE>, list BIGINT[]", "");
    let read =
        place.sql(&(table.clone() + "SELECT id, replace(name, chr(10), '/'), more['x'], list[2] FROM t")).unwrap();
    assert_eq!(read, "1,a/b,1.5,2\n2,,,\n,,,");
    assert_eq!(place.sql(&(table.clone() + "SELECT count(*) FROM t LIMIT 5")).unwrap(), "3");
    place.sql(&(table + "INSERT INTO t VALUES (3, 'c', NULL, [7])")).unwrap();
    assert_eq!(texts(&consume(broker, &topic)).last().unwrap(), "{\"id\":3,\"name\":\"c\",\"list\":[7]}");
}

fn csv(broker: &Broker) {
    let topic = topic(broker, "csv", 1);
    produce(broker, &topic, ["1;\"a;\n\"\"b\";2.5\r\n", "2;;"].map(Record::of));
    let place = Place::new();
    let table = table(broker, &topic, "id BIGINT, name VARCHAR, x DOUBLE", "'format' 'csv', 'delimiter' ';'");
    let read = place.sql(&(table.clone() + "SELECT x, id, replace(name, chr(10), '/') FROM t")).unwrap();
    assert_eq!(read, "2.5,1,\"a;/\"\"b\"\n,2,");
    place.sql(&(table + "INSERT INTO t VALUES (3, 'c', 0.5), (4, 'd' || chr(10) || 'e', NULL)")).unwrap();
    assert_eq!(texts(&consume(broker, &topic))[2..], ["3;c;0.5", "4;\"d\ne\";"]);
}

/// Bytes and fingerprint of the schema are those of fastavro 1.12.
fn avro(broker: &Broker) {
    const SCHEMA: &str = "{\"type\":\"record\",\"name\":\"reading\",\"fields\":[{\"name\":\"id\",\"type\":\"long\"},\
                          {\"name\":\"a\",\"type\":[\"null\",\"double\"]}]}";
    let bodies: [&[u8]; 2] = [&[2, 2, 0, 0, 0, 0, 0, 0, 0x0c, 0x40], &[0x8b, 1, 0]];
    let fingerprint = [0x30, 0x96, 0x9c, 0x59, 0x06, 0xe5, 0xf4, 0xdd];
    let framings: [(&str, String, Vec<u8>); 3] = [
        ("plain", format!("'avro_schema' '{SCHEMA}'"), vec![]),
        ("confluent", format!("'avro_schema.7' '{SCHEMA}'"), vec![0, 0, 0, 0, 7]),
        ("single_object", format!("'avro_schema' '{SCHEMA}'"), [[0xc3, 1].as_slice(), &fingerprint].concat()),
    ];
    for (framing, schema, prefix) in framings {
        let (topic, place) = (topic(broker, "avro", 1), Place::new());
        let values: Vec<Vec<u8>> = bodies.iter().map(|body| [prefix.as_slice(), body].concat()).collect();
        produce(broker, &topic, values.iter().cloned().map(Record::of));
        let options = format!("'format' 'avro', 'avro_framing' '{framing}', {schema}");
        let table = table(broker, &topic, "a DOUBLE, id BIGINT, missing INT", &options);
        assert_eq!(place.sql(&(table.clone() + "SELECT id, a, missing FROM t")).unwrap(), "1,3.5,\n-70,,", "{framing}");
        let table = table.replace(", missing INT", "");
        place.sql(&(table + "INSERT INTO t (id, a) VALUES (1, 3.5), (-70, NULL)")).unwrap();
        let read = consume(broker, &topic);
        assert_eq!(read.len(), 4);
        for (record, value) in read.iter().zip(values.iter().cycle()) {
            assert_eq!(record.payload().unwrap(), value, "{framing}");
        }
    }
    // a schema of the columns themselves, and a record that is none
    let (topic, place) = (topic(broker, "avro", 1), Place::new());
    let table = table(broker, &topic, "id BIGINT, name VARCHAR", "'format' 'avro', 'malformed' 'skip'");
    place.sql(&(table.clone() + "INSERT INTO t VALUES (1, 'a'), (NULL, NULL)")).unwrap();
    produce(broker, &topic, [Record::of([2, 2, 2]), Record::of(*b"")]);
    place.sql(&(table.clone() + "INSERT INTO t VALUES (3, 'c')")).unwrap();
    assert_eq!(place.sql(&(table + "SELECT * FROM t")).unwrap(), "1,a\n,\n3,c");
}

fn raw(broker: &Broker) {
    let topic = topic(broker, "raw", 1);
    produce(broker, &topic, ["one", "two"].map(Record::of));
    let place = Place::new();
    let table = table(broker, &topic, "line VARCHAR", "'format' 'raw'");
    assert_eq!(place.sql(&(table.clone() + "SELECT upper(line) FROM t")).unwrap(), "ONE\nTWO");
    place.sql(&(table + "INSERT INTO t VALUES ('three')")).unwrap();
    assert_eq!(texts(&consume(broker, &topic))[2], "three");
}

fn metadata(broker: &Broker) {
    let topic = topic(broker, "metadata", 3);
    let record = Record {
        key: Some("k1".to_owned()),
        headers: vec![("trace".to_owned(), "7f".to_owned()), ("trace".to_owned(), "80".to_owned())],
        timestamp: Some(1_700_000_000_123),
        ..Record::of("{\"id\":1}")
    };
    produce(broker, &topic, [record]);
    let place = Place::new();
    let columns = "id BIGINT, _key VARCHAR, _timestamp TIMESTAMP, _partition INT, _offset BIGINT, \
                   _headers STRUCT<key VARCHAR, value VARCHAR>[]";
    let read = "SELECT id, _key, CAST(_timestamp AS BIGINT) / 1000000, _offset, _headers[2]['key'], _headers[2]['value'] FROM t";
    assert_eq!(place.sql(&(table(broker, &topic, columns, "") + read)).unwrap(), "1,k1,1700000000123,0,trace,80");
    // keys go where Kafka's own clients send them (murmur2), kafka-python shows which of three partitions "k1" is in
    let partition = place.sql(&(table(broker, &topic, columns, "") + "SELECT _partition FROM t")).unwrap();
    let columns = columns.replace("_offset BIGINT, ", "");
    let write = "INSERT INTO t VALUES (2, 'k2', to_timestamp_millis(1700000000456), 2, \
                 [named_struct('key', 'a', 'value', 'b')]), (3, 'k1', NULL, NULL, NULL)";
    place.sql(&(table(broker, &topic, &columns, "") + write)).unwrap();
    let records = consume(broker, &topic);
    let written = records.iter().find(|record| record.key() == Some(b"k2".as_slice())).unwrap();
    assert_eq!((written.partition(), written.timestamp().to_millis()), (2, Some(1_700_000_000_456)));
    assert_eq!(headers(written)["a"], "b");
    assert_eq!(written.payload(), Some(b"{\"id\":2}".as_slice()));
    let same_key = records.iter().filter(|record| record.key() == Some(b"k1".as_slice()));
    assert!(same_key.clone().count() == 2 && !partition.is_empty());
}

/// Tables that stand still are read once; rows stay in the order of their records, but where a LEFT JOIN finds no match.
fn joins_with_tables(broker: &Broker) {
    let (from, to) = (topic(broker, "readings", 1), topic(broker, "named", 1));
    produce(broker, &from, (0..6_000).map(|i| Record::of(format!("{{\"id\":{i},\"pump\":{}}}", i % 3))));
    let place = Place::new();
    std::fs::write(place.path("pumps.csv"), "pump,name\n0,zero\n1,one\n").unwrap();
    let b = broker.bootstrap();
    let sql = format!(
        "CREATE EXTERNAL TABLE readings (id BIGINT, pump BIGINT) STORED AS KAFKA LOCATION 'kafka://{b}/{from}';
         CREATE EXTERNAL TABLE named (id BIGINT, name VARCHAR, n BIGINT) STORED AS KAFKA LOCATION 'kafka://{b}/{to}';
         SET stream.max_batch_rows = 100;
         INSERT INTO named SELECT r.id, p.name, (SELECT count(*) FROM 'pumps.csv')
           FROM readings r LEFT JOIN 'pumps.csv' p ON p.pump = r.pump WHERE r.id < 3000;
         SET stream.name = 'second';
         INSERT INTO named SELECT r.id, p.name, 0 FROM readings r JOIN 'pumps.csv' p USING (pump) WHERE r.id >= 3000;"
    );
    place.run_to_end(&sql);
    let without = format!(
        "CREATE EXTERNAL TABLE readings (id BIGINT, pump BIGINT) STORED AS KAFKA LOCATION 'kafka://{b}/{from}';
         CREATE EXTERNAL TABLE others (id BIGINT) STORED AS JSON LOCATION 'out/';
         SET stream.max_batch_rows = 4000;
         INSERT INTO others SELECT id FROM readings WHERE pump NOT IN (SELECT pump FROM 'pumps.csv');"
    );
    place.run_to_end(&without);
    assert_eq!(place.sql("SELECT count(*), sum(id % 3), count(DISTINCT id) FROM 'out/'").unwrap(), "2000,4000,2000");
    let expected = |id: usize| match (id, id % 3) {
        (0..3_000, 2) => Some(format!("{{\"id\":{id},\"n\":2}}")),
        (_, 2) => None,
        (_, pump) => {
            let (name, n) = (["zero", "one"][pump], if id < 3000 { 2 } else { 0 });
            Some(format!("{{\"id\":{id},\"name\":\"{name}\",\"n\":{n}}}"))
        }
    };
    let expected: Vec<String> = (0..6_000).filter_map(expected).collect();
    let read = texts(&consume(broker, &to));
    let (inner, mut left): (Vec<String>, Vec<String>) = read.into_iter().partition(|text| text.contains("\"n\":0"));
    let mut expected_left = expected[..3_000].to_vec();
    left.sort();
    expected_left.sort();
    assert_eq!(left, expected_left);
    assert_eq!(inner, expected[3_000..]);
}

fn secured(_: &Broker) {
    // the listener is that of a broker that was started here
    let broker = crate::own_broker();
    let (address, certificate) = broker.secured().unwrap();
    let topic = topic(&broker, "secured", 1);
    produce(&broker, &topic, [Record::of("{\"id\":1}")]);
    let (user, password) = USER;
    let place = Place::new();
    std::fs::write(place.path("password"), format!("{password}\n")).unwrap();
    let table = |secret: &str| {
        format!(
            "CREATE EXTERNAL TABLE t (id BIGINT) STORED AS KAFKA LOCATION 'kafka://{address}/{topic}' OPTIONS (
               'security.protocol' 'SASL_SSL', 'sasl.mechanism' 'PLAIN', 'sasl.username' '{user}',
               'sasl.password' '{secret}', 'ssl.ca.location' '{}');",
            certificate.display()
        )
    };
    let with = |secret: &str, sql: &str| {
        let mut program = place.program();
        program.env("PASSWORD", password).env("WRONG", "hunter2-hunter2").args(["sql", "--format", "csv", "-c"]);
        let output = program.arg(table(secret) + sql).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout) + &text(output.stderr))
    };
    let all = "SELECT id FROM t; EXPLAIN VERBOSE SELECT id FROM t; SHOW CREATE TABLE t; SHOW ALL;";
    for secret in ["env:PASSWORD", "file:password"] {
        let (is_done, printed) = with(secret, all);
        assert!(is_done && printed.starts_with("id\n1\n"), "{printed}");
        assert!(!printed.contains(password), "{printed}");
    }
    let (is_done, printed) = with("env:WRONG", "SELECT id FROM t");
    assert!(!is_done && printed.contains("no answer from"), "{printed}");
    assert!(!printed.contains("hunter2"), "{printed}");
    let (is_done, printed) = with(password, "SELECT id FROM t");
    assert!(!is_done && printed.contains("is a secret"), "{printed}");
    assert!(!printed.contains(password), "{printed}");
}

fn unknown_topic(broker: &Broker) {
    let place = Place::new();
    let b = broker.bootstrap();
    let read = place.sql(&(table(broker, "nowhere", "id BIGINT", "") + "SELECT * FROM t")).unwrap_err();
    assert_eq!(
        read,
        format!(
            "execution error: {b} has no topic 'nowhere'; create it, or set the option partitions of the table for a pipeline to create it\n"
        )
    );
    let sql = format!(
        "{} CREATE EXTERNAL TABLE files (id BIGINT) STORED AS PARQUET LOCATION 'out/'; INSERT INTO files SELECT id FROM t;",
        table(broker, "nowhere", "id BIGINT", "")
    );
    let (status, log) = place.run(&sql, &[]).wait();
    assert_eq!(status.code(), Some(1));
    assert!(
        log.contains(&format!(
            "pipeline 'pipeline-files': {b} has no topic 'nowhere'; create it, or set the option partitions of the table for a pipeline to create it"
        )),
        "{log}"
    );
}

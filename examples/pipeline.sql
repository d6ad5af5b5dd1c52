-- Watches the temperature of a machine. A reading is an alert if it does not fit the hour before it.
--
--     export KAFKA_BOOTSTRAP_SERVERS=localhost:9092
--     aefusion run examples/pipeline.sql --http 127.0.0.1:8080
--
-- examples/replay.sh writes readings to the topic, and adds some faults. docs/streaming.md is a tutorial.

-- Each record has a reading, m55, and the readings of the 55 minutes before it, five minutes apart.
CREATE EXTERNAL TABLE readings (
  ts TIMESTAMP,
  m00 DOUBLE, m05 DOUBLE, m10 DOUBLE, m15 DOUBLE, m20 DOUBLE, m25 DOUBLE,
  m30 DOUBLE, m35 DOUBLE, m40 DOUBLE, m45 DOUBLE, m50 DOUBLE, m55 DOUBLE
) STORED AS KAFKA LOCATION 'kafka://env:KAFKA_BOOTSTRAP_SERVERS/machine-readings'
OPTIONS ('partitions' '2', 'malformed' 'dead_letter', 'dead_letter_topic' 'machine-malformed');

CREATE EXTERNAL TABLE alerts (ts TIMESTAMP, temperature DOUBLE, error DOUBLE, p DOUBLE, worst VARCHAR)
STORED AS KAFKA LOCATION 'kafka://env:KAFKA_BOOTSTRAP_SERVERS/machine-alerts'
OPTIONS ('partitions' '2');

-- Trained at the first start, on the hours without a known failure. The hours overlap, so the last ones calibrate.
CREATE MODEL IF NOT EXISTS machine
OPTIONS (hidden_units = [16, 4, 16], contamination = 0.002, split_by_time = 'ts', seed = 1) AS
SELECT ts, m00, m05, m10, m15, m20, m25, m30, m35, m40, m45, m50, m55 FROM (
  SELECT ts, sum(label) OVER w AS labels,
         lag(value, 11) OVER w AS m00, lag(value, 10) OVER w AS m05, lag(value, 9) OVER w AS m10,
         lag(value, 8) OVER w AS m15, lag(value, 7) OVER w AS m20, lag(value, 6) OVER w AS m25,
         lag(value, 5) OVER w AS m30, lag(value, 4) OVER w AS m35, lag(value, 3) OVER w AS m40,
         lag(value, 2) OVER w AS m45, lag(value, 1) OVER w AS m50, value AS m55
  FROM 'examples/demo/machine_temperature.parquet'
  WINDOW w AS (ORDER BY ts ROWS BETWEEN 11 PRECEDING AND CURRENT ROW)
) WHERE labels = 0 AND m00 IS NOT NULL;

-- The pipeline switches to new versions of the model between two micro-batches.
SET stream.reload = 'poll';

INSERT INTO alerts
SELECT ts, m55, error, p, c[1]['feature'] || ': expected ' || CAST(round(c[1]['expected'], 1) AS VARCHAR)
FROM (SELECT ts, m55, ae_error('machine') AS error, ae_pvalue('machine') AS p, ae_contributions('machine') AS c,
             ae_is_anomaly('machine') AS is_anomaly
      FROM readings)
WHERE is_anomaly;

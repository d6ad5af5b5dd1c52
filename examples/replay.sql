-- Writes readings :from to :to of the machine to the topic, see replay.sh. Some have faults: a spike every 1500 readings,
-- a stuck sensor for an hour every 4000 readings, and a truncated record every 1000 readings.
CREATE EXTERNAL TABLE readings (
  ts TIMESTAMP,
  m00 DOUBLE, m05 DOUBLE, m10 DOUBLE, m15 DOUBLE, m20 DOUBLE, m25 DOUBLE,
  m30 DOUBLE, m35 DOUBLE, m40 DOUBLE, m45 DOUBLE, m50 DOUBLE, m55 DOUBLE
) STORED AS KAFKA LOCATION 'kafka://env:KAFKA_BOOTSTRAP_SERVERS/machine-readings' OPTIONS ('partitions' '2');

CREATE EXTERNAL TABLE texts (text VARCHAR)
STORED AS KAFKA LOCATION 'kafka://env:KAFKA_BOOTSTRAP_SERVERS/machine-readings' OPTIONS ('format' 'raw');

INSERT INTO readings
SELECT ts, m00, m05, m10, m15, m20, m25, m30, m35, m40, m45, m50, m55 FROM (
  SELECT i, ts,
         lag(v, 11) OVER w AS m00, lag(v, 10) OVER w AS m05, lag(v, 9) OVER w AS m10, lag(v, 8) OVER w AS m15,
         lag(v, 7) OVER w AS m20, lag(v, 6) OVER w AS m25, lag(v, 5) OVER w AS m30, lag(v, 4) OVER w AS m35,
         lag(v, 3) OVER w AS m40, lag(v, 2) OVER w AS m45, lag(v, 1) OVER w AS m50, v AS m55
  FROM (
    SELECT i, ts, CASE WHEN i % 1500 = 1400 THEN value + 30 WHEN i % 4000 BETWEEN 2500 AND 2511 THEN 40 ELSE value END AS v
    FROM (SELECT ts, value, row_number() OVER (ORDER BY ts) AS i FROM 'examples/demo/machine_temperature.parquet')
    WHERE i BETWEEN :from - 11 AND :to
  )
  WINDOW w AS (ORDER BY i)
) WHERE i BETWEEN greatest(:from, 12) AND :to ORDER BY i;

INSERT INTO texts SELECT '{"ts":"2014-01-' FROM generate_series(:from, :to) WHERE value % 1000 = 900;

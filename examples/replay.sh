#!/bin/sh
# Writes the readings of a machine to the topic of examples/pipeline.sql, with faults. Repeats them continuously, or stops
# after READINGS.
#
#     export KAFKA_BOOTSTRAP_SERVERS=localhost:9092
#     examples/replay.sh [READINGS_PER_SECOND] [READINGS]
#
# The environment variable AEFUSION names the program. Default: aefusion.
set -eu
cd "$(dirname "$0")/.."
per_second=${1:-100}
readings=${2:-0}
total=22695
sent=0
while [ "$readings" -eq 0 ] || [ "$sent" -lt "$readings" ]; do
    from=$((sent % total + 1))
    to=$((from + per_second - 1))
    [ "$to" -le "$total" ] || to=$total
    sed "s/:from/$from/g; s/:to/$to/g" examples/replay.sql | "${AEFUSION:-aefusion}" sql --quiet --format csv >/dev/null
    sent=$((sent + to - from + 1))
    [ "$sent" -eq "$readings" ] || sleep 1
done

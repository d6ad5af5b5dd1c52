#!/bin/sh
# Replays the readings of a machine into the topic of examples/pipeline.sql, with faults, over and over.
#
#     export KAFKA_BOOTSTRAP_SERVERS=localhost:9092
#     examples/replay.sh [READINGS A SECOND] [READINGS]
#
# AEFUSION is the program, by default `aefusion`.
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
    sleep 1
done

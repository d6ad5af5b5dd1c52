"""A consumer in Python: python peer.py BROKERS MODEL FROM TO GROUP [--until-end] [--orjson].

Reads JSON records, scores them with ONNX Runtime, and writes their errors, records and offsets in one transaction a batch.
"""

import json
import sys
import time

import numpy as np
import onnxruntime
import orjson
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

BATCH, PATIENCE = 10_000, 0.02
FEATURES = [f"f{i}" for i in range(8)]

brokers, model, source, sink, group = sys.argv[1:6]
until_end = "--until-end" in sys.argv
loads, dumps = (orjson.loads, orjson.dumps) if "--orjson" in sys.argv else (json.loads, json.dumps)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(model, options)
consumer = Consumer({
    "bootstrap.servers": brokers,
    "group.id": group,
    "auto.offset.reset": "earliest",
    "enable.auto.commit": False,
    "enable.partition.eof": True,
    "isolation.level": "read_committed",
})
producer = Producer({
    "bootstrap.servers": brokers,
    "transactional.id": group,
    "queue.buffering.max.messages": 1_000_000,
})
producer.init_transactions()
consumer.subscribe([source])


def batch():
    """Records up to a number or an age, and the partitions that have ended."""
    records, ended, deadline = [], set(), None
    while len(records) < BATCH and (deadline is None or time.monotonic() < deadline):
        patience = PATIENCE if deadline is None else max(0.0, deadline - time.monotonic())
        for message in consumer.consume(BATCH - len(records), patience):
            if message.error() is None:
                records.append(message)
            elif message.error().code() == KafkaError._PARTITION_EOF:
                ended.add(message.partition())
        if records and deadline is None:
            deadline = time.monotonic() + PATIENCE
        if not records:
            break
    return records, ended


ended = set()
while True:
    records, now_ended = batch()
    ended |= now_ended
    if not records:
        if until_end and len(ended) == len(consumer.assignment()) > 0:
            break
        continue
    rows = [loads(record.value()) for record in records]
    x = np.array([[row[feature] for feature in FEATURES] for row in rows], np.float32)
    found = session.run(["reconstruction"], {"x": x})[0]
    errors = ((x - found) ** 2).mean(axis=1)
    producer.begin_transaction()
    offsets = {}
    for record, row, error in zip(records, rows, errors.tolist()):
        value = dumps({"id": row["id"], "sent": row["sent"], "error": error})
        while True:
            try:
                producer.produce(sink, value)
                break
            except BufferError:
                producer.poll(0.01)
        offsets[record.partition()] = record.offset() + 1
    producer.poll(0)
    positions = [TopicPartition(source, partition, offset) for partition, offset in offsets.items()]
    producer.send_offsets_to_transaction(positions, consumer.consumer_group_metadata())
    producer.commit_transaction()
consumer.close()

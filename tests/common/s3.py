"""An object store that speaks S3, in memory: prints its address, and ends with its standard input."""

import sys
import threading
import urllib.request

from moto.moto_server.werkzeug_app import DomainDispatcherApplication
from moto.server import ThreadedMotoServer

# One request at a time, as S3 decides between two that write one file only if it is missing.
lock = threading.Lock()
answer = DomainDispatcherApplication.__call__


def answer_alone(application, environ, start_response):
    with lock:
        return list(answer(application, environ, start_response))


DomainDispatcherApplication.__call__ = answer_alone

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
address = f"http://{host}:{port}"
signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=a/20200101/us-east-1/s3/aws4_request"}
urllib.request.urlopen(urllib.request.Request(f"{address}/bucket", method="PUT", headers=signed))
print(address, flush=True)
sys.stdin.read()

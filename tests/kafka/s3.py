"""An object store that speaks S3, in memory: prints its address, and ends with its standard input."""

import sys
import urllib.request

from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
address = f"http://{host}:{port}"
signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=a/20200101/us-east-1/s3/aws4_request"}
urllib.request.urlopen(urllib.request.Request(f"{address}/bucket", method="PUT", headers=signed))
print(address, flush=True)
sys.stdin.read()

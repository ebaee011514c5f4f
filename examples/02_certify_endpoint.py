"""Certify a service that is reached by HTTP alone. A server of this process plays the deployed model."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import certify
import surrogates

digits = load_digits()
images = (digits.images / 16).astype("float32")[:, None]
model = LogisticRegression(max_iter=2000).fit(images[:1000].reshape(1000, -1), digits.target[:1000])


class Service(BaseHTTPRequestHandler):
    """What MLflow's scoring server answers: {"inputs": [...]} to {"predictions": [...]}."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        rows = np.asarray(body["inputs"]).reshape(-1, 64)
        answer = json.dumps({"predictions": model.predict_proba(rows).tolist()}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer)

    def do_GET(self) -> None:  # the health check
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keep the terminal for the certificates."""


server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
threading.Thread(target=server.serve_forever, daemon=True).start()

url = f"http://127.0.0.1:{server.server_port}/invocations"
target = surrogates.open_target(url, num_classes=10, batch_size=256)
ledger = surrogates.QueryLedger("endpoint.db", {"certification": 10_000})
paid = ledger.attach(target, purpose="certification", experiment="endpoint, seed 0")
smoothed = certify.SmoothedClassifier(
    lambda noisy: paid.query(noisy, bounded=False).labels, certify.Gaussian(0.2), 10, subject="target"
)
for certificate in smoothed.certify(images[1000:1005], n0=50, n=1_000):
    print(f"class {certificate.prediction}, radius {certificate.radius:.3f} in {certificate.norm}")
print(ledger.bill()["certification"])
server.shutdown()

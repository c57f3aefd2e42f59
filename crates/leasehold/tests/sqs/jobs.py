"""The tasks of `celery_workers.py`. What a task did is a line in the file $DONE."""

import os
import time
from urllib.parse import quote

from celery import Celery

key, secret = quote(os.environ["KEY"], safe=""), quote(os.environ["SECRET"], safe="")
app = Celery("jobs", broker=f"sqs://{key}:{secret}@{os.environ['ENDPOINT'].removeprefix('http://')}")
app.conf.broker_transport_options = {
    "region": "us-east-1", "is_secure": False, "wait_time_seconds": 5, "visibility_timeout": 15,
}
app.conf.task_default_queue = "celery"
app.conf.task_acks_late = True
app.conf.worker_prefetch_multiplier = 1
app.conf.worker_enable_remote_control = False


def done(what):
    with open(os.environ["DONE"], "a") as file:
        file.write(f"{what}\n")


@app.task
def add(left, right):
    done(f"sum {left + right}")


@app.task(bind=True, max_retries=3, default_retry_delay=1)
def fails_twice(self):
    if self.request.retries < 2:
        raise self.retry()
    done(f"third try {self.request.retries}")


@app.task
def holds(what):
    """Is killed with its worker the first time."""
    if not os.path.exists(os.environ["DONE"] + ".held"):
        open(os.environ["DONE"] + ".held", "w").close()
        time.sleep(600)
    done(f"held {what}")

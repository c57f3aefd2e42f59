"""Celery with nothing changed but the broker's URL: tasks, retries, countdowns, and a worker that is killed with its task.

usage: celery_workers.py ENDPOINT KEY SECRET
"""

import os
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
PATIENCE_S = 120

folder = tempfile.TemporaryDirectory()
os.environ.update(ENDPOINT=sys.argv[1], KEY=sys.argv[2], SECRET=sys.argv[3], DONE=os.path.join(folder.name, "done"))
sys.path.insert(0, HERE)

import jobs  # noqa: E402  (reads the environment)


def start_worker():
    command = [sys.executable, "-m", "celery", "-A", "jobs", "worker", "--concurrency", "2", "--loglevel", "WARNING"]
    return subprocess.Popen(command, cwd=HERE, start_new_session=True)


def end(worker, how):
    os.killpg(worker.pid, how)
    return worker.wait(timeout=PATIENCE_S)


def eventually(what, holds):
    limit = time.time() + PATIENCE_S
    while not holds():
        assert time.time() < limit, f"{what}: only {done()}"
        time.sleep(0.1)


def done():
    try:
        with open(os.environ["DONE"]) as file:
            return sorted(file.read().splitlines())
    except FileNotFoundError:
        return []


worker = start_worker()
try:
    for number in range(20):
        jobs.add.delay(number, number)
    jobs.fails_twice.delay()
    asked = time.time()
    jobs.add.apply_async((1000, 1), countdown=3)
    expected = {f"sum {2 * number}" for number in range(20)} | {"third try 2"}
    eventually("tasks and retries", lambda: expected <= set(done()))
    eventually("a countdown", lambda: "sum 1001" in done())
    assert time.time() - asked >= 2.9, "the countdown was cut short"
    assert len(done()) == 22, f"a task was done twice: {done()}"

    jobs.holds.delay("by the next worker")
    eventually("a task that is held", lambda: os.path.exists(os.environ["DONE"] + ".held"))
    end(worker, signal.SIGKILL)
    worker = start_worker()
    eventually("what a killed worker held", lambda: "held by the next worker" in done())
    assert end(worker, signal.SIGTERM) == 0, "the worker did not stop in good order"
finally:
    if worker.poll() is None:
        end(worker, signal.SIGKILL)
print("all done once")

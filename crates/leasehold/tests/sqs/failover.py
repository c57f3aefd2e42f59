"""Sends, receives and deletes through all nodes while one of them is killed: nothing that was acknowledged is lost.

usage: failover.py ENDPOINT[,ENDPOINT...] KEY SECRET

Prints `go` when the work is under way: then the node may be killed.
"""

import sys
import threading
import time

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

ENDPOINTS, KEY, SECRET = sys.argv[1].split(","), sys.argv[2], sys.argv[3]
SENDERS, MESSAGES, RECEIVERS = 4, 150, 4
PATIENCE_S = 120

sent, received, deleted = set(), {}, set()
tried, lock = set(), threading.Lock()
senders_done = threading.Event()


def clients(first):
    config = Config(retries={"max_attempts": 0}, connect_timeout=2, read_timeout=10)
    made = [
        boto3.session.Session().client(
            "sqs", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=KEY, aws_secret_access_key=SECRET, config=config,
        )
        for endpoint in ENDPOINTS
    ]
    return made[first % len(made):] + made[:first % len(made)]


def until_done(nodes, call):
    """Asks one node after another until one has done it; what is refused for good is an error."""
    end = time.time() + PATIENCE_S
    while time.time() < end:
        try:
            return call(nodes[0])
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500 and error.response["Error"]["Code"] != "RequestThrottled":
                raise
        except BotoCoreError:
            pass
        nodes.append(nodes.pop(0))
        time.sleep(0.02)
    raise AssertionError("no node did it in time")


def send(number, url):
    nodes = clients(number)
    for at in range(MESSAGES):
        body = f"{number}-{at}"
        with lock:
            tried.add(body)
        until_done(nodes, lambda node: node.send_message(QueueUrl=url, MessageBody=body))
        with lock:
            sent.add(body)
            if len(sent) == SENDERS * MESSAGES // 4:
                print("go", flush=True)
        # The kill shall come into the middle of the work.
        time.sleep(0.01)


def receive(number, url):
    nodes = clients(number)
    end = time.time() + PATIENCE_S
    while time.time() < end:
        with lock:
            if senders_done.is_set() and sent <= deleted:
                return
        answer = until_done(nodes, lambda node: node.receive_message(QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=1, VisibilityTimeout=5))
        for message in answer.get("Messages", []):
            with lock:
                received.setdefault(message["Body"], set()).add(message["MessageId"])
            until_done(nodes, lambda node: node.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"]))
            with lock:
                deleted.add(message["Body"])


def main():
    url = until_done(clients(1), lambda node: node.create_queue(QueueName="failover"))["QueueUrl"]
    senders = [threading.Thread(target=send, args=(number, url)) for number in range(SENDERS)]
    receivers = [threading.Thread(target=receive, args=(number, url), daemon=True) for number in range(RECEIVERS)]
    for thread in senders + receivers:
        thread.start()
    for thread in senders:
        thread.join()
    senders_done.set()
    for thread in receivers:
        thread.join()
    lost, invented = sent - set(received), set(received) - tried
    twice = sum(len(ids) > 1 for ids in received.values())
    print(f"sent {len(sent)}, lost {len(lost)}, invented {len(invented)}, stored twice {twice}", flush=True)
    sys.exit(0 if len(sent) == SENDERS * MESSAGES and not lost and not invented else 1)


main()

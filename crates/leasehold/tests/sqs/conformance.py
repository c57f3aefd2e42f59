"""Every operation and every documented error, through a real SDK, against the nodes of a running cluster.

usage: conformance.py json|query ENDPOINT[,ENDPOINT...] KEY SECRET
"""

import functools
import json
import socket
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid

import boto3
import botocore
from botocore.auth import SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

PROTOCOL, ENDPOINTS, KEY, SECRET = sys.argv[1], sys.argv[2].split(","), sys.argv[3], sys.argv[4]
ACCOUNT = "000000000000"
SIMPLE = "AWS.SimpleQueueService."
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def client(node=0, key=KEY, secret=SECRET, region="us-east-1"):
    config = Config(retries={"max_attempts": 0}, parameter_validation=False, read_timeout=60)
    return boto3.client(
        "sqs", endpoint_url=ENDPOINTS[node % len(ENDPOINTS)], region_name=region,
        aws_access_key_id=key, aws_secret_access_key=secret, config=config,
    )


SQS = client()


def name(suffix=""):
    return f"{PROTOCOL}-{uuid.uuid4().hex[:12]}{suffix}"


def queue(fifo=False, **attributes):
    if fifo:
        attributes["FifoQueue"] = "true"
    return SQS.create_queue(QueueName=name(".fifo" if fifo else ""), Attributes=attributes)["QueueUrl"]


def arn(url):
    return SQS.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]


def attributes(url):
    return SQS.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]


def poll(sqs, url, **more):
    """Asks again while nobody leads: a machine that stands still for a second takes a leadership, and its polls with it."""
    end = time.time() + 30
    while True:
        try:
            return sqs.receive_message(QueueUrl=url, **more)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 503 or time.time() > end:
                raise
            time.sleep(0.1)


def receive(url, count=1, wait=10, **more):
    """Receives `count` messages, in as many calls as it takes."""
    got, end = [], time.time() + 60
    while len(got) < count and time.time() < end:
        asked = min(10, count - len(got))
        got += poll(SQS, url, MaxNumberOfMessages=asked, WaitTimeSeconds=wait, **more).get("Messages", [])
    assert len(got) == count, f"{len(got)} of {count} messages came"
    return got


def nothing(url, wait=1, **more):
    got = poll(SQS, url, WaitTimeSeconds=wait, **more)
    assert "Messages" not in got, got


def fails(code, status, call, *args, **kwargs):
    try:
        answer = call(*args, **kwargs)
    except ClientError as error:
        found = error.response["Error"]["Code"]
        assert found == code, f"{found} instead of {code}: {error}"
        got = error.response["ResponseMetadata"]["HTTPStatusCode"]
        assert got == status, f"status {got} instead of {status}: {error}"
        assert error.response["Error"]["Message"], "an error has a message"
        headers = error.response["ResponseMetadata"]["HTTPHeaders"]
        assert headers["x-amzn-query-error"].startswith(code + ";"), headers
        return error
    raise AssertionError(f"{code} was expected, and this came: {answer}")


@check
def sdk_speaks_the_protocol():
    model = SQS.meta.service_model.metadata["protocol"]
    assert model == PROTOCOL, f"{botocore.__version__} speaks {model}"


@check
def queues_are_created_found_and_listed():
    mine = name()
    url = SQS.create_queue(QueueName=mine, Attributes={"VisibilityTimeout": "45"}, tags={"team": "a"})["QueueUrl"]
    assert url == f"{ENDPOINTS[0]}/{ACCOUNT}/{mine}", url
    assert SQS.create_queue(QueueName=mine, Attributes={"VisibilityTimeout": "45"})["QueueUrl"] == url
    assert SQS.create_queue(QueueName=mine)["QueueUrl"] == url
    fails("QueueAlreadyExists", 400, SQS.create_queue, QueueName=mine, Attributes={"VisibilityTimeout": "46"})
    assert SQS.get_queue_url(QueueName=mine)["QueueUrl"] == url
    assert SQS.get_queue_url(QueueName=mine, QueueOwnerAWSAccountId=ACCOUNT)["QueueUrl"] == url
    fails(SIMPLE + "NonExistentQueue", 400, SQS.get_queue_url, QueueName=mine, QueueOwnerAWSAccountId="123456789012")
    fails(SIMPLE + "NonExistentQueue", 400, SQS.get_queue_url, QueueName=name())
    for wrong in ["a b", "x" * 81, "", "a.fifo"]:
        fails("InvalidParameterValue", 400, SQS.create_queue, QueueName=wrong)
    fails("InvalidParameterValue", 400, SQS.create_queue, QueueName=name(), Attributes={"FifoQueue": "true"})
    prefix = name()
    made = [SQS.create_queue(QueueName=f"{prefix}-{number}")["QueueUrl"] for number in range(5)]
    assert SQS.list_queues(QueueNamePrefix=prefix)["QueueUrls"] == made
    page, token = [], {}
    while True:
        listed = SQS.list_queues(QueueNamePrefix=prefix, MaxResults=2, **token)
        assert len(listed["QueueUrls"]) <= 2
        page += listed["QueueUrls"]
        if "NextToken" not in listed:
            break
        token = {"NextToken": listed["NextToken"]}
    assert page == made, page
    assert "QueueUrls" not in SQS.list_queues(QueueNamePrefix=name())
    fails("InvalidParameterValue", 400, SQS.list_queues, MaxResults=1001)
    fails("InvalidParameterValue", 400, SQS.list_queues, MaxResults=1, NextToken="?")
    assert name() and SQS.exceptions.QueueDoesNotExist


@check
def a_bare_name_and_any_host_are_a_queue_url():
    url = queue()
    mine = url.rsplit("/", 1)[1]
    if PROTOCOL == "json":
        for other in [mine, f"/{ACCOUNT}/{mine}", f"https://sqs.eu-west-1.amazonaws.com/{ACCOUNT}/{mine}"]:
            SQS.send_message(QueueUrl=other, MessageBody="x")
        receive(url, 3)
    fails(SIMPLE + "NonExistentQueue", 400, SQS.send_message, QueueUrl=f"{ENDPOINTS[0]}/123456789012/{mine}", MessageBody="x")
    fails(SIMPLE + "NonExistentQueue", 400, SQS.send_message, QueueUrl=f"{ENDPOINTS[0]}/{ACCOUNT}/{name()}", MessageBody="x")
    fails("InvalidAddress", 404, SQS.send_message, QueueUrl=f"{ENDPOINTS[0]}/{ACCOUNT}/a~b", MessageBody="x")


@check
def attributes_are_set_and_checked():
    url = queue()
    has = attributes(url)
    expected = {
        "VisibilityTimeout": "30", "MaximumMessageSize": "1048576", "MessageRetentionPeriod": "345600", "DelaySeconds": "0",
        "ReceiveMessageWaitTimeSeconds": "0", "ApproximateNumberOfMessages": "0", "ApproximateNumberOfMessagesNotVisible": "0",
        "ApproximateNumberOfMessagesDelayed": "0", "SqsManagedSseEnabled": "false",
    }
    assert expected.items() <= has.items(), has
    assert abs(int(has["CreatedTimestamp"]) - time.time()) < 600 and has["QueueArn"].endswith(url.rsplit("/", 1)[1])
    assert "FifoQueue" not in has and "RedrivePolicy" not in has
    policy = json.dumps({"Version": "2012-10-17", "Statement": []})
    new = {
        "VisibilityTimeout": "43200", "MaximumMessageSize": "1024", "MessageRetentionPeriod": "60", "DelaySeconds": "900",
        "ReceiveMessageWaitTimeSeconds": "20", "Policy": policy, "KmsMasterKeyId": "alias/x",
        "KmsDataKeyReusePeriodSeconds": "60", "SqsManagedSseEnabled": "true",
        "RedriveAllowPolicy": json.dumps({"redrivePermission": "denyAll"}),
    }
    SQS.set_queue_attributes(QueueUrl=url, Attributes=new)
    has = client(1).get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    for key, value in new.items():
        same = has[key] == value or json.loads(has[key]) == json.loads(value)
        assert same, f"{key} is {has[key]}"
    SQS.set_queue_attributes(QueueUrl=url, Attributes={"Policy": ""})
    some = SQS.get_queue_attributes(QueueUrl=url, AttributeNames=["Policy", "DelaySeconds"])["Attributes"]
    assert some == {"DelaySeconds": "900"}, some
    assert "Attributes" not in SQS.get_queue_attributes(QueueUrl=url)
    for key, value in [
        ("VisibilityTimeout", "43201"), ("VisibilityTimeout", "-1"), ("VisibilityTimeout", "x"), ("MaximumMessageSize", "1023"),
        ("MaximumMessageSize", "1048577"), ("MessageRetentionPeriod", "59"), ("MessageRetentionPeriod", "1209601"),
        ("DelaySeconds", "901"), ("ReceiveMessageWaitTimeSeconds", "21"), ("Policy", "no"), ("SqsManagedSseEnabled", "maybe"),
        ("KmsDataKeyReusePeriodSeconds", "59"),
    ]:
        fails("InvalidAttributeValue", 400, SQS.set_queue_attributes, QueueUrl=url, Attributes={key: value})
        fails("InvalidAttributeValue", 400, SQS.create_queue, QueueName=name(), Attributes={key: value})
    for key in ["Colour", "QueueArn", "ContentBasedDeduplication", "FifoQueue"]:
        fails("InvalidAttributeName", 400, SQS.set_queue_attributes, QueueUrl=url, Attributes={key: "true"})
    fails("InvalidAttributeName", 400, SQS.get_queue_attributes, QueueUrl=url, AttributeNames=["Colour"])
    gone = f"{ENDPOINTS[0]}/{ACCOUNT}/{name()}"
    fails(SIMPLE + "NonExistentQueue", 400, SQS.set_queue_attributes, QueueUrl=gone, Attributes={"DelaySeconds": "1"})
    fails(SIMPLE + "NonExistentQueue", 400, SQS.get_queue_attributes, QueueUrl=gone, AttributeNames=["All"])


@check
def messages_are_sent_received_and_deleted():
    url = queue()
    sent = {
        "text": {"DataType": "String", "StringValue": "ü < &\n"}, "count": {"DataType": "Number.int", "StringValue": "-42"},
        "blob": {"DataType": "Binary.png", "BinaryValue": b"\0\xff\x10"}, "other": {"DataType": "String", "StringValue": "x"},
    }
    body = 'line\r\n<tag attr="1">&amp; 😀 \t end'
    trace = {"AWSTraceHeader": {"DataType": "String", "StringValue": "Root=1-5759e988-bd862e3fe1be46a994272793"}}
    answer = SQS.send_message(QueueUrl=url, MessageBody=body, MessageAttributes=sent, MessageSystemAttributes=trace)
    assert len(answer["MessageId"]) == 36 and len(answer["MD5OfMessageSystemAttributes"]) == 32
    assert "SequenceNumber" not in answer
    got = receive(url, AttributeNames=["All"], MessageAttributeNames=["All"], VisibilityTimeout=1)[0]
    assert (got["Body"], got["MessageId"], got["MD5OfBody"]) == (body, answer["MessageId"], answer["MD5OfMessageBody"])
    assert got["MessageAttributes"] == sent, got["MessageAttributes"]
    assert got["MD5OfMessageAttributes"] == answer["MD5OfMessageAttributes"]
    system = got["Attributes"]
    assert system["ApproximateReceiveCount"] == "1" and system["SenderId"] == ACCOUNT
    assert system["AWSTraceHeader"] == trace["AWSTraceHeader"]["StringValue"]
    for key in ["SentTimestamp", "ApproximateFirstReceiveTimestamp"]:
        assert abs(int(system[key]) / 1000 - time.time()) < 600, system
    again = receive(url, MessageAttributeNames=["te.*", "count"], AttributeNames=["ApproximateReceiveCount"], VisibilityTimeout=30)[0]
    assert set(again["MessageAttributes"]) == {"text", "count"} and again["Attributes"] == {"ApproximateReceiveCount": "2"}
    # The first receipt is old: a standard queue says that all is well, and keeps the message.
    SQS.delete_message(QueueUrl=url, ReceiptHandle=got["ReceiptHandle"])
    assert attributes(url)["ApproximateNumberOfMessagesNotVisible"] == "1"
    client(1).delete_message(QueueUrl=url, ReceiptHandle=again["ReceiptHandle"])
    SQS.delete_message(QueueUrl=url, ReceiptHandle=again["ReceiptHandle"])
    assert attributes(url)["ApproximateNumberOfMessagesNotVisible"] == "0"
    plain = SQS.send_message(QueueUrl=url, MessageBody="x")
    assert "MD5OfMessageAttributes" not in plain
    got = receive(url)[0]
    assert "Attributes" not in got and "MessageAttributes" not in got


@check
def wrong_messages_are_refused():
    url = queue(MaximumMessageSize="1024")
    fails("InvalidMessageContents", 400, SQS.send_message, QueueUrl=url, MessageBody="a\x01b") if PROTOCOL == "json" else None
    fails("InvalidMessageContents", 400, SQS.send_message, QueueUrl=url, MessageBody="a\uffff")
    fails("MissingParameter", 400, SQS.send_message, QueueUrl=url, MessageBody="")
    fails("MissingParameter", 400, SQS.send_message, QueueUrl=url)
    fails("InvalidParameterValue", 400, SQS.send_message, QueueUrl=url, MessageBody="x" * 1025)
    trace = lambda length: {"AWSTraceHeader": {"DataType": "String", "StringValue": "x" * length}}
    SQS.send_message(QueueUrl=url, MessageBody="x" * 1024, MessageSystemAttributes=trace(1024))
    fails("InvalidParameterValue", 400, SQS.send_message, QueueUrl=url, MessageBody="x", MessageSystemAttributes=trace(1025))
    big = {"a": {"DataType": "String", "StringValue": "x" * 1020}}
    fails("InvalidParameterValue", 400, SQS.send_message, QueueUrl=url, MessageBody="xxxx", MessageAttributes=big)
    fails("InvalidParameterValue", 400, SQS.send_message, QueueUrl=url, MessageBody="x", DelaySeconds=901)
    fails("InvalidParameterValue", 400, SQS.send_message, QueueUrl=url, MessageBody="x", MessageDeduplicationId="d")
    fails("InvalidParameterValue", 400, SQS.send_message, QueueUrl=url, MessageBody="x", MessageGroupId="g" * 129)
    many = {f"a{number}": {"DataType": "String", "StringValue": "x"} for number in range(11)}
    wrong = [
        many, {"AWS.x": {"DataType": "String", "StringValue": "x"}}, {"a": {"DataType": "Text", "StringValue": "x"}},
        {"a": {"DataType": "Number", "StringValue": "x"}}, {"a": {"DataType": "String", "StringValue": ""}},
    ]
    for attribute in wrong:
        fails("InvalidParameterValue", 400, SQS.send_message, QueueUrl=url, MessageBody="x", MessageAttributes=attribute)
    header = {"SenderId": {"DataType": "String", "StringValue": "x"}}
    fails("InvalidParameterValue", 400, SQS.send_message, QueueUrl=url, MessageBody="x", MessageSystemAttributes=header)
    ten = {key: value for key, value in list(many.items())[:10]}
    SQS.send_message(QueueUrl=url, MessageBody="x", MessageAttributes=ten)
    big = queue()
    body = "x" * 1048576
    answer = SQS.send_message(QueueUrl=big, MessageBody=body)
    assert receive(big)[0]["MD5OfBody"] == answer["MD5OfMessageBody"]
    for parameter, value in [
        ("MaxNumberOfMessages", 0), ("MaxNumberOfMessages", 11), ("WaitTimeSeconds", 21), ("WaitTimeSeconds", -1),
        ("VisibilityTimeout", 43201), ("ReceiveRequestAttemptId", "a" * 129),
    ]:
        fails("InvalidParameterValue", 400, SQS.receive_message, QueueUrl=url, **{parameter: value})
    fails("InvalidAttributeName", 400, SQS.receive_message, QueueUrl=url, AttributeNames=["Colour"])
    fails("ReceiptHandleIsInvalid", 404, SQS.delete_message, QueueUrl=url, ReceiptHandle="no handle")
    fails("ReceiptHandleIsInvalid", 404, SQS.delete_message, QueueUrl=url, ReceiptHandle="AAAA")
    fails("ReceiptHandleIsInvalid", 404, SQS.change_message_visibility, QueueUrl=url, ReceiptHandle="AAAA", VisibilityTimeout=1)
    fails("MissingParameter", 400, SQS.delete_message, QueueUrl=url)


@check
def batches_fail_entry_by_entry():
    url = queue()
    entries = [{"Id": f"m{number}", "MessageBody": f"body {number}"} for number in range(8)]
    entries += [{"Id": "late", "MessageBody": "x", "DelaySeconds": 901}, {"Id": "bad", "MessageBody": "\uffff"}]
    answer = SQS.send_message_batch(QueueUrl=url, Entries=entries)
    assert sorted(done["Id"] for done in answer["Successful"]) == [f"m{number}" for number in range(8)]
    failed = {failed["Id"]: failed for failed in answer["Failed"]}
    assert failed["late"]["Code"] == "InvalidParameterValue" and failed["late"]["SenderFault"] is True
    assert failed["bad"]["Code"] == "InvalidMessageContents" and failed["bad"]["Message"]
    got = receive(url, 8)
    assert {message["Body"] for message in got} == {f"body {number}" for number in range(8)}
    handles = [message["ReceiptHandle"] for message in got]
    changes = [{"Id": "ok", "ReceiptHandle": handles[0], "VisibilityTimeout": 0}, {"Id": "no", "ReceiptHandle": "AAAA", "VisibilityTimeout": 5},
               {"Id": "long", "ReceiptHandle": handles[1], "VisibilityTimeout": 43200}]
    changed = SQS.change_message_visibility_batch(QueueUrl=url, Entries=changes)
    assert [done["Id"] for done in changed["Successful"]] == ["ok"], changed
    assert {failed["Id"]: failed["Code"] for failed in changed["Failed"]} == {"no": "ReceiptHandleIsInvalid", "long": "InvalidParameterValue"}, changed
    freed = receive(url)[0]
    deletes = [{"Id": f"d{at}", "ReceiptHandle": handle} for at, handle in enumerate(handles[1:] + [freed["ReceiptHandle"], "no handle"])]
    deleted = SQS.delete_message_batch(QueueUrl=url, Entries=deletes)
    assert len(deleted["Successful"]) == 8 and [failed["Code"] for failed in deleted["Failed"]] == ["ReceiptHandleIsInvalid"], deleted
    assert attributes(url)["ApproximateNumberOfMessagesNotVisible"] == "0"
    one = {"MessageBody": "x", "ReceiptHandle": "AAAA", "VisibilityTimeout": 1}
    for call, keys in [
        (SQS.send_message_batch, ["MessageBody"]), (SQS.delete_message_batch, ["ReceiptHandle"]),
        (SQS.change_message_visibility_batch, ["ReceiptHandle", "VisibilityTimeout"]),
    ]:
        entry = lambda number: {"Id": number, **{key: one[key] for key in keys}}
        fails(SIMPLE + "EmptyBatchRequest", 400, call, QueueUrl=url, Entries=[])
        eleven = [entry(f"e{number}") for number in range(11)]
        fails(SIMPLE + "TooManyEntriesInBatchRequest", 400, call, QueueUrl=url, Entries=eleven)
        fails(SIMPLE + "BatchEntryIdsNotDistinct", 400, call, QueueUrl=url, Entries=[entry("a"), entry("a")])
        fails(SIMPLE + "InvalidBatchEntryId", 400, call, QueueUrl=url, Entries=[entry("a b")])
    half = [{"Id": f"h{number}", "MessageBody": "x" * 524289} for number in range(2)]
    fails(SIMPLE + "BatchRequestTooLong", 400, SQS.send_message_batch, QueueUrl=url, Entries=half)
    full = [{"Id": f"h{number}", "MessageBody": "x" * 524288} for number in range(2)]
    assert len(SQS.send_message_batch(QueueUrl=url, Entries=full)["Successful"]) == 2


@check
def visibility_ends_changes_and_is_given_back():
    url = queue(VisibilityTimeout="1")
    SQS.send_message(QueueUrl=url, MessageBody="x")
    first = receive(url)[0]
    second = receive(url, VisibilityTimeout=60)[0]
    assert second["MessageId"] == first["MessageId"] and second["ReceiptHandle"] != first["ReceiptHandle"]
    fails(SIMPLE + "MessageNotInflight", 400, SQS.change_message_visibility, QueueUrl=url, ReceiptHandle=first["ReceiptHandle"], VisibilityTimeout=5)
    fails("InvalidParameterValue", 400, SQS.change_message_visibility, QueueUrl=url, ReceiptHandle=second["ReceiptHandle"], VisibilityTimeout=43201)
    time.sleep(1.1)
    error = fails("InvalidParameterValue", 400, SQS.change_message_visibility, QueueUrl=url, ReceiptHandle=second["ReceiptHandle"], VisibilityTimeout=43200)
    assert "Total VisibilityTimeout" in str(error), error
    nothing(url)
    client(2).change_message_visibility(QueueUrl=url, ReceiptHandle=second["ReceiptHandle"], VisibilityTimeout=0)
    third = receive(url, VisibilityTimeout=60)[0]
    SQS.change_message_visibility(QueueUrl=url, ReceiptHandle=third["ReceiptHandle"], VisibilityTimeout=1)
    fourth = receive(url, VisibilityTimeout=60)[0]
    SQS.delete_message(QueueUrl=url, ReceiptHandle=fourth["ReceiptHandle"])
    fails("InvalidParameterValue", 400, SQS.change_message_visibility, QueueUrl=url, ReceiptHandle=fourth["ReceiptHandle"], VisibilityTimeout=5)
    SQS.send_message(QueueUrl=url, MessageBody="again and again")
    for count in ["1", "2", "3"]:
        got = receive(url, VisibilityTimeout=0, AttributeNames=["ApproximateReceiveCount"])[0]
        assert got["Attributes"]["ApproximateReceiveCount"] == count, got


@check
def a_long_poll_returns_when_a_message_comes_to_any_node():
    url = queue(ReceiveMessageWaitTimeSeconds="20")
    for node in range(len(ENDPOINTS)):
        got, started = [], time.time()

        def polls():
            got.append(poll(client(node), url))
            # A node that was held up gives back what it has granted, and says at once that there is nothing.
            while "Messages" not in got[-1] and time.time() - started < 19:
                got.append(poll(client(node), url))

        polling = threading.Thread(target=polls)
        polling.start()
        time.sleep(0.7)
        assert not got, f"it did not wait: {got}"
        client(node + 1).send_message(QueueUrl=url, MessageBody=f"to {node}")
        polling.join()
        assert got[-1]["Messages"][0]["Body"] == f"to {node}", got
        assert time.time() - started < 19, "it waited until the end"
        SQS.delete_message(QueueUrl=url, ReceiptHandle=got[-1]["Messages"][0]["ReceiptHandle"])
    started = time.time()
    nothing(url, wait=2)
    assert time.time() - started >= 1.9, "it did not wait"
    started = time.time()
    nothing(url, wait=0)
    assert time.time() - started < 10


@check
def a_poller_that_hangs_up_gets_no_message():
    url = queue(VisibilityTimeout="3600")
    for node in range(len(ENDPOINTS)):
        endpoint = urllib.parse.urlparse(ENDPOINTS[node])
        signed = presigned(node, {"Action": "ReceiveMessage", "WaitTimeSeconds": "20"}, urllib.parse.urlparse(url).path)
        target = signed[len(ENDPOINTS[node]):]
        caller = socket.create_connection((endpoint.hostname, endpoint.port))
        caller.sendall(f"GET {target} HTTP/1.1\r\nHost: {endpoint.netloc}\r\n\r\n".encode())
        time.sleep(0.7)
        caller.close()
        time.sleep(0.5)
        SQS.send_message(QueueUrl=url, MessageBody="for somebody who is there")
        got = receive(url, AttributeNames=["ApproximateReceiveCount"])[0]
        SQS.delete_message(QueueUrl=url, ReceiptHandle=got["ReceiptHandle"])


@check
def delays():
    url = queue(DelaySeconds="10")
    sent = time.time()
    SQS.send_message(QueueUrl=url, MessageBody="by the queue")
    SQS.send_message(QueueUrl=url, MessageBody="at once", DelaySeconds=0)
    assert attributes(url)["ApproximateNumberOfMessagesDelayed"] == "1"
    assert receive(url)[0]["Body"] == "at once"
    assert receive(url)[0]["Body"] == "by the queue" and time.time() - sent >= 9.9
    now = queue()
    sent = time.time()
    SQS.send_message(QueueUrl=now, MessageBody="x", DelaySeconds=2)
    receive(now)
    assert time.time() - sent >= 1.9


def fill_for_a_minute():
    """What `retention` looks at when the other checks are done: a minute is the shortest there is."""
    short, long = queue(MessageRetentionPeriod="60", VisibilityTimeout="600"), queue()
    for url in short, long:
        for body in "waits", "is in flight":
            SQS.send_message(QueueUrl=url, MessageBody=body)
    held = receive(short)[0]["ReceiptHandle"]
    shown = attributes(short)
    assert (shown["ApproximateNumberOfMessages"], shown["ApproximateNumberOfMessagesNotVisible"]) == ("1", "1"), shown
    return short, held, long, time.time()


def retention(short, held, long, filled):
    time.sleep(max(0, filled + 60 - time.time()))

    def is_gone(count):
        end = time.time() + 60
        while attributes(short)[count] != "0":
            assert time.time() < end, f"still there: {attributes(short)}"
            time.sleep(0.5)

    is_gone("ApproximateNumberOfMessages")
    # Who holds a message may bring it to an end; it is not given to anybody else.
    assert attributes(short)["ApproximateNumberOfMessagesNotVisible"] == "1"
    SQS.change_message_visibility(QueueUrl=short, ReceiptHandle=held, VisibilityTimeout=0)
    is_gone("ApproximateNumberOfMessagesNotVisible")
    assert "Messages" not in SQS.receive_message(QueueUrl=short, WaitTimeSeconds=1)
    assert attributes(long)["ApproximateNumberOfMessages"] == "2"
    SQS.send_message(QueueUrl=short, MessageBody="new")
    assert receive(short)[0]["Body"] == "new"


@check
def dead_letters_and_who_may_send_them():
    dead = queue()
    fails("InvalidParameterValue", 400, queue, RedrivePolicy=json.dumps({"deadLetterTargetArn": arn(dead) + "x", "maxReceiveCount": 1}))
    fails("InvalidParameterValue", 400, queue, RedrivePolicy="{}")
    fails("InvalidParameterValue", 400, queue, RedrivePolicy=json.dumps({"deadLetterTargetArn": arn(dead), "maxReceiveCount": 1001}))
    policy = json.dumps({"deadLetterTargetArn": arn(dead), "maxReceiveCount": "2"})
    url = queue(RedrivePolicy=policy, VisibilityTimeout="0")
    assert json.loads(attributes(url)["RedrivePolicy"]) == {"deadLetterTargetArn": arn(dead), "maxReceiveCount": 2}
    sent = SQS.send_message(QueueUrl=url, MessageBody="poison", MessageAttributes={"a": {"DataType": "String", "StringValue": "v"}})
    for _ in range(2):
        receive(url, VisibilityTimeout=0)
    got = receive(dead, AttributeNames=["All"], MessageAttributeNames=["All"])[0]
    assert got["MessageId"] == sent["MessageId"] and got["Attributes"]["DeadLetterQueueSourceArn"] == arn(url), got
    assert got["MessageAttributes"]["a"]["StringValue"] == "v"
    more = [queue(RedrivePolicy=policy) for _ in range(2)]
    listed = SQS.list_dead_letter_source_queues(QueueUrl=dead)["queueUrls"]
    assert listed == sorted([url, *more]), listed
    page = SQS.list_dead_letter_source_queues(QueueUrl=dead, MaxResults=2)
    rest = SQS.list_dead_letter_source_queues(QueueUrl=dead, MaxResults=2, NextToken=page["NextToken"])
    assert page["queueUrls"] + rest["queueUrls"] == listed and "NextToken" not in rest
    SQS.set_queue_attributes(QueueUrl=dead, Attributes={"RedriveAllowPolicy": json.dumps({"redrivePermission": "byQueue", "sourceQueueArns": [arn(url)]})})
    SQS.set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": policy})
    fails("InvalidParameterValue", 400, queue, RedrivePolicy=policy)
    for wrong in ["x", json.dumps({"redrivePermission": "maybe"}), json.dumps({"redrivePermission": "byQueue"})]:
        fails("InvalidParameterValue", 400, SQS.set_queue_attributes, QueueUrl=dead, Attributes={"RedriveAllowPolicy": wrong})
    SQS.delete_queue(QueueUrl=dead)
    assert "RedrivePolicy" not in attributes(url)
    fails(SIMPLE + "NonExistentQueue", 400, SQS.list_dead_letter_source_queues, QueueUrl=dead)


@check
def move_tasks_bring_dead_letters_back():
    dead = queue()
    url = queue(RedrivePolicy=json.dumps({"deadLetterTargetArn": arn(dead), "maxReceiveCount": 1}), VisibilityTimeout="0")
    if not hasattr(SQS, "start_message_move_task"):
        raise AssertionError("this SDK knows no move tasks")
    entries = [{"Id": str(number), "MessageBody": f"{number}"} for number in range(10)]
    SQS.send_message_batch(QueueUrl=url, Entries=entries)
    receive(url, 10)
    end = time.time() + 30
    while attributes(dead)["ApproximateNumberOfMessages"] != "10" and time.time() < end:
        time.sleep(0.1)
    started = SQS.start_message_move_task(SourceArn=arn(dead), MaxNumberOfMessagesPerSecond=1)
    task = SQS.list_message_move_tasks(SourceArn=arn(dead), MaxResults=10)["Results"][0]
    assert (task["Status"], task["TaskHandle"], task["SourceArn"]) == ("RUNNING", started["TaskHandle"], arn(dead)), task
    assert task["MaxNumberOfMessagesPerSecond"] == 1 and abs(task["StartedTimestamp"] / 1000 - time.time()) < 600
    fails(SIMPLE + "UnsupportedOperation", 400, SQS.start_message_move_task, SourceArn=arn(dead))
    cancelled = SQS.cancel_message_move_task(TaskHandle=started["TaskHandle"])
    assert 0 <= cancelled["ApproximateNumberOfMessagesMoved"] < 10
    fails("ResourceNotFoundException", 404, SQS.cancel_message_move_task, TaskHandle=started["TaskHandle"])
    task = SQS.list_message_move_tasks(SourceArn=arn(dead))["Results"][0]
    assert task["Status"] == "CANCELLED" and "TaskHandle" not in task, task
    other = queue()
    SQS.start_message_move_task(SourceArn=arn(dead), DestinationArn=arn(other))
    moved = attributes(url)["ApproximateNumberOfMessages"]
    receive(other, 10 - int(moved))
    end = time.time() + 30
    while SQS.list_message_move_tasks(SourceArn=arn(dead))["Results"][0]["Status"] != "COMPLETED" and time.time() < end:
        time.sleep(0.1)
    task = SQS.list_message_move_tasks(SourceArn=arn(dead))["Results"][0]
    assert task["Status"] == "COMPLETED" and task["DestinationArn"] == arn(other), task
    nowhere = arn(dead) + "x"
    fails("ResourceNotFoundException", 404, SQS.start_message_move_task, SourceArn=nowhere)
    fails("ResourceNotFoundException", 404, SQS.list_message_move_tasks, SourceArn=nowhere)
    fails("InvalidParameterValue", 400, SQS.start_message_move_task, SourceArn=arn(url))
    fails("InvalidParameterValue", 400, SQS.start_message_move_task, SourceArn=arn(dead), MaxNumberOfMessagesPerSecond=501)
    fails("InvalidParameterValue", 400, SQS.cancel_message_move_task, TaskHandle="?")


@check
def fifo_queues_keep_order_and_block_by_group():
    url = queue(fifo=True, VisibilityTimeout="60")
    numbers = []
    for number in range(6):
        group = "ab"[number % 2]
        answer = SQS.send_message(QueueUrl=url, MessageBody=f"{number}", MessageGroupId=group, MessageDeduplicationId=f"d{number}")
        numbers.append(answer["SequenceNumber"])
    assert all(len(number) == 20 for number in numbers) and numbers == sorted(set(numbers)), numbers
    first = receive(url, AttributeNames=["All"])[0]
    system = first["Attributes"]
    assert (first["Body"], system["MessageGroupId"], system["MessageDeduplicationId"], system["SequenceNumber"]) == ("0", "a", "d0", numbers[0])
    rest = SQS.receive_message(QueueUrl=url, MaxNumberOfMessages=10)["Messages"]
    assert [message["Body"] for message in rest] == ["1", "3", "5"], rest
    nothing(url, wait=0)
    SQS.delete_message(QueueUrl=url, ReceiptHandle=first["ReceiptHandle"])
    assert [message["Body"] for message in receive(url, 2)] == ["2", "4"]
    for message in rest:
        SQS.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    expired = queue(fifo=True, VisibilityTimeout="0")
    SQS.send_message(QueueUrl=expired, MessageBody="x", MessageGroupId="g", MessageDeduplicationId="d")
    old = receive(expired)[0]
    receive(expired, VisibilityTimeout=60)
    fails("InvalidParameterValue", 400, SQS.delete_message, QueueUrl=expired, ReceiptHandle=old["ReceiptHandle"])


@check
def fifo_queues_recognise_repetitions():
    url = queue(fifo=True)
    send = lambda url, body, group="g", **more: SQS.send_message(QueueUrl=url, MessageBody=body, MessageGroupId=group, **more)
    one = send(url, "x", MessageDeduplicationId="d")
    again = client(1).send_message(QueueUrl=url, MessageBody="y", MessageGroupId="h", MessageDeduplicationId="d")
    assert (again["MessageId"], again["SequenceNumber"]) == (one["MessageId"], one["SequenceNumber"])
    fails("InvalidParameterValue", 400, send, url, "no id")
    fails("MissingParameter", 400, SQS.send_message, QueueUrl=url, MessageBody="x", MessageDeduplicationId="e")
    fails("InvalidParameterValue", 400, send, url, "x", MessageDeduplicationId="e", DelaySeconds=1)
    assert attributes(url)["ApproximateNumberOfMessages"] == "1"
    has = attributes(url)
    assert (has["FifoQueue"], has["ContentBasedDeduplication"], has["DeduplicationScope"], has["FifoThroughputLimit"]) == ("true", "false", "queue", "perQueue"), has
    content = queue(fifo=True, ContentBasedDeduplication="true")
    assert send(content, "same")["MessageId"] == send(content, "same")["MessageId"]
    got = receive(content, AttributeNames=["MessageDeduplicationId"])[0]
    assert got["Attributes"]["MessageDeduplicationId"] == "0967115f2813a3541eaef77de9d9d5773f1c0c04314b0bbfe4ff3b3b1c55b5d5"
    scoped = queue(fifo=True, DeduplicationScope="messageGroup", FifoThroughputLimit="perMessageGroupId")
    first = send(scoped, "x", MessageDeduplicationId="d")
    assert send(scoped, "x", "other", MessageDeduplicationId="d")["MessageId"] != first["MessageId"]
    assert send(scoped, "x", MessageDeduplicationId="d")["MessageId"] == first["MessageId"]
    got = receive(scoped, 2, AttributeNames=["All"], MessageAttributeNames=["All"])
    assert [message["Attributes"]["MessageDeduplicationId"] for message in got] == ["d", "d"] and "MessageAttributes" not in got[0], got
    fails("InvalidAttributeValue", 400, queue, fifo=True, DeduplicationScope="queue", FifoThroughputLimit="perMessageGroupId")
    limit = {"FifoThroughputLimit": "perMessageGroupId"}
    fails("InvalidAttributeValue", 400, queue, fifo=True, **limit)
    fails("InvalidAttributeValue", 400, SQS.set_queue_attributes, QueueUrl=url, Attributes=limit)
    fails("InvalidAttributeValue", 400, client(1).set_queue_attributes, QueueUrl=scoped, Attributes={"DeduplicationScope": "queue"})
    SQS.set_queue_attributes(QueueUrl=scoped, Attributes={"FifoThroughputLimit": "perQueue"})
    client(2).set_queue_attributes(QueueUrl=scoped, Attributes=limit)
    fails("InvalidAttributeValue", 400, SQS.set_queue_attributes, QueueUrl=url, Attributes={"FifoQueue": "false"})
    SQS.set_queue_attributes(QueueUrl=url, Attributes={"ContentBasedDeduplication": "true"})
    send(url, "now without id")


@check
def a_receive_attempt_may_be_repeated():
    url = queue(fifo=True, VisibilityTimeout="60", ContentBasedDeduplication="true")
    for body in ["1", "2"]:
        SQS.send_message(QueueUrl=url, MessageBody=body, MessageGroupId="g")
    first = receive(url, ReceiveRequestAttemptId="try")[0]
    again = client(1).receive_message(QueueUrl=url, ReceiveRequestAttemptId="try")["Messages"][0]
    assert (again["Body"], again["ReceiptHandle"]) == (first["Body"], first["ReceiptHandle"])
    nothing(url, wait=0, ReceiveRequestAttemptId="other")


@check
def groups_on_standard_queues_are_told():
    url = queue()
    SQS.send_message(QueueUrl=url, MessageBody="x", MessageGroupId="tenant-1")
    assert receive(url, AttributeNames=["MessageGroupId"])[0]["Attributes"] == {"MessageGroupId": "tenant-1"}


@check
def limits_of_queues_that_were_made_by_grpc_hold():
    url = f"{ENDPOINTS[0]}/{ACCOUNT}/native-one-in-flight"
    for _ in range(2):
        SQS.send_message(QueueUrl=url, MessageBody="x")
    held = receive(url)[0]
    fails("OverLimit", 403, SQS.receive_message, QueueUrl=url)
    SQS.delete_message(QueueUrl=url, ReceiptHandle=held["ReceiptHandle"])
    receive(url)
    short = f"{ENDPOINTS[0]}/{ACCOUNT}/native-of-one"
    SQS.send_message(QueueUrl=short, MessageBody="x")
    fails("OverLimit", 403, SQS.send_message, QueueUrl=short, MessageBody="x")


@check
def messages_go_between_grpc_and_sqs():
    url = f"{ENDPOINTS[0]}/{ACCOUNT}/native"
    got = receive(url, MessageAttributeNames=["All"])[0]
    assert got["Body"] == "/wA=", got
    assert got["MessageAttributes"]["Leasehold.BodyEncoding"] == {"DataType": "String", "StringValue": "base64"}
    assert got["MessageAttributes"]["plain"]["StringValue"] == "by gRPC", got
    SQS.delete_message(QueueUrl=url, ReceiptHandle=got["ReceiptHandle"])
    trace = {"AWSTraceHeader": {"DataType": "String", "StringValue": "Root=1"}}
    number = {"number": {"DataType": "Number.int", "StringValue": "7"}}
    SQS.send_message(QueueUrl=url, MessageBody="from SQS: ü", MessageAttributes=number, MessageSystemAttributes=trace)


@check
def tags_come_and_go():
    url = SQS.create_queue(QueueName=name(), tags={"a": "1"})["QueueUrl"]
    SQS.tag_queue(QueueUrl=url, Tags={"b": "", "c": "ü" * 256})
    assert client(1).list_queue_tags(QueueUrl=url)["Tags"] == {"a": "1", "b": "", "c": "ü" * 256}
    SQS.untag_queue(QueueUrl=url, TagKeys=["a", "c", "never"])
    assert client(2).list_queue_tags(QueueUrl=url)["Tags"] == {"b": ""}
    SQS.untag_queue(QueueUrl=url, TagKeys=["b"])
    assert "Tags" not in SQS.list_queue_tags(QueueUrl=url)
    fails("InvalidParameterValue", 400, SQS.tag_queue, QueueUrl=url, Tags={f"k{number}": "v" for number in range(51)})
    fails("MissingParameter", 400, SQS.tag_queue, QueueUrl=url, Tags={})
    fails("MissingParameter", 400, SQS.untag_queue, QueueUrl=url, TagKeys=[])
    gone = f"{ENDPOINTS[0]}/{ACCOUNT}/{name()}"
    fails(SIMPLE + "NonExistentQueue", 400, SQS.tag_queue, QueueUrl=gone, Tags={"a": "b"})
    fails(SIMPLE + "NonExistentQueue", 400, SQS.list_queue_tags, QueueUrl=gone)


@check
def permissions_change_the_policy():
    url = queue()
    SQS.add_permission(QueueUrl=url, Label="one", AWSAccountIds=["123456789012"], Actions=["SendMessage"])
    client(1).add_permission(QueueUrl=url, Label="two", AWSAccountIds=["123456789012", "210987654321"], Actions=["*", "ReceiveMessage"])
    policy = json.loads(attributes(url)["Policy"])
    assert [statement["Sid"] for statement in policy["Statement"]] == ["one", "two"], policy
    fails("InvalidParameterValue", 400, SQS.add_permission, QueueUrl=url, Label="one", AWSAccountIds=["123456789012"], Actions=["SendMessage"])
    fails("InvalidParameterValue", 400, SQS.add_permission, QueueUrl=url, Label="x", AWSAccountIds=["123456789012"], Actions=["Fly"])
    fails("OverLimit", 403, SQS.add_permission, QueueUrl=url, Label="x", AWSAccountIds=["123456789012"], Actions=["SendMessage"] * 8)
    SQS.remove_permission(QueueUrl=url, Label="one")
    fails("InvalidParameterValue", 400, SQS.remove_permission, QueueUrl=url, Label="one")
    SQS.remove_permission(QueueUrl=url, Label="two")
    assert "Policy" not in attributes(url)


@check
def purges_and_deletions_keep_their_pauses():
    url = queue()
    SQS.send_message(QueueUrl=url, MessageBody="x")
    SQS.purge_queue(QueueUrl=url)
    nothing(url)
    fails(SIMPLE + "PurgeQueueInProgress", 403, client(1).purge_queue, QueueUrl=url)
    SQS.delete_queue(QueueUrl=url)
    for node in range(len(ENDPOINTS)):
        fails(SIMPLE + "NonExistentQueue", 400, client(node).delete_queue, QueueUrl=url)
    fails(SIMPLE + "NonExistentQueue", 400, SQS.send_message, QueueUrl=url, MessageBody="x")
    fails(SIMPLE + "NonExistentQueue", 400, SQS.receive_message, QueueUrl=url)
    fails(SIMPLE + "NonExistentQueue", 400, SQS.purge_queue, QueueUrl=url)
    fails(SIMPLE + "QueueDeletedRecently", 400, client(2).create_queue, QueueName=url.rsplit("/", 1)[1])


def presigned(node, parameters, path="/", key=KEY, secret=SECRET, expires=60):
    url = f"{ENDPOINTS[node % len(ENDPOINTS)]}{path}"
    request = AWSRequest(method="GET", url=url, params=parameters)
    SigV4QueryAuth(Credentials(key, secret), "sqs", "us-east-1", expires=expires).add_auth(request)
    return request.prepare().url


def http(url):
    try:
        return 200, urllib.request.urlopen(url).read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@check
def requests_are_signed():
    client(region="eu-central-1").list_queues(MaxResults=1)
    fails("InvalidClientTokenId", 403, client(key="OTHER").list_queues)
    error = fails("SignatureDoesNotMatch", 403, client(secret="wrong").list_queues)
    assert SECRET not in str(error.response)
    status, body = http(presigned(0, {"Action": "ListQueues", "QueueNamePrefix": "a b+c/ü"}))
    assert status == 200 and "<ListQueuesResponse" in body, body
    status, body = http(presigned(0, {"Action": "ListQueues"}).replace("ListQueues", "PurgeQueue"))
    assert status == 403 and "SignatureDoesNotMatch" in body, body
    status, body = http(presigned(0, {"Action": "ListQueues"}, expires=604801))
    assert status == 400 and "IncompleteSignature" in body, body
    status, body = http(f"{ENDPOINTS[0]}/?Action=ListQueues")
    assert status == 403 and "MissingAuthenticationToken" in body, body
    late = urllib.parse.urlparse(presigned(0, {"Action": "ListQueues"}))
    fields = urllib.parse.parse_qs(late.query)
    day = fields["X-Amz-Date"][0]
    old = f"{int(day[:4]) - 1}{day[4:]}"
    query = late.query.replace(day, old).replace(f"%2F{day[:8]}%2F", f"%2F{old[:8]}%2F")
    status, body = http(f"{ENDPOINTS[0]}/?{query}")
    assert status == 400 and "RequestExpired" in body, body
    status, body = http(presigned(0, {"Action": "Fly"}))
    assert status == 400 and "InvalidAction" in body, body
    status, body = http(presigned(0, {}))
    assert status == 400 and "MissingAction" in body, body


def main():
    failed = 0
    filled = fill_for_a_minute()

    @check
    @functools.wraps(retention)
    def last():
        retention(*filled)

    for function in CHECKS:
        started = time.time()
        try:
            function()
            print(f"ok      {function.__name__} {time.time() - started:.1f} s", flush=True)
        except Exception as error:  # A check that fails must not keep the others from being made.
            failed += 1
            print(f"FAILED  {function.__name__}: {type(error).__name__}: {error}", flush=True)
    print(f"{len(CHECKS) - failed} of {len(CHECKS)} checks passed with botocore {botocore.__version__}")
    sys.exit(1 if failed else 0)


main()

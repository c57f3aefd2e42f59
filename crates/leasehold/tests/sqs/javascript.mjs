// What the SDK for JavaScript does otherwise than boto3: HTTP/2, errors as classes, its own digests, aborts, and a clock that it corrects.
//
// usage: node javascript.mjs ENDPOINT[,ENDPOINT...] KEY SECRET
//
// Run where the packages @aws-sdk/client-sqs and @smithy/node-http-handler are installed.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(pathToFileURL(`${process.cwd()}/package.json`));
const sqs = require("@aws-sdk/client-sqs");
const { NodeHttpHandler, NodeHttp2Handler } = require("@smithy/node-http-handler");

const [endpoints, accessKeyId, secretAccessKey] = process.argv.slice(2);
const ENDPOINTS = endpoints.split(",");
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function client(requestHandler, node = 0, more = {}) {
  const credentials = { accessKeyId, secretAccessKey };
  const made = new sqs.SQSClient({
    endpoint: ENDPOINTS[node % ENDPOINTS.length], region: "us-east-1", credentials, requestHandler, ...more,
  });
  return (operation, parameters = {}, options = {}) => made.send(new sqs[`${operation}Command`](parameters), options);
}

async function queue(call, Attributes = {}) {
  const suffix = Attributes.FifoQueue ? ".fifo" : "";
  const QueueName = `js-${process.pid}-${process.hrtime.bigint()}${suffix}`;
  return (await call("CreateQueue", { QueueName, Attributes })).QueueUrl;
}

async function receive(call, QueueUrl, count = 1, more = {}) {
  const got = [];
  for (let tries = 0; got.length < count && tries < 10; tries++) {
    const answer = await call("ReceiveMessage", { QueueUrl, MaxNumberOfMessages: count - got.length, WaitTimeSeconds: 5, ...more });
    got.push(...(answer.Messages ?? []));
  }
  assert.equal(got.length, count);
  return got;
}

async function messagesWithAttributes(call) {
  const QueueUrl = await queue(call);
  const MessageAttributes = {
    text: { DataType: "String", StringValue: "ü < &\n" },
    number: { DataType: "Number.int", StringValue: "-42" },
    bytes: { DataType: "Binary.png", BinaryValue: new Uint8Array([0, 255, 128]) },
  };
  const trace = { AWSTraceHeader: { DataType: "String", StringValue: "Root=1-5759e988-bd862e3fe1be46a994272793" } };
  for (const MessageBody of ['line\r\n<tag attr="1">&amp; 😀 \t end', "ü".repeat(524_288 - 100)]) {
    await call("SendMessage", { QueueUrl, MessageBody, MessageAttributes, MessageSystemAttributes: trace });
    const [got] = await receive(call, QueueUrl, 1, { MessageAttributeNames: ["All"], MessageSystemAttributeNames: ["All"] });
    assert.equal(got.Body, MessageBody);
    assert.deepEqual({ ...got.MessageAttributes.bytes.BinaryValue }, { 0: 0, 1: 255, 2: 128 });
    assert.equal(got.MessageAttributes.text.StringValue, MessageAttributes.text.StringValue);
    assert.equal(got.Attributes.ApproximateReceiveCount, "1");
    await call("DeleteMessage", { QueueUrl, ReceiptHandle: got.ReceiptHandle });
  }
}

async function batchesAndFifo(call) {
  const QueueUrl = await queue(call, { FifoQueue: "true", ContentBasedDeduplication: "true" });
  const entry = (number) => ({ Id: `e${number}`, MessageBody: `${number}`, MessageGroupId: "g" });
  const wrong = { ...entry(5), MessageGroupId: "a b" };
  const sent = await call("SendMessageBatch", { QueueUrl, Entries: [entry(1), entry(2), entry(3), wrong] });
  assert.deepEqual(sent.Failed.map((failed) => [failed.Id, failed.Code, failed.SenderFault]), [["e5", "InvalidParameterValue", true]]);
  const got = await receive(call, QueueUrl, 3);
  assert.deepEqual(got.map((message) => message.Body), ["1", "2", "3"]);
  const Entries = got.map(({ ReceiptHandle }, at) => ({ Id: `d${at}`, ReceiptHandle }));
  assert.equal((await call("DeleteMessageBatch", { QueueUrl, Entries })).Successful.length, 3);
}

async function errorsAreClasses(call) {
  const QueueUrl = await queue(call);
  await assert.rejects(call("GetQueueUrl", { QueueName: "js-there-is-none" }), sqs.QueueDoesNotExist);
  await assert.rejects(call("DeleteMessage", { QueueUrl, ReceiptHandle: "none" }), sqs.ReceiptHandleIsInvalid);
  const twice = [1, 2].map(() => ({ Id: "a", MessageBody: "x" }));
  await assert.rejects(call("SendMessageBatch", { QueueUrl, Entries: twice }), sqs.BatchEntryIdsNotDistinct);
  await assert.rejects(call("SendMessageBatch", { QueueUrl, Entries: [] }), sqs.EmptyBatchRequest);
  await assert.rejects(call("SetQueueAttributes", { QueueUrl, Attributes: { Colour: "red" } }), sqs.InvalidAttributeName);
  await assert.rejects(call("SendMessage", { QueueUrl, MessageBody: "\uffff" }), sqs.InvalidMessageContents);
}

async function anAbortedPollTakesNothing(call) {
  const QueueUrl = await queue(call);
  const abort = new AbortController();
  const poll = { QueueUrl, WaitTimeSeconds: 20, VisibilityTimeout: 3600 };
  const aborted = assert.rejects(call("ReceiveMessage", poll, { abortSignal: abort.signal }), { name: "AbortError" });
  await pause(700);
  abort.abort();
  await aborted;
  await pause(500);
  await call("SendMessage", { QueueUrl, MessageBody: "for somebody who is there" });
  const [got] = await receive(call, QueueUrl, 1, { MessageSystemAttributeNames: ["ApproximateReceiveCount"] });
  assert.equal(got.Attributes.ApproximateReceiveCount, "1");
}

async function aWrongClockIsCorrected(handler) {
  const RealDate = Date;
  for (const off_ms of [-3_600_000, 3_600_000]) {
    globalThis.Date = class extends RealDate {
      constructor(...given) {
        super(...(given.length ? given : [RealDate.now() + off_ms]));
      }
      static now() {
        return RealDate.now() + off_ms;
      }
    };
    try {
      await client(handler)("ListQueues", { MaxResults: 1 });
    } finally {
      globalThis.Date = RealDate;
    }
  }
}

async function manyAtOnce(call) {
  const QueueUrl = await queue(call);
  const numbers = [...Array(100).keys()];
  await Promise.all(numbers.map((number) => call("SendMessage", { QueueUrl, MessageBody: `${number}` })));
  const pages = await Promise.all(numbers.slice(0, 10).map(() => receive(call, QueueUrl, 10)));
  assert.equal(new Set(pages.flat().map((message) => message.Body)).size, 100);
}

// An HTTP/2 session that waits keeps no process alive.
const alive = setInterval(() => {}, 1000);
for (const [protocol, handler] of [["HTTP/1.1", new NodeHttpHandler()], ["HTTP/2", new NodeHttp2Handler()]]) {
  for (const check of [messagesWithAttributes, batchesAndFifo, errorsAreClasses, anAbortedPollTakesNothing, manyAtOnce]) {
    await check(client(handler));
    console.log(`ok ${protocol} ${check.name}`);
  }
  await aWrongClockIsCorrected(handler);
  console.log(`ok ${protocol} aWrongClockIsCorrected`);
  handler.destroy();
}
clearInterval(alive);
console.log("all passed");

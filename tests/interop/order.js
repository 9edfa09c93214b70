"use strict";
// A stranger to ordersys: knows the protos as they are, the names of the contract, and nothing else.
// node order.js PROTOS PRODUCT_ADDRESS ORDER_ADDRESS AMQP_URL: orders, is refused, hears of it; prints what it saw.

const path = require("node:path");
const { setTimeout: sleep } = require("node:timers/promises");
const amqp = require("amqplib");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");
const protobuf = require("protobufjs");

const SECONDS = 30;
const RICH_ERRORS = protobuf.parse(`
  syntax = "proto3";
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
  message FieldViolation { string field = 1; string description = 2; }
  message BadRequest { repeated FieldViolation field_violations = 1; }
`, { keepCase: true }).root;

function services(protos) {
  const files = ["order.proto", "product.proto"].map((name) => path.join("ordersys/core/v1", name));
  const definition = loader.loadSync(files, {
    includeDirs: [protos], keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true,
  });
  return grpc.loadPackageDefinition(definition).ordersys.core.v1;
}

function call(client, method, request) {
  return new Promise((resolve, reject) => {
    const deadline = new Date(Date.now() + SECONDS * 1000);
    client[method](request, { deadline }, (error, response) => (error ? reject(error) : resolve(response)));
  });
}

// The status of a refused call with its google.rpc details by name.
async function refusal(promise) {
  try {
    await promise;
  } catch (error) {
    const [packed] = error.metadata.get("grpc-status-details-bin");
    const details = {};
    for (const detail of RICH_ERRORS.lookupType("Status").decode(packed).details) {
      const type = RICH_ERRORS.lookup(detail.type_url.split(".").pop());
      if (type) details[type.name] = type.toObject(type.decode(detail.value), { defaults: true, objects: true });
    }
    return { status: grpc.status[error.code], message: error.details, ...details };
  }
  throw new Error("the call was not refused");
}

// Events after a sequence, until there are so many.
function watch(orders, order_id, count) {
  return new Promise((resolve, reject) => {
    const seen = [];
    const stream = orders.WatchOrders({ order_id, after_sequence: 0 }, { deadline: Date.now() + SECONDS * 1000 });
    stream.on("error", (error) => (error.code === grpc.status.CANCELLED ? resolve(seen) : reject(error)));
    stream.on("data", (event) => {
      seen.push(event);
      if (seen.length === count) stream.cancel();
    });
  });
}

// Another team's consumer: declares what the contract says is there, and binds a queue of its own.
async function subscribe(channel) {
  await channel.assertExchange("orders.fanout", "fanout", { durable: true });
  await channel.assertExchange("orders.topic", "topic", { durable: true });
  const { queue } = await channel.assertQueue("", { exclusive: true });
  await channel.bindQueue(queue, "orders.fanout", "");
  await channel.bindQueue(queue, "orders.topic", "order.#");
  return queue;
}

function told(message) {
  return {
    exchange: message.fields.exchange,
    routing_key: message.fields.routingKey,
    content_type: message.properties.contentType,
    message_id: message.properties.messageId,
    delivery_mode: message.properties.deliveryMode,
    event: JSON.parse(message.content.toString("utf8")),
  };
}

// So many messages of a queue, in its order.
async function take(channel, queue, count) {
  const taken = [];
  const deadline = Date.now() + SECONDS * 1000;
  while (taken.length < count) {
    if (Date.now() > deadline) throw new Error(`${taken.length} of ${count} messages came to ${queue}`);
    const message = await channel.get(queue, { noAck: true });
    if (message) taken.push(told(message));
    else await sleep(20);
  }
  return taken;
}

async function main([protos, productAddress, orderAddress, brokerUrl]) {
  const { ProductService, OrderService } = services(protos);
  const plain = grpc.credentials.createInsecure();
  const products = new ProductService(productAddress, plain);
  const orders = new OrderService(orderAddress, plain);
  const connection = await amqp.connect(brokerUrl);
  const channel = await connection.createChannel();
  const queue = await subscribe(channel);

  const wanted = { customer_id: "nöde-客", lines: [{ product_id: "1", quantity: 2 }], idempotency_key: "node-1" };
  const seen = {};
  seen.data = await call(products, "GetData", {});
  seen.before = (await call(products, "GetProduct", { product_id: "1" })).product;
  seen.placed = await call(products, "PlaceOrder", wanted);
  seen.again = await call(products, "PlaceOrder", wanted);
  const id = seen.placed.order.id;
  seen.too_much = await refusal(call(products, "PlaceOrder", { ...wanted, idempotency_key: "node-2",
    lines: [{ product_id: "1", quantity: 1000000 }] }));
  seen.bad = await refusal(call(products, "PlaceOrder", { lines: [{ product_id: "1", quantity: 0 }] }));
  seen.reused = await refusal(call(products, "PlaceOrder", { ...wanted, customer_id: "another" }));
  seen.updated = await call(products, "UpdateOrder", { order_id: id, expected_version: 1, idempotency_key: "node-3",
    lines: [{ product_id: "1", quantity: 3 }] });
  seen.conflict = await refusal(call(products, "CancelOrder", { order_id: id, expected_version: 1 }));
  seen.shipped = await call(orders, "AdvanceOrder", { order_id: id, to_status: "ORDER_STATUS_SHIPPED" });
  seen.unknown = await refusal(call(orders, "GetOrder", { order_id: "nobody's" }));
  seen.read = await call(orders, "GetOrder", { order_id: id });
  seen.after = (await call(products, "GetProduct", { product_id: "1" })).product;
  seen.watched = await watch(orders, id, 3);
  seen.heard = await take(channel, queue, 4);
  seen.notify_fanout = await take(channel, "notify.fanout", 1);
  seen.notify_topic = await take(channel, "notify.topic", 3);

  console.log(JSON.stringify(seen));
  await connection.close();
  products.close();
  orders.close();
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(1);
});

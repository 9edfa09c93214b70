// The live page. Whatever comes from the server is text: it goes in through textContent, never through markup.

const POLL_MS = 5000;
const SOON_MS = 300; // what an event changed is read again after so long, once for all events in between,
const GAP_MS = 1500; // and not more often than this: every request counts against the key's rate limit
const PATIENCE_MS = 8000; // for one request
const SILENCE_MS = 40_000; // the stream has a heartbeat every 15 s: after this it is dead
const MOST_ORDERS = 10;
const MOST_EVENTS = 60;
const HISTORY = 20; // events from before the page was opened
const FULL_BAR = 100;
const LOW = 20;
const KEY = "ordersys.key";

const $ = (id) => document.getElementById(id);
const url = (path) => new URL(path, document.baseURI);

let key = sessionStorage.getItem(KEY) ?? "";
let running = new AbortController(); // everything under way for this key
let skew = 0; // how far the server's clock is ahead of ours, in ms

// --- asking

class Refused extends Error {
  constructor(status, problem, wait) {
    super(problem.detail || `HTTP ${status}`);
    this.status = status;
    this.problem = problem;
    this.wait = wait;
  }
}

function headers(more) {
  return key ? { "X-API-Key": key, ...more } : { ...more };
}

async function ask(path, { method = "GET", body, more = {}, signal, patience = PATIENCE_MS } = {}) {
  const patient = patience ? AbortSignal.any([signal ?? running.signal, AbortSignal.timeout(patience)]) : signal;
  const response = await fetch(url(path), {
    method, body, headers: headers(more), signal: patient, cache: "no-store", credentials: "same-origin",
  });
  const now = Date.parse(response.headers.get("Date"));
  if (!Number.isNaN(now)) skew = now - Date.now();
  return response;
}

async function json(path, options) {
  const response = await ask(path, options);
  if (response.ok) return response.json();
  throw await refusal(response);
}

async function refusal(response) {
  let problem = {};
  try {
    problem = await response.json();
  } catch {
    // not ours: a proxy's page
  }
  const wait = 1000 * Number.parseFloat(response.headers.get("Retry-After") ?? "");
  return new Refused(response.status, problem, Number.isNaN(wait) ? 0 : wait);
}

function why(error) {
  return error instanceof Refused ? error.message : "the gateway does not answer";
}

// --- showing

function make(name, { className, text, title, ...data } = {}, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  if (title) made.title = title;
  Object.assign(made.dataset, data);
  made.append(...children);
  return made;
}

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Puts these in the place of all children, and leaves the page alone when they are the same.
function fill(parent, children) {
  const same = parent.children.length === children.length && children.every((each, at) => parent.children[at] === each);
  if (!same) parent.replaceChildren(...children);
}

// Nodes that are made anew only when what they show has changed.
function keeper(build) {
  let kept = new Map();
  return (items, name) => {
    const next = new Map();
    for (const item of items) {
      const face = JSON.stringify(item);
      const old = kept.get(name(item));
      next.set(name(item), old?.face === face ? old : { face, node: build(item, old === undefined) });
    }
    kept = next;
    return [...next.values()].map((each) => each.node);
  };
}

const whole = new Intl.NumberFormat();
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const moneys = new Map();

function money({ currency, amount }) {
  try {
    if (!moneys.has(currency)) {
      const format = new Intl.NumberFormat(undefined, { style: "currency", currency });
      moneys.set(currency, [format, 10 ** format.resolvedOptions().maximumFractionDigits]);
    }
    const [format, minor] = moneys.get(currency);
    return format.format(amount / minor);
  } catch {
    return `${whole.format(amount)} ${currency}`; // no currency that this browser knows
  }
}

function span(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  for (const [size, word] of [[86_400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= size) return `${whole.format(Math.floor(seconds / size))} ${word}`;
  }
  return `${seconds} s`;
}

function age(at) {
  const made = make("time", { text: span(Date.now() + skew - at), title: moment.format(at), at });
  made.dateTime = new Date(at).toISOString();
  return made;
}

const tail = (id) => (id.length > 12 ? `…${id.slice(-8)}` : id);
const units = (order) => order.lines.reduce((sum, line) => sum + line.quantity, 0);

// --- panels: fresh, stale, or not for these eyes

class Panel {
  constructor(id, load) {
    this.section = $(id);
    this.note = this.section.querySelector(".note");
    this.body = this.section.querySelector(".body");
    this.load = load;
    this.since = 0; // when it was last read
    this.busy = false;
    this.notBefore = 0;
  }

  fresh(words = "") {
    this.since = Date.now();
    this.#be("fresh", words);
  }

  stale(words) {
    if (this.section.dataset.state === "forbidden") return;
    this.#be("stale", this.since ? `Last known, from ${clock.format(this.since)}: ${words}` : `Not known: ${words}`);
  }

  forbidden(words) {
    this.#be("forbidden", `Hidden: ${words}`);
  }

  blank() {
    this.since = this.notBefore = 0;
    this.busy = false;
    this.#be("loading", "");
  }

  #be(state, words) {
    this.section.dataset.state = state;
    this.body.hidden = state === "forbidden";
    say(this.note, words);
  }

  async refresh() {
    if (this.busy || Date.now() < this.notBefore) return;
    this.busy = true;
    const { signal } = running;
    try {
      await this.load(this, signal);
    } catch (error) {
      if (!signal.aborted) this.failed(error);
    } finally {
      if (!signal.aborted) this.busy = false;
    }
  }

  failed(error) {
    if (error.status === 401) return askForKey();
    if (error.status === 403) return this.forbidden(error.message);
    if (error instanceof TypeError && !/fetch|network|load/i.test(error.message)) console.error(error); // ours
    this.notBefore = Date.now() + (error.wait ?? 0);
    this.stale(why(error));
  }
}

// --- services

const services = new Panel("services", async (panel, signal) => {
  const response = await ask("readyz", { signal });
  const found = await response.json(); // 503 says the same, of a gateway that is not ready
  if (signal.aborted) return;
  if (typeof found.checks !== "object" || found.checks === null) throw new Refused(response.status, found, 0);
  const all = [["gateway", { status: "ready" }], ...Object.entries(found.checks)];
  fill($("service-list"), serviceRows(all, ([name]) => name));
  const down = all.filter(([, check]) => !works(check)).length;
  panel.fresh(down ? `${down} of ${all.length} in trouble` : "");
});

const works = (check) => ["ok", "ready", "serving", "up"].includes(String(check.status).toLowerCase());

const serviceRows = keeper(([name, check]) => {
  const ok = works(check);
  return make("li", {},
    make("span", { className: "dot", state: ok ? "ok" : "bad" }),
    make("span", { text: name }),
    make("span", { className: ok ? "word" : "word bad", text: String(check.status) }));
});

// --- outbox and queues

const flow = new Panel("flow", async (panel, signal) => {
  const { outbox, queues, broker } = await json("api/v1/flow", { signal });
  if (signal.aborted) return;
  const counted = broker === "ok";
  figure("outbox-depth", outbox.depth, outbox.oldest_seconds > 30 ? "warn" : "");
  say($("outbox-age"), outbox.depth ? `oldest waits ${span(1000 * outbox.oldest_seconds)}` : "everything is sent");
  const sum = (name) => queues.reduce((total, queue) => total + queue[name], 0);
  const dead = sum("dead");
  figure("waiting", counted ? sum("ready") + sum("retrying") : null);
  figure("dead", counted ? dead : null, dead ? "bad" : "");
  say($("dead-hint"), dead ? "see ordersys dlq list" : "nothing was given up");
  fill($("queues").tBodies[0], queueRows(queues, (queue) => queue.name));
  $("queues").hidden = !counted;
  if (counted) panel.fresh();
  else panel.stale(broker);
});

function figure(id, count, mood = "") {
  say($(id), count === null ? "–" : whole.format(count));
  $(id).className = `figure ${mood}`;
}

const queueRows = keeper((queue) => {
  const cell = (count) => make("td", { className: count ? "number" : "number zero", text: whole.format(count) });
  return make("tr", {}, make("td", { text: queue.name }), cell(queue.ready), cell(queue.retrying), cell(queue.dead));
});

// --- orders

const known = new Map(); // the newest, by id

function learn(order) {
  const before = known.get(order.id);
  if (before && before.version >= order.version) return;
  known.set(order.id, order);
}

function showOrders() {
  const newest = [...known.values()].sort((a, b) => Date.parse(b.created_at) - Date.parse(a.created_at) || (a.id < b.id ? 1 : -1));
  for (const order of newest.splice(MOST_ORDERS)) known.delete(order.id);
  const rows = orderRows(newest, (order) => order.id);
  const text = "No orders yet. The first one shows up here by itself.";
  fill(orders.section.querySelector("tbody"), rows.length ? rows : [spread(text, 5)]);
}

function spread(text, columns) {
  const cell = make("td", { className: "empty", text });
  cell.colSpan = columns;
  return make("tr", {}, cell);
}

const orders = new Panel("orders", async (panel, signal) => {
  const found = await json(`api/v1/orders?page_size=${MOST_ORDERS}`, { signal });
  if (signal.aborted) return;
  for (const order of found.orders) learn(order);
  showOrders();
  panel.fresh();
});

const orderRows = keeper((order) => {
  const row = make("tr", { className: Date.now() + skew - Date.parse(order.updated_at) < 5000 ? "new" : "", order: order.id });
  row.append(
    make("td", {}, make("span", { className: "id", text: tail(order.id), title: order.id }), make("small", {}, make("bdi", { text: order.customer_id }))),
    make("td", {}, make("span", { className: `badge ${safeClass(order.status)}`, text: order.status })),
    make("td", { className: "number wide", text: whole.format(units(order)) }),
    make("td", { className: "number", text: money(order.total) }),
    make("td", { className: "number age" }, age(Date.parse(order.created_at))),
  );
  return row;
});

const safeClass = (word) => (/^[a-z]+$/.test(word) ? word : "");

// --- products

const names = new Map();

const products = new Panel("products", async (panel, signal) => {
  const response = await ask("api/v1/products?page_size=100", { signal });
  if (!response.ok) throw await refusal(response);
  const found = await response.json();
  if (signal.aborted) return;
  for (const product of found.products) names.set(product.id, product.name);
  const rows = productRows(found.products, (product) => product.id);
  fill(panel.section.querySelector("tbody"), rows.length ? rows : [spread("There is nothing to sell.", 3)]);
  fill($("product"), productOptions(found.products.map(({ id, name }) => ({ id, name })), (product) => product.id));
  const low = found.products.filter((product) => product.available <= LOW).length;
  if (found.stale) {
    panel.since = Date.now() - 1000 * Number(response.headers.get("Age") ?? 0);
    panel.stale("product-service does not answer");
  } else panel.fresh([found.next_page_token && "the first 100", low && `${low} low`].filter(Boolean).join(", "));
});

const productRows = keeper((product) => {
  const state = product.available <= 0 ? "out" : product.available <= LOW ? "low" : "";
  const bar = make("span", { className: "bar" });
  bar.setAttribute("aria-hidden", "true");
  bar.style.setProperty("--fill", `${Math.min(100, Math.max(0, (100 * product.available) / FULL_BAR))}%`);
  const name = make("td", {}, make("bdi", { text: product.name, title: product.description }), make("bdi", { className: "id", text: product.id }));
  if (state === "low") name.append(make("span", { className: "badge warning", text: "low" }));
  if (state === "out") name.append(make("span", { className: "badge alarm", text: "sold out" }));
  return make("tr", { className: state, product: product.id },
    name,
    make("td", { className: "number", text: money(product.price) }),
    make("td", {}, make("div", { className: "stock" }, bar, make("span", { className: "units", text: whole.format(product.available) }))));
});

const productOptions = keeper((product) => {
  const option = make("option", { text: product.name });
  option.value = product.id;
  return option;
});

// --- the stream

const CHANGES = { created: "Placed", lines: "Changed", cancelled: "Cancelled", shipped: "Shipped", delivered: "Delivered" };
const stream = new Panel("events");
let arrived = []; // not shown yet
let paused = false;
let showing = 0;
let wake = () => {};

function connection(state, words) {
  $("connection").dataset.state = state;
  say($("connection"), words);
}

function pause(ms) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    wake = () => { clearTimeout(timer); resolve(); };
  });
}

// Follows the events for as long as this key is the key; comes back by itself with the last id it has seen.
async function follow(signal) {
  const reader = { id: "", wait: 1000, begun: false };
  let failures = 0;
  while (!signal.aborted) {
    try {
      await listen(reader, signal, () => { failures = 0; });
      if (signal.aborted) return;
      await pause(reader.wait * (0.5 + Math.random() / 2)); // it ended well: nothing to tell
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 401) return askForKey();
      if (error.status === 403) {
        connection("lost", "No event stream");
        return stream.forbidden(error.message);
      }
      failures += 1;
      connection("lost", "Reconnecting");
      stream.stale(`${why(error)}; trying again`);
      const longest = Math.min(15_000, reader.wait * 2 ** (failures - 1));
      await pause(Math.max(Math.min(error.wait ?? 0, 60_000), longest * (0.5 + Math.random() / 2)));
    }
  }
}

async function listen(reader, signal, connected) {
  const silence = new AbortController();
  let timer = setTimeout(() => silence.abort(), PATIENCE_MS);
  try {
    const more = { Accept: "text/event-stream" };
    if (reader.id) more["Last-Event-ID"] = reader.id;
    const response = await ask("api/v1/events", { more, signal: AbortSignal.any([signal, silence.signal]), patience: 0 });
    if (!response.ok) throw await refusal(response);
    connected();
    connection("live", "Live");
    stream.fresh(paused ? stream.note.textContent : "");
    const parser = new Parser(reader);
    const body = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), SILENCE_MS);
      const { done, value } = await body.read();
      if (done || signal.aborted) return;
      for (const data of parser.push(value)) hear(data);
      if (!reader.begun && reader.id) {
        // Told where the log is now: come back a little before that, so that the page does not begin empty.
        reader.begun = true;
        reader.id = String(Math.max(0, Number(reader.id) - HISTORY));
        return await again(body, reader, signal, connected);
      }
    }
  } finally {
    clearTimeout(timer);
  }
}

async function again(body, reader, signal, connected) {
  await body.cancel();
  return listen(reader, signal, connected);
}

// https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
class Parser {
  #rest = "";
  #data = [];
  #id;

  constructor(reader) {
    this.reader = reader;
    this.#id = reader.id;
  }

  * push(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    for (const line of lines) {
      const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
      if (line === "") {
        this.reader.id = this.#id;
        if (this.#data.length) yield this.#data.join("\n");
        this.#data = [];
      } else if (field === "data") this.#data.push(value);
      else if (field === "id" && !value.includes("\0")) this.#id = value;
      else if (field === "retry" && /^\d+$/.test(value)) this.reader.wait = Number(value);
    }
  }
}

function hear(text) {
  const event = JSON.parse(text);
  const { order_id: id, change, ...order } = event.data;
  learn({ id, ...order });
  arrived.push({ event: event.id, at: Date.parse(event.time), change, id, ...order });
  showing ||= setTimeout(show, 120); // many at once are shown at once
  soon();
}

function show() {
  showing = 0;
  showOrders();
  if (paused) {
    say(stream.note, arrived.length ? `${whole.format(arrived.length)} more since` : "");
    return;
  }
  const list = $("event-list");
  list.querySelector(".empty")?.remove();
  const newest = arrived.slice(-MOST_EVENTS).reverse().map(entry);
  arrived = [];
  list.prepend(...newest);
  while (list.children.length > MOST_EVENTS) list.lastElementChild.remove();
}

function entry(seen) {
  const made = make("li", { className: Date.now() + skew - seen.at < 5000 ? "new" : "", event: seen.event },
    make("span", { className: `badge ${safeClass(seen.change)}`, text: CHANGES[seen.change] ?? seen.change }),
    make("span", { className: "who" }, make("bdi", { text: seen.customer_id }), " ", make("span", { className: "id", text: tail(seen.id), title: seen.id })),
    make("span", { className: "total", text: money(seen.total) }));
  const time = make("time", { text: clock.format(seen.at), title: moment.format(seen.at) });
  time.dateTime = new Date(seen.at).toISOString();
  made.append(time, make("span", { className: "what", text: seen.lines.map((line) => `${whole.format(line.quantity)} × ${names.get(line.product_id) ?? `product ${line.product_id}`}`).join(", ") }));
  return made;
}

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  say($("pause"), paused ? "Go on" : "Pause");
  if (!paused) say(stream.note, "");
  show();
});

// --- a test order

const place = new Panel("place");
let attempt = { body: "", key: "" };

function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

$("place-form").addEventListener("submit", async (submitted) => {
  submitted.preventDefault();
  const outcome = $("placed");
  const button = $("place-form").querySelector("button");
  const body = JSON.stringify({
    customer_id: $("customer").value,
    lines: [{ product_id: $("product").value, quantity: Number($("quantity").value) }],
  });
  if (attempt.body !== body) attempt = { body, key: newKey() }; // an attempt without an answer keeps its key
  button.disabled = true;
  outcome.className = "outcome";
  try {
    const more = { "Content-Type": "application/json", "Idempotency-Key": attempt.key };
    const order = await json("api/v1/orders", { method: "POST", body, more });
    attempt = { body: "", key: "" };
    say(outcome, `Placed ${tail(order.id)} for ${money(order.total)}.`);
    learn(order);
    showOrders();
    soon();
  } catch (error) {
    if (error.status === 401) return askForKey();
    const tied = error.problem?.metadata?.customer_id;
    if (error.status === 403 && tied === undefined) return place.forbidden(error.message);
    if (tied !== undefined) $("customer").value = tied;
    if (error.status < 500) attempt = { body: "", key: "" };
    outcome.className = "outcome problem";
    say(outcome, why(error));
  } finally {
    button.disabled = false;
  }
});

// --- the key

function askForKey() {
  if (!$("key-form").hidden) return;
  stop();
  const rejected = key !== "";
  forget();
  $("key-form").hidden = false;
  $("main").hidden = true;
  say($("key-problem"), rejected ? "That key is not accepted: it may be mistyped, expired or revoked." : "");
  connection("lost", "Needs a key");
  $("key").focus();
}

function forget() {
  key = "";
  sessionStorage.removeItem(KEY);
  $("forget").hidden = true;
}

$("key-form").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  const given = $("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(given)) {
    say($("key-problem"), "A key has no spaces and only plain letters, digits and signs.");
    return;
  }
  key = given;
  sessionStorage.setItem(KEY, key);
  $("key").value = "";
  $("key-form").hidden = true;
  $("main").hidden = false;
  start();
  $("main").focus({ preventScroll: true });
  scrollTo(0, 0);
});

$("forget").addEventListener("click", () => {
  stop();
  forget();
  start();
});

// --- running

const polled = [services, flow, orders, products];
let polling = 0;
let refreshing = 0;
let refreshed = 0;

function refresh() {
  for (const panel of polled) panel.refresh();
}

function soon() {
  refreshing ||= setTimeout(() => {
    refreshing = 0;
    refreshed = Date.now();
    products.refresh();
    flow.refresh();
  }, Math.max(SOON_MS, refreshed + GAP_MS - Date.now()));
}

// Nothing that one key was shown stays on the page for the next.
function stop() {
  running.abort();
  clearInterval(polling);
  clearTimeout(refreshing);
  clearTimeout(showing);
  refreshing = showing = 0;
  known.clear();
  names.clear();
  arrived = [];
  for (const panel of [...polled, stream, place]) panel.blank();
  for (const body of document.querySelectorAll("main tbody, #service-list, #event-list, #product")) body.replaceChildren();
  for (const id of ["outbox-depth", "waiting", "dead"]) figure(id, null);
  for (const id of ["outbox-age", "dead-hint", "placed"]) say($(id), "");
}

function start() {
  running = new AbortController();
  $("forget").hidden = !key;
  $("event-list").replaceChildren(make("li", { className: "empty", text: "The next change to an order shows up here." }));
  connection("connecting", "Connecting");
  refresh();
  polling = setInterval(() => { if (!document.hidden) refresh(); }, POLL_MS);
  follow(running.signal);
}

function back() {
  if (document.hidden || !$("key-form").hidden) return;
  refresh();
  wake();
}

document.addEventListener("visibilitychange", back);
addEventListener("online", back);
setInterval(() => {
  for (const time of document.querySelectorAll("time[data-at]")) say(time, span(Date.now() + skew - Number(time.dataset.at)));
}, 1000);

start();

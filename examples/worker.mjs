// A worker of modelnet in JavaScript: node worker.mjs, with MODELNET_URL set. W… are the numbers of docs/protocol.md.
// What it does is what shout.py does: a text in capital letters, word by word.

import { createInbox } from "@nats-io/transport-node";
import Ajv from "ajv/dist/2020.js";
import { connect, digestOf, lastOf, newId, parse, readAll, sleep, store } from "./wire.mjs";

const CAPABILITY = "text.shout";
const CONTRACT = {
  version: 1,
  capability: CAPABILITY,
  description: "The text in capital letters, word by word.",
  input: {
    type: "object",
    properties: {
      text: { type: "string", minLength: 1 },
      pause_ms: { type: "integer", minimum: 0, maximum: 10000, "x-public": true },
    },
    required: ["text"],
    additionalProperties: false,
  },
  output: { type: "object", properties: { text: { type: "string" } }, required: ["text"] },
};
const DIGEST = digestOf({ input: CONTRACT.input, output: CONTRACT.output });
const PRICE = 2;
const SLOTS = 2;
const BACKLOG = 1;
const LARGEST = 256 * 1024;
const DRAIN_MS = 30_000;

/** Yields text; the worker adds it up. */
async function* handle(input, begun, signal) {
  const words = input.text.toUpperCase().slice(begun.length).match(/\S+\s*|\s+/g) ?? [];
  for (const word of words) {
    yield word;
    await sleep(input.pause_ms ?? 30);
    if (signal.aborted) return;
  }
}

// ------------------------------------------------------------------ state

const validInput = new Ajv({ strict: false, allErrors: false }).compile(CONTRACT.input);
const nc = await connect("modelnet-worker-mjs");
const owner = process.env.MODELNET_OWNER ?? "local";
const labels = { language: "javascript" };
const instance = newId();
const name = process.env.WORKER_NAME ?? "shouter-mjs";
let id = name;

/** Attempts in hand by key: {award, negotiator, begun, abort, sent, …}; those without `begun` wait for a slot. */
const inHand = new Map();
/** The newest attempt of each task that is over. */
const over = new Map();
/** Trails of events that RESULTS may not have yet: {subject, events, connection, last}. */
const trails = new Set();
let connection = 0;
const discovery = [];
let draining = false;
let offers = 0;
let runMs = 100;
const counts = { num_requests: 0, num_errors: 0, processing_ms: 0, last_error: "" };
const started = new Date().toISOString();

const keyOf = ({ tenant, task, attempt }) => `${tenant} ${task} ${attempt}`;
const taskOf = ({ tenant, task }) => `${tenant} ${task}`;
const send = (subject, message, options) => nc.publish(subject, JSON.stringify({ version: 1, ...message }), options);
const free = () => (draining ? 0 : Math.max(SLOTS + BACKLOG - inHand.size, 0));
const begunOnes = () => [...inHand.values()].filter((one) => one.begun);

// ------------------------------------------------------------------ joining

const card = () => ({
  version: 1,
  worker: id,
  owner,
  capabilities: [{ pattern: CAPABILITY, contract: DIGEST, model: null, price: PRICE, quality: null, continues: true }],
  slots: SLOTS,
  labels,
  software: `node ${process.version}`,
  instance,
});
const cardSubject = () => `$KV.CATALOGUE.worker.${id}`;

const EXPECTED = "Nats-Expected-Last-Subject-Sequence";

/** Create a key: its revision, or null if there is one. */
async function create(subject, body) {
  const first = await store(nc, subject, body, { [EXPECTED]: 0 });
  if (first !== null) return first;
  const there = await lastOf(nc, "KV_CATALOGUE", subject);
  return there?.deleted ? store(nc, subject, body, { [EXPECTED]: there.sequence }) : null;
}

const announce = () =>
  create(`$KV.CATALOGUE.contract.${CAPABILITY.replace(">", "_all")}.${DIGEST.slice(7)}`, JSON.stringify(CONTRACT));

/** Whether somebody serves the id. Only "no responders" says that nobody does. */
async function served() {
  try {
    await nc.request(`worker.${id}.query`, "{}", { timeout: 1_000 });
    return true;
  } catch (error) {
    return !(error.name === "NoRespondersError" || error.isNoResponders?.());
  }
}

/** W2 to W4: take the id, answer for it, and make sure that nobody else has it. */
async function takeId() {
  let revision = await create(cardSubject(), JSON.stringify(card()));
  if (revision === null) {
    if (await served()) return false;
    const there = await lastOf(nc, "KV_CATALOGUE", cardSubject());
    revision = there && (await store(nc, cardSubject(), JSON.stringify(card()), { [EXPECTED]: there.sequence }));
    if (!revision) return false;
  }
  queries = nc.subscribe(`worker.${id}.query`, { callback: (_, msg) => msg.reply && send(msg.reply, beat()) });
  await nc.flush();
  if ((await store(nc, cardSubject(), JSON.stringify(card()), { [EXPECTED]: revision })) !== null) return true;
  queries.unsubscribe();
  return false;
}

let queries;

async function join() {
  for (;;) {
    try {
      await announce();
      for (let number = 2; !(await takeId()); number++) id = `${name}-${number}`;
      break;
    } catch (error) {
      console.error(`waiting for the network: ${error.message}`);
      await sleep(500);
    }
  }
  nc.subscribe(`worker.${id}.*`, { callback: (_, msg) => onOrder(msg) });
  nc.subscribe(`cap.${CAPABILITY}`, { callback: (_, msg) => onRequest(msg) });
  nc.subscribe("roll", { callback: () => sendBeat() });
  serveDiscovery();
  await nc.flush();
  sendBeat();
  console.log(`${id} has joined`);
}

// ------------------------------------------------------------------ beats and offers

const beat = (more = {}) => ({
  worker: id,
  instance,
  slots: SLOTS,
  backlog: BACKLOG,
  running: [...inHand.values()].map(({ award: { tenant, task, attempt } }) => ({ tenant, task, attempt })),
  draining,
  leaving: false,
  ...more,
});
const sendBeat = (more) => send(`beat.${id}`, beat(more));

function sendOffer() {
  const [p50_ms, p90_ms] = times();
  const offer = { worker: id, capability: CAPABILITY, price: PRICE, p50_ms, p90_ms, free: free(), number: offers++ };
  send(`offer.${CAPABILITY}.${id}`, offer);
}

/** The wait for a slot, and what a task is expected to take behind it. */
const waitMs = () => (inHand.size < SLOTS ? 0 : (runMs * (inHand.size - SLOTS + 1)) / SLOTS);
const times = () => [waitMs() + runMs, waitMs() + 3 * runMs];

let lostAt = 0;
const ticking = setInterval(async () => {
  if (lostAt) return;
  giveUpOverdue();
  sendBeat();
  sendOffer();
  for (const trail of trails) if (trail.last && Date.now() - trail.sentAt > 2_000) sendLast(trail);
  await mend().catch(() => {});
}, 1_000);

// ------------------------------------------------------------------ bidding

function suits({ contract, require = {}, exclude = {} }) {
  if (contract && contract !== DIGEST) return false;
  const facts = { model: null, worker: id, owner };
  const named = (selector) => [
    ...Object.keys(facts)
      .filter((key) => selector[key] != null)
      .map((key) => [].concat(selector[key]).includes(facts[key])),
    ...Object.entries(selector.labels ?? {}).map(([key, value]) => labels[key] === value),
  ];
  return named(require).every(Boolean) && !named(exclude).some(Boolean);
}

function onRequest(msg) {
  const request = parse(msg);
  if (!msg.reply || typeof request?.auction !== "string" || request.capability !== CAPABILITY || !suits(request)) return;
  const answer = { auction: request.auction, worker: id };
  const large = request.features?.input_bytes > LARGEST;
  const reason = draining ? "draining" : large ? "too_long" : free() ? null : "busy";
  const [p50_ms, p90_ms] = times();
  const bid = { kind: "bid", ...answer, price: PRICE, p50_ms, p90_ms, wait_ms: waitMs(), free: free() };
  send(`${msg.reply}.${id}`, reason ? { kind: "refusal", ...answer, reason } : bid);
}

// ------------------------------------------------------------------ orders

function onOrder(msg) {
  const kind = msg.subject.split(".").at(-1);
  const order = parse(msg);
  if (typeof order !== "object" || order === null) return;
  if (kind === "drain" && msg.reply) {
    draining = true;
    send(msg.reply, beat());
    leave();
  }
  if (kind === "cfp") onRequest(msg);
  if (typeof order.task !== "string" || !Number.isInteger(order.attempt)) return;
  if (kind === "cancel") onCancel(order);
  if (!msg.reply) return;
  const answer = (reason) => send(msg.reply, reason ? { kind: "decline", worker: id, reason } : { kind: "confirm", worker: id });
  if (kind === "award") onAward(order, answer);
  if (kind === "adopt") onAdopt(order, answer);
}

function onAward(award, answer) {
  const same = inHand.get(keyOf(award));
  if (same && same.award.auction === award.auction) {
    same.negotiator = award.negotiator;
    return answer(null);
  }
  const ofTask = [...inHand.values()].filter((one) => taskOf(one.award) === taskOf(award));
  const newest = Math.max(over.get(taskOf(award)) ?? 0, ...ofTask.map((one) => one.award.attempt));
  if (award.attempt <= newest) return answer("duplicate");
  for (const older of ofTask) stop(older);
  if (award.capability !== CAPABILITY) return answer("unsupported");
  if (award.input_ref) return answer("too_long");
  if (!validInput(award.input)) return answer("unsupported");
  if (draining) return answer("draining");
  if (!free()) return answer("busy");
  const until = Date.now() + award.remaining_ms;
  inHand.set(keyOf(award), { award, negotiator: award.negotiator, until, abort: new AbortController(), begun: 0 });
  answer(null);
  beginNext();
}

function onAdopt(asked, answer) {
  const found = inHand.get(keyOf(asked));
  if (!found || found.award.auction !== asked.auction) return answer("unknown");
  found.negotiator = asked.negotiator;
  answer(null);
}

function onCancel(order) {
  const found = inHand.get(keyOf(order));
  if (found && order.auction && order.auction !== found.award.auction) return;
  forget(order);
  if (found) stop(found);
}

function stop(one) {
  one.abort.abort("cancelled");
  if (one.trail) trails.delete(one.trail);
  forget(one.award);
  beginNext();
}

function forget(attempt) {
  inHand.delete(keyOf(attempt));
  over.set(taskOf(attempt), Math.max(over.get(taskOf(attempt)) ?? 0, attempt.attempt));
  if (over.size > 4096) over.delete(over.keys().next().value);
}

// ------------------------------------------------------------------ work

function beginNext() {
  giveUpOverdue();
  for (const one of inHand.values()) {
    if (begunOnes().length >= SLOTS) break;
    if (!one.begun) work(one).catch((error) => console.error(error));
  }
}

function giveUpOverdue() {
  for (const one of inHand.values()) if (!one.begun && Date.now() >= one.until) giveUp(one, EXPIRED);
}

const EXPIRED = { error: { code: "expired", message: "the worker ran out of time" }, retryable: false };
const LEAVING = { error: { code: "worker_leaving", message: "the worker leaves the network" }, retryable: true };

function giveUp(one, why) {
  open(one);
  forget(one.award);
  end(one, { kind: "error", ...why }).catch((error) => console.error(error));
}

function open(one) {
  const { tenant, task, attempt, from_number = 0 } = one.award;
  one.number = from_number;
  const subject = `result.${tenant}.${task.slice(-6)}.${task}.${id}.${attempt}`;
  one.trail = { subject, events: [], connection, last: false, sentAt: 0 };
  trails.add(one.trail);
}

const stamp = (one, event) => {
  const { task, attempt, auction } = one.award;
  return JSON.stringify({ version: 1, task, attempt, worker: id, auction, number: ++one.number, ...event });
};

async function work(one) {
  const { award, abort } = one;
  one.begun = Date.now();
  counts.num_requests++;
  open(one);
  const timer = setTimeout(() => abort.abort("expired"), one.until - Date.now());
  const parts = [award.resume?.text ?? ""];
  let last;
  try {
    for await (const text of handle(award.input, parts[0], abort.signal)) {
      if (abort.signal.aborted) break;
      parts.push(text);
      const event = stamp(one, { kind: "delta", text });
      one.trail.events.push(event);
      nc.publish(one.trail.subject, event);
    }
    const output = { text: parts.join("") };
    last = { kind: "output", output, digest: digestOf(output) };
  } catch (error) {
    last = { kind: "error", error: { code: "worker_error", message: String(error) }, retryable: true };
  }
  clearTimeout(timer);
  const ran = Date.now() - one.begun;
  counts.processing_ms += ran;
  const why = abort.signal.reason;
  if (why === "cancelled") return;
  if (why === "expired") last = { kind: "error", ...EXPIRED };
  if (why === "leaving") last = { kind: "error", ...LEAVING };
  if (last.kind === "output") runMs = Math.max(0.8 * runMs + 0.2 * ran, 1);
  else [counts.num_errors, counts.last_error] = [counts.num_errors + 1, last.error.code];
  const wasFull = !free();
  forget(award);
  beginNext();
  await end(one, { usage: { run_ms: ran }, ...last });
  if (wasFull) sendOffer();
}

/** W26, W27: the last event, until the stream has it, and Done beside it. */
async function end(one, last) {
  const { award, trail } = one;
  while (trail.connection !== connection) await mend().catch(() => sleep(500));
  trail.events.push(stamp(one, last));
  trail.last = true;
  trail.ack = createInbox();
  trail.acks = nc.subscribe(trail.ack, {
    callback: (_, msg) => {
      if (!parse(msg)?.seq) return;
      trail.stored = true;
      if (trail.connection === connection) close(trail);
    },
  });
  sendLast(trail);
  const { kind, ...rest } = last;
  const done = { task: award.task, tenant: award.tenant, worker: id, attempt: award.attempt, auction: award.auction };
  send(`done.${one.negotiator}.${award.task}.${id}.${award.attempt}`, { ...done, number: one.number, ...rest });
}

function sendLast(trail) {
  if (trail.stored) return;
  trail.sentAt = Date.now();
  nc.publish(trail.subject, trail.events.at(-1), { reply: trail.ack });
}

function close(trail) {
  trails.delete(trail);
  trail.acks.unsubscribe();
}

/** W41: publish what the stream lacks of attempts that began on an earlier connection. */
async function mend() {
  const now = connection;
  for (const trail of [...trails]) {
    if (trail.connection === now) continue;
    const kept = [...trail.events];
    const found = new Set((await readAll(nc, "RESULTS", trail.subject)).map((one) => one.text));
    for (const event of kept) {
      if (found.has(event)) continue;
      if (trail.last && event === trail.events.at(-1)) sendLast(trail);
      else nc.publish(trail.subject, event);
    }
    trail.connection = now;
    if (trail.stored) close(trail);
  }
}

// ------------------------------------------------------------------ when the server was away

(async () => {
  for await (const status of nc.status()) {
    if (status.type === "disconnect") [lostAt, connection] = [lostAt || Date.now(), connection + 1];
    if (status.type === "reconnect") {
      lostAt = 0;
      sendBeat();
      restore();
    }
  }
})();

/** W42: JetStream comes later than the connection, so again until it is there. */
async function restore() {
  for (let tries = 0; tries < 20 && !lostAt; tries++) {
    try {
      await mend();
      await announce();
      await create(cardSubject(), JSON.stringify(card()));
      return;
    } catch {
      await sleep(500);
    }
  }
}

// ------------------------------------------------------------------ discovery

function serveDiscovery() {
  const who = { name: "modelnet-worker", id, version: "1.0.0", metadata: { protocol: "modelnet/1", owner, instance } };
  const endpoint = { name: CAPABILITY.replaceAll(".", "-"), subject: `cap.${CAPABILITY}`, queue_group: "" };
  const metadata = { capability: CAPABILITY, contract: DIGEST, price: String(PRICE) };
  const description = `Worker ${id}: ${CAPABILITY}`;
  const answers = {
    PING: () => ({ type: "io.nats.micro.v1.ping_response", ...who }),
    INFO: () => ({ type: "io.nats.micro.v1.info_response", ...who, description, endpoints: [{ ...endpoint, metadata }] }),
    STATS: () => {
      const { processing_ms, ...rest } = counts;
      const processing_time = Math.round(processing_ms * 1e6);
      const average_processing_time = rest.num_requests ? Math.round(processing_time / rest.num_requests) : 0;
      const stats = { ...endpoint, ...rest, processing_time, average_processing_time, data: { in_hand: inHand.size } };
      return { type: "io.nats.micro.v1.stats_response", ...who, started, endpoints: [stats] };
    },
  };
  for (const [verb, answer] of Object.entries(answers)) {
    for (const subject of [`$SRV.${verb}`, `$SRV.${verb}.modelnet-worker`, `$SRV.${verb}.modelnet-worker.${id}`]) {
      const callback = (_, msg) => msg.reply && nc.publish(msg.reply, JSON.stringify(answer()));
      discovery.push(nc.subscribe(subject, { callback }));
    }
  }
}

// ------------------------------------------------------------------ leaving

let leaving = null;

/** W35 to W38. */
function leave() {
  leaving ??= (async () => {
    draining = true;
    for (const sub of discovery) sub.unsubscribe();
    for (const one of [...inHand.values()]) if (!one.begun) giveUp(one, LEAVING);
    sendBeat();
    const until = Date.now() + DRAIN_MS;
    while ((inHand.size || trails.size) && Date.now() < until && !(lostAt && Date.now() - lostAt > 3_000)) await sleep(20);
    for (const one of begunOnes()) one.abort.abort("leaving");
    for (let tries = 0; trails.size && !lostAt && tries < 250; tries++) await sleep(20);
    clearInterval(ticking);
    if (!lostAt) {
      sendBeat({ leaving: true });
      await store(nc, cardSubject(), "", { "KV-Operation": "DEL" });
      queries.unsubscribe();
      await nc.flush();
    }
    process.exit(0);
  })();
  return leaving;
}

process.on("SIGTERM", leave);
process.on("SIGINT", leave);

await join();

// What a worker and a client in JavaScript share: digests, ids, and reading what streams have stored.

import { createHash, randomBytes } from "node:crypto";
import { connect as connectTo, createInbox, headers } from "@nats-io/transport-node";

/** A connection that waits for its server, and reconnects for ever. */
export const connect = (name) =>
  connectTo({
    servers: (process.env.MODELNET_URL ?? "nats://127.0.0.1:4222").split(","),
    name,
    maxReconnectAttempts: -1,
    reconnectTimeWait: 500,
    waitOnFirstConnect: true,
    pingInterval: 10_000,
  });

export const newId = () => randomBytes(16).toString("hex");

export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/** The JSON in a message, or null if there is none. */
export function parse(msg) {
  try {
    return JSON.parse(msg.string());
  } catch {
    return null;
  }
}

export function withHeaders(fields) {
  const made = headers();
  for (const [name, value] of Object.entries(fields)) made.set(name, String(value));
  return made;
}

/** docs/protocol.md, Conventions: a value's digest is over its canonical JSON. */
export const digestOf = (value) => "sha256:" + createHash("sha256").update(canonical(value)).digest("hex");

export function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (typeof value === "number") return number(value);
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const keys = Object.keys(value).sort(byCodePoint);
  return `{${keys.map((key) => `${JSON.stringify(key)}:${canonical(value[key])}`).join(",")}}`;
}

/** As JSON.stringify writes a number, so a reader reads it; but its digest has another form below 0.0001. */
function number(value) {
  const written = JSON.stringify(value);
  if (!/[.e]/.test(written) || Math.abs(value) >= 1e-4) return written;
  const [digits, exponent] = value.toExponential().split("e-");
  return `${digits}e-${exponent.padStart(2, "0")}`;
}

function byCodePoint(a, b) {
  const left = [...a];
  const right = [...b];
  for (let at = 0; at < Math.min(left.length, right.length); at++) {
    const difference = left[at].codePointAt(0) - right[at].codePointAt(0);
    if (difference) return difference;
  }
  return left.length - right.length;
}

/** The last message of a subject in a stream, or null. */
export async function lastOf(nc, stream, subject) {
  const msg = await nc.request(`$JS.API.DIRECT.GET.${stream}`, JSON.stringify({ last_by_subj: subject }));
  return msg.headers?.has("Nats-Sequence") ? stored(msg) : null;
}

/** All messages of a stream whose subject matches, in order. */
export async function readAll(nc, stream, subject) {
  const found = [];
  let seq = 1;
  let pending = true;
  while (pending) {
    const inbox = createInbox();
    const sub = nc.subscribe(inbox, { timeout: 5_000 });
    nc.publish(`$JS.API.DIRECT.GET.${stream}`, JSON.stringify({ next_by_subj: subject, seq, batch: 256 }), {
      reply: inbox,
    });
    pending = false;
    for await (const msg of sub) {
      if (!msg.headers?.has("Nats-Sequence")) {
        if (msg.headers?.code === 503) throw new Error(`stream ${stream} does not answer`);
        break;
      }
      found.push(stored(msg));
      pending = Number(msg.headers.get("Nats-Num-Pending")) > 0;
      seq = found.at(-1).sequence + 1;
    }
    sub.unsubscribe();
  }
  return found;
}

const stored = (msg) => ({
  subject: msg.headers.get("Nats-Subject"),
  sequence: Number(msg.headers.get("Nats-Sequence")),
  deleted: msg.headers.has("KV-Operation"),
  text: msg.string(),
  body: parse(msg),
});

/** Publish to a stream and wait: the sequence, or null if what stands there is not what was expected. */
export async function store(nc, subject, body, fields = {}) {
  const answer = parse(await nc.request(subject, body, { timeout: 5_000, headers: withHeaders(fields) }));
  if ([10071, 10164].includes(answer.error?.err_code)) return null;
  if (answer.error) throw new Error(answer.error.description);
  return answer.seq;
}

// A client of modelnet in JavaScript; MODELNET_URL says where the network is. C… are the numbers of docs/protocol.md.
//
//   node client.mjs submit CAPABILITY --input JSON [--id ID] [--json]
//   node client.mjs watch TASK [--after NUMBER] [--json]
//   node client.mjs cancel TASK [--json]
//
// With --json one object a line, else the text as it comes. Exits 0 if the task is completed.

import { parseArgs } from "node:util";
import { connect, newId, parse, readAll, sleep, store, withHeaders } from "./wire.mjs";

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: { input: { type: "string" }, id: { type: "string" }, after: { type: "string" }, json: { type: "boolean" } },
});
const [verb, name] = positionals;
const tenant = process.env.MODELNET_TENANT ?? "default";
const GAP_MS = 50;
const IDLE_MS = 5_000;
const FILL_TRIES = 7;

/** Whatever order events arrive in, they are shown once and in order: C4, C6, C7, C8. */
class Reader {
  awards = [];
  held = new Map();
  position = 0;
  final = null;
  done = false;

  /** `seen`: number of the last event that need not come again, of the first attempt. */
  constructor(show, seen = 0) {
    [this.show, this.told, this.known] = [show, seen, seen ? 1 : 0];
  }

  get attempt() {
    return this.awards.at(-1)?.attempt ?? 0;
  }

  /** Whether there must be events that have not come. */
  get missing() {
    return Boolean(this.final) || this.awards.some((award) => this.#of(award).size > 0 || award.from_number > this.position);
  }

  entry(entry) {
    if (this.done) return;
    if (entry.kind === "waiting" || entry.kind === "planned") this.show(entry);
    if (entry.kind === "final") this.final = entry;
    if (entry.kind === "awarded" && entry.attempt > this.attempt) {
      const from = entry.from_number ?? 0;
      this.awards.push({ ...entry, from_number: from });
      this.position = Math.min(this.position, from);
      if (entry.attempt > this.known) {
        this.show(entry);
        if (this.told > from) {
          const { task, attempt, worker } = entry;
          this.show({ kind: "reset", task, attempt, worker, number: from + 1, to: from });
          this.told = from;
        }
      }
    }
    this.#due();
  }

  event(event) {
    if (this.done || !["delta", "progress", "output", "error"].includes(event.kind)) return;
    if (!Number.isInteger(event.number)) return;
    const held = this.#of(event);
    if (!held.has(event.number)) held.set(event.number, event);
    this.#due();
  }

  giveUp() {
    this.done = true;
    this.show(this.final);
  }

  #of({ worker, attempt, auction }) {
    const key = `${worker} ${attempt} ${auction ?? ""}`;
    if (!this.held.has(key)) this.held.set(key, new Map());
    return this.held.get(key);
  }

  #due() {
    const ended = this.final && this.final.attempt == null;
    if (this.attempt < this.known && !ended) return;
    for (;;) {
      const next = this.position + 1;
      const owner = this.awards.findLast((award) => award.from_number < next);
      const event = owner && this.#of(owner).get(next);
      if (!event) break;
      this.#of(owner).delete(next);
      this.position = next;
      if (next > this.told) {
        this.told = next;
        this.show(event);
      }
    }
    const whole = (final) =>
      final.number == null || (final.attempt === this.attempt && this.position >= final.number - 1);
    if (this.final && !this.done && whole(this.final)) this.giveUp();
  }
}

/** Follow a task, from a subscription that was made before anything could be missed. */
async function follow(nc, task, seen, live) {
  const reader = new Reader(show, seen);
  const state = { status: 0, behind: false, lost: true };
  let wake = () => {};
  const unread = [];
  live((msg) => (unread.push(msg), wake()));
  (async () => {
    for await (const status of nc.status()) if (status.type === "reconnect") [state.lost] = [true], wake();
  })();
  let fills = 0;
  let pause = GAP_MS;
  while (!reader.done) {
    while (unread.length && !reader.done && !state.behind) feed(reader, state, unread.shift());
    const incomplete = state.behind || reader.missing;
    if (state.lost || state.behind || pause > 2 * GAP_MS) {
      const lost = state.lost;
      state.lost = false;
      await fill(nc, task, reader, state).catch((error) => {
        if (error.fatal) throw error;
        state.lost = lost;
      });
      fills += reader.final !== null;
      if (reader.final && !reader.done && fills > FILL_TRIES) reader.giveUp();
    }
    if (reader.done) break;
    const before = reader.position;
    await new Promise((done) => {
      const timer = setTimeout(done, incomplete ? pause : IDLE_MS);
      wake = () => (clearTimeout(timer), done());
      if (unread.length) wake();
    });
    pause = incomplete && !unread.length && before === reader.position ? Math.min(2 * pause, IDLE_MS) : GAP_MS;
  }
  return reader.final.status === "completed" ? 0 : 1;
}

/** A task's stream or journal; its lane is the end of its id. */
const subjectOf = (kind, task) => `${kind}.${tenant}.${task.slice(-6)}.${task}`;

/** One live message. */
function feed(reader, state, msg) {
  const body = parse(msg);
  if (typeof body !== "object" || body === null) return;
  if (msg.subject.split(".").length === 6) return reader.event(body);
  const sequence = Number(msg.headers?.get("Nats-Sequence") || 0);
  if (!sequence) return; // not from the journal
  if (!msg.subject.endsWith(".status")) return reader.entry(body);
  if (sequence <= state.status) return;
  if (Number(msg.headers.get("Nats-Last-Sequence") || 0) !== state.status) {
    state.behind = true; // an entry was missed: C5
    return;
  }
  state.status = sequence;
  reader.entry(body);
}

/** C5: all that is stored. */
async function fill(nc, task, reader, state) {
  const entries = await readAll(nc, "JOURNAL", `${subjectOf("journal", task)}.*`);
  if (!entries.length && !reader.attempt) {
    const queued = await readAll(nc, "TASKS", `task.*.*.${tenant}.${task}.>`);
    if (!queued.length && !(await readAll(nc, "JOURNAL", `${subjectOf("journal", task)}.*`)).length) {
      throw Object.assign(new Error(`no task ${task} of tenant ${tenant}`), { fatal: true });
    }
  }
  let final = null;
  for (const { sequence, subject, body } of entries) {
    if (subject.endsWith(".final")) final = body;
    if (!subject.endsWith(".status")) continue;
    if (body && sequence > state.status) reader.entry(body);
    state.status = Math.max(state.status, sequence);
  }
  state.behind = false;
  for (const { body } of await readAll(nc, "RESULTS", `${subjectOf("result", task)}.*.*`)) if (body) reader.event(body);
  if (final) reader.entry(final);
}

function show(event) {
  if (options.json) console.log(JSON.stringify(event));
  else if (event.kind === "delta") process.stdout.write(event.text);
  else if (event.kind === "reset") process.stdout.write("\n");
  else if (event.kind === "final") console.log(`\n${JSON.stringify(event.output ?? event.error)}`);
}

async function submit(nc, capability) {
  const task = options.id ?? newId();
  const listen = (hear) => nc.subscribe(`${subjectOf("result", task)}.>`, { callback: (_, msg) => hear(msg) });
  const early = [];
  let hear = (msg) => early.push(msg);
  listen((msg) => hear(msg));
  const body = { version: 1, id: task, tenant, capability, input: JSON.parse(options.input ?? "{}") };
  for (let left = 5; ; left--) {
    // C2, C3: with the same id it counts once, however often it comes.
    try {
      const headers = withHeaders({ "Nats-Msg-Id": `${tenant}/${task}` });
      const subject = `task.1.${tenant}.${task}.${capability}`;
      const answer = parse(await nc.request(subject, JSON.stringify(body), { timeout: 2_000, headers }));
      if (answer?.error) throw Object.assign(new Error(answer.error.description), { fatal: true });
      break;
    } catch (error) {
      if (error.fatal || !left) throw error;
      await sleep(200);
    }
  }
  return follow(nc, task, 0, (wanted) => {
    early.forEach(wanted);
    hear = wanted;
  });
}

function watch(nc, task) {
  const listen = (hear) => nc.subscribe(`${subjectOf("result", task)}.>`, { callback: (_, msg) => hear(msg) });
  return follow(nc, task, Number(options.after ?? 0), listen);
}

/** C9. */
async function cancel(nc, task) {
  const journal = subjectOf("journal", task);
  for (;;) {
    const entries = await readAll(nc, "JOURNAL", `${journal}.*`);
    const asked = entries.some(({ subject }) => subject.endsWith(".cancel"));
    if (asked || entries.some(({ subject }) => subject.endsWith(".final"))) return 0;
    const fence = {
      "Nats-Expected-Last-Subject-Sequence": entries.at(-1)?.sequence ?? 0,
      "Nats-Expected-Last-Subject-Sequence-Subject": `${journal}.*`,
    };
    const entry = JSON.stringify({ version: 1, kind: "cancel", task });
    if ((await store(nc, `${journal}.cancel`, entry, fence)) !== null) return 0;
  }
}

const verbs = { submit, watch, cancel };
if (!(verb in verbs) || !name) {
  console.error("usage: client.mjs submit CAPABILITY --input JSON | watch TASK | cancel TASK");
  process.exit(2);
}
const nc = await connect("modelnet-client-mjs");
try {
  process.exitCode = await verbs[verb](nc, name);
} catch (error) {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
}
await nc.close();

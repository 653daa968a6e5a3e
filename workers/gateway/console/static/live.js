// The live picture: rows by key as the gateway's frames tell them, a connection that comes back by itself.

import { events, get, hasKey } from "./api.js";

const FEED_MS = 1000; // lists that flow are shown anew this often: faster could not be read

/** What is known. Tables are Maps of rows; a row that changed is another object. */
export const picture = {
  contact: "connecting", // connecting, live, lost
  since: 0,
  me: null, // who is signed in; null: nobody
  refused: null, // why the key that was given did not do
  keys: true, // whether this gateway asks for keys
  head: null,
  workers: new Map(),
  pulses: new Map(),
  auctions: new Map(),
  tasks: new Map(),
  history: new Map(), // capability to Map of bins by their time
  ledger: null,
  feed: { auctions: [], tasks: [] },
  frames: 0,
  bytes: 0,
};

const KEY_OF = { workers: "id", pulses: "id", auctions: "id", tasks: "key" };
const BINS = 120;
const listeners = new Set();
let drawn = false;
let fed = 0;
let late = null;
let paused = false;

/** Have `draw` called after changes, once a frame of the browser at most. */
export function onChange(draw) {
  listeners.add(draw);
  return () => listeners.delete(draw);
}

export function changed() {
  if (drawn) return;
  drawn = true;
  requestAnimationFrame(() => {
    drawn = false;
    for (const draw of listeners) draw();
  });
}

/** Whether the flowing lists stand still, as they do under the pointer. */
export function hold(still) {
  paused = still;
  if (!still) feed();
}

function feed() {
  const now = performance.now();
  clearTimeout(late);
  if (paused) return;
  if (now - fed < FEED_MS) {
    late = setTimeout(feed, FEED_MS - (now - fed));
    return;
  }
  fed = now;
  picture.feed = { auctions: [...picture.auctions.values()].reverse(), tasks: [...picture.tasks.values()].reverse() };
  changed();
}

export function apply(frame) {
  if (frame.whole) {
    for (const name of Object.keys(KEY_OF)) picture[name].clear();
    picture.history.clear();
    fed = 0;
  }
  for (const [name, key] of Object.entries(KEY_OF)) {
    const table = picture[name];
    for (const gone of frame[name].gone) table.delete(gone);
    for (const row of frame[name].put) table.set(row[key], row);
  }
  for (const [capability, bins] of Object.entries(frame.history.bins)) {
    let kept = picture.history.get(capability);
    if (!kept) picture.history.set(capability, (kept = new Map()));
    for (const bin of bins) kept.set(bin.at, bin);
    while (kept.size > BINS) kept.delete(kept.keys().next().value);
  }
  if (frame.ledger) picture.ledger = frame.ledger;
  picture.head = frame.head;
  picture.frames += 1;
  feed();
  changed();
}

function contact(state) {
  if (picture.contact === state) return;
  picture.contact = state;
  picture.since = Date.now();
  changed();
}

const ASK_AGAIN_MS = 15000;
let later = null;
let current = null;

/** Connect, and again whenever contact is lost: at once the first time, then ever more slowly, up to five seconds. */
export async function connect() {
  current?.abort();
  const mine = (current = new AbortController());
  let wait = 0;
  while (!mine.signal.aborted) {
    try {
      await identify();
      const path = picture.me ? "console/api/live" : "console/watch";
      await events(
        path,
        (event, data, size) => {
          if (event !== "frame") return;
          wait = 0;
          picture.bytes += size;
          apply(data);
          contact("live");
        },
        mine.signal,
      );
    } catch {
      // told by what follows
    }
    if (mine.signal.aborted) return;
    contact("lost");
    await new Promise((done) => setTimeout(done, wait + Math.random() * 200));
    wait = Math.min(Math.max(wait * 2, 250), 5000);
  }
}

/** Who is signed in. A gateway that cannot say so now shows what anybody may see, and is asked again. */
async function identify() {
  picture.refused = null;
  try {
    const me = await get("console/api/me");
    picture.keys = me.keys;
    picture.me = me;
  } catch (error) {
    if (error.status === 0) throw error;
    picture.keys = true;
    picture.me = null;
    if (hasKey()) picture.refused = error.message;
    if (error.status === 429 || error.status >= 500) {
      clearTimeout(later);
      later = setTimeout(connect, ASK_AGAIN_MS);
    }
  }
}

// The gateway: requests with the key that was given, and server-sent events over fetch, which EventSource cannot send a key with.

const KEY = "modelnet-key";
let key = null;
try {
  key = sessionStorage.getItem(KEY);
} catch {
  // without storage a key lasts as long as the page
}

export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export const hasKey = () => key !== null;

export function setKey(value) {
  key = value || null;
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch {
    // as above
  }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "unreachable", "the gateway does not answer");
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  const error = said.error || {};
  throw new ApiError(answer.status, error.code || "failed", error.message || `the gateway answers ${answer.status}`);
}

export const get = async (path) => (await ask(path)).json();

export const post = async (path, body = {}) =>
  (await ask(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) })).json();

/** Calls `hear(event, data)` for each event until the stream ends; throws if it breaks, or is silent for `patience` ms. */
export async function events(path, hear, signal, patience = 15000) {
  const mine = new AbortController();
  const stop = () => mine.abort();
  signal?.addEventListener("abort", stop);
  let silence = setTimeout(stop, patience);
  try {
    const answer = await ask(path, { signal: mine.signal });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(silence);
      silence = setTimeout(stop, patience);
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        let event = "message";
        let data = "";
        for (const line of block.split("\n")) {
          if (line.startsWith("event: ")) event = line.slice(7);
          else if (line.startsWith("data: ")) data += line.slice(6);
        }
        if (data) hear(event, JSON.parse(data), block.length);
      }
    }
  } finally {
    clearTimeout(silence);
    signal?.removeEventListener("abort", stop);
    mine.abort();
  }
}

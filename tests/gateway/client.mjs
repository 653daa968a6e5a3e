// OpenAI's client for Node against the gateway at argv[2]: what it saw is printed as JSON.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "one two three" }];

const whole = await client.chat.completions.create({ model: "auto", messages });
let streamed = "";
for await (const chunk of await client.chat.completions.create({ model: "auto", messages, stream: true })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
}
const response = await client.responses.create({ model: "auto", input: "one two" });
const vectors = await client.embeddings.create({ model: "auto", input: ["ab"] });
const models = [];
for await (const model of client.models.list()) models.push(model.id);
let error = null;
try {
  await client.chat.completions.create({ model: "unknown", messages });
} catch (caught) {
  error = { name: caught.constructor.name, status: caught.status, code: caught.code };
}
const leaving = new AbortController();
let left = null;
try {
  const stream = await client.chat.completions.create(
    { model: "auto", messages: [{ role: "user", content: "wait" }], stream: true },
    { signal: leaving.signal },
  );
  for await (const chunk of stream) {
    left = chunk.choices[0].delta.content;
    leaving.abort();
  }
} catch (caught) {
  left = `${left}${caught.constructor.name}`;
}
console.log(
  JSON.stringify({
    whole: whole.choices[0].message.content,
    streamed,
    response: response.output_text,
    vector: vectors.data[0].embedding,
    models,
    error,
    left,
  }),
);

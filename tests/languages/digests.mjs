// node digests.mjs: of each JSON value on stdin, one a line, what is written of it and its digest.
import { createInterface } from "node:readline";
import { digestOf } from "./wire.mjs";

for await (const line of createInterface({ input: process.stdin })) {
  const value = JSON.parse(line);
  console.log(JSON.stringify([JSON.stringify(value), digestOf(value)]));
}

// All that the official services client finds on a network, as one JSON object: node services.mjs URL
import { connect } from "@nats-io/transport-node";
import { Svcm } from "@nats-io/services";

const nc = await connect({ servers: process.argv[2] });
const client = new Svcm(nc).client({ strategy: "stall", maxWait: 2000 });
const all = async (answers) => {
  const found = [];
  for await (const one of await answers) found.push(one);
  return found;
};
const found = {
  ping: await all(client.ping()),
  info: await all(client.info("modelnet-worker")),
  stats: await all(client.stats("modelnet-worker", process.argv[3])),
};
console.log(JSON.stringify(found));
await nc.close();

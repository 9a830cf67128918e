// A grpc-js client that a test steers over standard input; README.md beside it has the commands.
//
//     client.mjs TARGET [CALLS]        (TARGET: xds:///orders, or 127.0.0.1:1234 without xDS)
//
// The xDS plug-in itself reads GRPC_XDS_BOOTSTRAP. No generated code: an empty request, the backend's
// name in reply. The packages live in .components/grpc-node (MESHKEEPER_COMPONENTS names another folder).
import { createRequire } from "node:module";
import { resolve } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const components =
  process.env.MESHKEEPER_COMPONENTS ?? fileURLToPath(new URL("../../.components", import.meta.url));
const require = createRequire(resolve(components, "grpc-node", "package.json"));
const grpc = require("@grpc/grpc-js");
require("@grpc/grpc-js-xds").register();

const METHOD = "/meshkeeper.e2e.Backend/Name";
const OUTSTANDING = 64;
const DEADLINE_MS = 10_000;
const EMPTY = Buffer.alloc(0);
const same = (bytes) => bytes;

// What came of a number of calls.
class Tally {
  began = performance.now();
  calls = 0;
  counts = new Map();
  failures = new Map();

  add(error, reply) {
    const [map, key] = error
      ? [this.failures, `${grpc.status[error.code]}: ${error.details}`]
      : [this.counts, reply.toString()];
    this.calls += 1;
    map.set(key, (map.get(key) ?? 0) + 1);
  }

  report() {
    return {
      calls: this.calls,
      counts: sorted(this.counts),
      failures: sorted(this.failures),
      seconds: Math.round(performance.now() - this.began) / 1000,
    };
  }
}

function sorted(map) {
  return Object.fromEntries([...map].sort(([a], [b]) => (a < b ? -1 : 1)));
}

class Client {
  constructor(target) {
    this.client = new grpc.Client(target, grpc.credentials.createInsecure());
    this.client.getChannel().getConnectivityState(true);
    this.traffic = null;
  }

  async ready(seconds = 30) {
    const channel = this.client.getChannel();
    const ready = await new Promise((done) =>
      this.client.waitForReady(Date.now() + number(seconds) * 1000, (error) => done(!error)),
    );
    return { ready, state: grpc.connectivityState[channel.getConnectivityState(false)] };
  }

  async call(calls, outstanding = OUTSTANDING) {
    let remaining = number(calls);
    const tally = new Tally();
    await this.run(() => remaining-- > 0, number(outstanding), tally);
    return tally.report();
  }

  // Calls without end, until `stop`.
  async start(outstanding = 1) {
    if (this.traffic) throw new Error("traffic is running already");
    const traffic = { running: true, tally: new Tally() };
    traffic.ended = this.run(() => traffic.running, number(outstanding), traffic.tally);
    this.traffic = traffic;
    return { started: true };
  }

  async stop() {
    if (!this.traffic) throw new Error("no traffic is running");
    const traffic = this.traffic;
    this.traffic = null;
    traffic.running = false;
    await traffic.ended;
    return traffic.tally.report();
  }

  async run(wantsMore, outstanding, tally) {
    const caller = async () => {
      while (wantsMore()) await this.once(tally);
    };
    await Promise.all(Array.from({ length: outstanding }, caller));
  }

  once(tally) {
    return new Promise((done) => {
      const options = { deadline: Date.now() + DEADLINE_MS };
      this.client.makeUnaryRequest(METHOD, same, same, EMPTY, new grpc.Metadata(), options, (error, reply) => {
        tally.add(error, reply);
        done();
      });
    });
  }
}

function number(text) {
  const value = Number(text);
  if (text === undefined || Number.isNaN(value)) throw new Error(`not a number: ${text}`);
  return value;
}

async function answer(client, line) {
  const [command, ...rest] = line.trim().split(/\s+/);
  try {
    if (!["ready", "call", "start", "stop"].includes(command)) throw new Error("unknown command");
    return await client[command](...rest);
  } catch (error) {
    return { error: `${line.trim()}: ${error.message}` };
  }
}

// The plug-in hides why it refuses a bootstrap behind an error of its own ("Cannot read properties of null").
function checkBootstrap() {
  require("@grpc/grpc-js-xds/build/src/xds-bootstrap").loadBootstrapInfo();
}

const [target, calls] = process.argv.slice(2);
if (!target) {
  console.error("usage: client.mjs TARGET [CALLS]");
  process.exit(2);
}
if (target.startsWith("xds:")) checkBootstrap();
const client = new Client(target);
const lines = calls === undefined ? createInterface({ input: process.stdin }) : [`call ${calls}`];
for await (const line of lines) {
  if (line.trim() === "quit") break;
  if (line.trim()) console.log(JSON.stringify(await answer(client, line)));
}
client.client.close();
process.exit(0);

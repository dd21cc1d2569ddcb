// One grid of images a model, made by onnxruntime-web when a key is pressed.
import { noises } from "./noise.js";

const SIDE = 4;
const NUM = SIDE * SIDE;
const GAP = 1; // pixels between images
const SEEDS = 4096;
const LABELS = "labels";
const byId = (id) => document.getElementById(id);

async function runtime() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (adapter && !(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter)) { // a GPU in software is slower
    try {
      return { ort: await import("./runtime/ort.webgpu.min.mjs"), providers: ["webgpu", "wasm"], where: "WebGPU" };
    } catch (error) {
      console.warn("WebGPU cannot be used", error);
    }
  }
  return { ort: await import("./runtime/ort.wasm.min.mjs"), providers: ["wasm"], where: "WebAssembly" };
}

// The sessions of all models, on WebGPU if they make images there, else in WebAssembly.
async function load(demo) {
  let { ort, providers, where } = await runtime();
  const weights = new Uint8Array(await (await fetch(`model/${demo.weights}`)).arrayBuffer());
  const threads = crossOriginIsolated ? Math.max(1, Math.min(4, navigator.hardwareConcurrency)) : 1;
  const open = async () => {
    ort.env.wasm.wasmPaths = new URL("runtime/", location.href).href;
    ort.env.wasm.numThreads = threads;
    for (const model of demo.models) {
      const options = { executionProviders: providers, externalData: [{ path: demo.weights, data: weights }] };
      model.session = await ort.InferenceSession.create(`model/${model.file}`, options);
    }
    demo.tensor = (kind, data, dims) => new ort.Tensor(kind, data, dims);
    await generate(demo, demo.models[0], 0, null); // the first run is where a GPU's shaders fail
  };
  try {
    await open();
  } catch (error) {
    if (where === "WebAssembly") throw error;
    console.warn("WebGPU cannot run this graph", error);
    ({ ort, providers, where } = { ort: await import("./runtime/ort.wasm.min.mjs"), providers: ["wasm"], where: "WebAssembly" });
    await open();
  }
  return where === "WebAssembly" ? `${where}, ${threads} thread${threads > 1 ? "s" : ""}` : where;
}

// {data: Float32Array [NUM, C, H, W] in [-1, 1], ms} of a model at a seed, of one class or (null) all of them in turn.
async function generate(demo, model, seed, label) {
  const [channels, height, width] = demo.shape;
  const drawn = model.inputs.filter((name) => name !== LABELS);
  const arrays = noises(seed, NUM, channels * height * width, drawn.length);
  const started = performance.now();
  const dims = [NUM, ...demo.shape];
  const feeds = Object.fromEntries(drawn.map((name, i) => [name, demo.tensor("float32", arrays[i], dims)]));
  if (demo.num_classes) {
    const labels = BigInt64Array.from({ length: NUM }, (_, i) => BigInt(label ?? i % demo.num_classes));
    feeds[LABELS] = demo.tensor("int64", labels, [NUM]);
  }
  const images = (await model.session.run(feeds)).image;
  return { data: await images.getData(), ms: performance.now() - started };
}

// Bytes 0..255 of floats in [-1, 1], half to even as Python rounds.
function pixel(x) {
  const value = Math.min(255, Math.max(0, Math.fround(Math.fround(x * 127.5) + 127.5)));
  const low = Math.floor(value);
  return value - low === 0.5 ? low + (low % 2) : Math.round(value);
}

function paint(canvas, data, [channels, height, width]) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  for (let n = 0; n < NUM; n++) {
    const left = (n % SIDE) * (width + GAP), top = Math.floor(n / SIDE) * (height + GAP);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const at = 4 * ((top + y) * canvas.width + left + x);
        for (let c = 0; c < 3; c++) {
          image.data[at + c] = pixel(data[((n * channels + Math.min(c, channels - 1)) * height + y) * width + x]);
        }
        image.data[at + 3] = 255;
      }
    }
  }
  context.putImageData(image, 0, 0);
}

function figure(demo, model) {
  const element = document.createElement("figure");
  const caption = document.createElement("figcaption");
  const label = document.createElement("span");
  label.textContent = `${model.steps} step${model.steps > 1 ? "s" : ""}`;
  model.time = document.createElement("span");
  caption.append(label, model.time);
  model.canvas = document.createElement("canvas");
  model.canvas.id = `grid-${model.steps}`;
  model.canvas.width = SIDE * (demo.shape[2] + GAP) - GAP;
  model.canvas.height = SIDE * (demo.shape[1] + GAP) - GAP;
  model.canvas.setAttribute("role", "img");
  element.append(caption, model.canvas);
  return element;
}

const nameOf = (demo, label) => demo.classes?.[label] ?? String(label);

// The class that is chosen, null: all.
const chosen = () => (byId("class").value === "" ? null : Number(byId("class").value));

// Offer the classes of a conditional student, and choose the one that an address asks for.
function offer(demo, asked) {
  if (!demo.num_classes) return;
  byId("classes").hidden = false;
  for (let label = 0; label < demo.num_classes; label++) {
    byId("class").add(new Option(nameOf(demo, label), String(label)));
  }
  byId("class").value = asked ?? "";
  if (byId("class").selectedIndex < 0) byId("class").value = ""; // there is no such class
}

let queue = Promise.resolve();

function show(demo, seed) {
  byId("seed").value = demo.seed = ((seed % SEEDS) + SEEDS) % SEEDS;
  history.replaceState(null, "", `#seed=${demo.seed}${chosen() === null ? "" : `&class=${chosen()}`}`);
  queue = queue.then(async () => {
    const { seed } = demo, label = chosen(); // of presses that came in meanwhile, the last
    const wanted = `${seed} ${label}`;
    if (wanted === demo.shown) return;
    const what = `images of seed ${seed}${label === null ? "" : `, class ${nameOf(demo, label)}`}`;
    for (const model of demo.models) {
      const { data, ms } = await generate(demo, model, seed, label);
      paint(model.canvas, data, demo.shape);
      model.canvas.setAttribute("aria-label", `${NUM} ${what}, ${model.steps} step(s)`);
      model.time.textContent = `${NUM} images in ${ms.toFixed(1)} ms`;
    }
    demo.shown = wanted;
    document.body.dataset.first ??= String(performance.now());
    document.body.dataset.of = label === null ? "all" : String(label);
    document.body.dataset.shown = String(seed);
  }).catch(fail);
  return queue;
}

function fail(error) {
  byId("what").textContent = `It does not work here: ${error.message ?? error}`;
  byId("what").className = "error";
  document.body.dataset.error = String(error.message ?? error);
}

async function main() {
  const demo = await (await fetch("demo.json")).json();
  document.title = byId("name").textContent = demo.name;
  byId("grids").append(...demo.models.map((model) => figure(demo, model)));
  const where = await load(demo);
  const [channels, height, width] = demo.shape;
  byId("what").textContent = `${demo.what} ${width}x${height} ${channels === 1 ? "grey" : "RGB"}, ${demo.precision}, ${where}.`;
  byId("made").textContent = `fewstep ${demo.version}, student ${demo.student_hash.slice(0, 16)}, onnxruntime-web ${demo.runtime}`;
  const asked = new URLSearchParams(location.hash.slice(1));
  offer(demo, asked.get("class"));
  const move = (by) => show(demo, demo.seed + by);
  byId("next").addEventListener("click", () => move(1));
  byId("back").addEventListener("click", () => move(-1));
  byId("grids").addEventListener("click", () => move(1));
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("seed").addEventListener("change", () => show(demo, Math.trunc(Number(byId("seed").value)) || 0));
  byId("class").addEventListener("change", () => show(demo, demo.seed));
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || ["seed", "class"].includes(event.target.id)) return;
    const by = { ArrowRight: 1, ArrowLeft: -1, " ": 1, Enter: 1 }[event.key];
    const onButton = event.target.tagName === "BUTTON" && (event.key === " " || event.key === "Enter");
    if (!by || onButton) return; // a button is pressed by these keys itself
    event.preventDefault();
    move(by);
  });
  const model = (steps) => demo.models.find((each) => each.steps === steps);
  globalThis.fewstep = { generate: (seed, steps, label = null) => generate(demo, model(steps), seed, label) };
  await show(demo, Number(asked.get("seed")) || 0);
}

main().catch(fail);

"use strict";
// Asks the server every few seconds, and shows what it says. Text of others is only ever textContent.

const EVERY = { reading: 200, training: 2000, starting: 2000, evaluating: 3000, stopped: 4000, waiting: 4000, ended: 10000 };
const PATIENCE = 15000; // milliseconds that an answer may take
const CLOCK = [1, 2, 5, 10, 15, 30, 60, 120, 180, 300, 600, 1200, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
const $ = (id) => document.getElementById(id);
const shown = { data: null, tag: null, goneSince: null, now: 0, hidden: new Set(), large: new Set() };

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// ------------------------------------------------------------------------------------ the header

const STATES = {
  reading: "reading", starting: "starting", training: "training", evaluating: "evaluating", ended: "ended",
  stopped: "stopped", waiting: "waiting for the first row",
};

function ago(seconds) {
  return seconds < 5 ? "just now" : `${charts.duration(seconds)} ago`;
}

function facts(data) {
  const { step, steps, speed, checkpoint, evaluation } = data;
  const found = [["step", steps ? `${charts.number(step)} of ${charts.number(steps)}` : charts.number(step)]];
  found.push(["seeds", charts.number(data.num_seeds)]);
  if (data.newest_return !== null) found.push(["newest return", charts.number(data.newest_return)]);
  if (evaluation) found.push([`greedy, ${evaluation.episodes} episodes a seed`, charts.number(evaluation.mean)]);
  const goes = data.state === "training" || data.state === "evaluating";
  if (goes && speed.recent !== null) found.push(["rows per second", charts.number(speed.recent)]);
  else if (speed.average !== null) found.push(["rows per second, mean", charts.number(speed.average)]);
  if (speed.left !== null) found.push(["time left", `about ${charts.duration(speed.left)}`]);
  if (data.last_row_at !== null) found.push(["last row", ago(shown.now - data.last_row_at)]);
  if (checkpoint) found.push(["checkpoint", `step ${charts.number(checkpoint.step)}`]);
  return found;
}

function showHeader() {
  const { data } = shown, gone = shown.goneSince !== null;
  $("name").textContent = data.name;
  document.title = `${STATES[data.state]}: ${data.name}`;
  const parts = [data.environment, data.workdir, data.process && `trained by ${data.process}`];
  $("place").textContent = parts.filter(Boolean).join("  ·  ");
  $("state").className = `state ${gone ? "gone" : data.state}`;
  $("state").textContent = gone ? "no connection" : STATES[data.state];
  const share = data.steps ? Math.min(100, (100 * data.step) / data.steps) : 0;
  $("progress").setAttribute("aria-valuenow", share.toFixed(0));
  $("progress").firstElementChild.style.width = `${share}%`;
  $("facts").replaceChildren(...facts(data).map(([name, value]) => {
    const pair = element("div");
    pair.append(element("dt", "", name), element("dd", "", value));
    return pair;
  }));
  showNotes(data, gone);
}

function showNotes(data, gone) {
  const notes = [];
  if (gone) {
    const since = shown.goneSince.toLocaleTimeString();
    notes.push(["bad", `The server has not answered since ${since}. This is what it said last; the page goes on by itself when it is back.`]);
  }
  for (const { seed, step, metric } of data.frozen) {
    const why = metric ? `${metric} was not finite` : "a number was not finite";
    notes.push(["bad", `Seed ${seed} is frozen since step ${charts.number(step)}: ${why}. The others go on.`]);
  }
  if (data.state === "stopped") {
    notes.push(["", "Nobody trains here now. The same command goes on from the newest checkpoint."]);
  }
  if (data.state === "reading") notes.push(["", `The rows of this run are being read: ${Math.round(100 * data.read)} % until now.`]);
  if (data.state === "waiting") notes.push(["", "There is no row of metrics yet; the page looks again by itself."]);
  for (const note of data.notes) notes.push(["", note]);
  $("notes").replaceChildren(...notes.map(([kind, text]) => element("p", `note ${kind}`, text)));
}

// ------------------------------------------------------------------------------------ the charts

function key(host, entries) {
  host.replaceChildren(...entries.map(([look, text]) => {
    const entry = element("span");
    if (look) entry.append(element("i", look));
    entry.append(text);
    return entry;
  }));
}

const weight = () => Number($("smoothing").value);

// Greedy episodes during training, if the run plays them: means over its seeds.
const GREEDY = /^eval\/(?:(.+)\/)?return$/;

function addGreedy(spec, entries, { metrics, env_steps_of_metrics: x }) {
  metrics.filter(({ name }) => GREEDY.test(name)).forEach(({ name, mean }, i) => {
    if (mean.every((value) => value === null)) return;
    const where = name.match(GREEDY)[1], look = `greedy tone-${(i + 2) % 6}`;
    const words = where ? `greedy episodes in ${where}` : "greedy episodes";
    spec.lines.push({ x, y: charts.smooth(mean, weight()), look, name: words });
    entries.push([`dashed ${look}`, words]);
  });
}

function showReturns(data) {
  const groups = data.returns, calm = (values) => charts.smooth(values, weight());
  const spec = { lines: [], bands: [], xTitle: "environment steps of a seed", xUnit: " steps", label: "episode return" };
  spec.empty = "no episode has ended yet";
  const entries = [];
  const alone = groups.length === 1;
  groups.forEach((group, i) => {
    const look = `tone-${i % 6}`, several = group.of > 1;
    for (const line of group.seeds) spec.lines.push({ x: line.x, y: calm(line.y), look: `seed ${alone ? "blue" : look}` });
    if (!group.mean) return;
    const { x, mean, low, high } = group.mean;
    spec.lines.push({ x, y: calm(mean), look: `mean ${look}`, name: group.label });
    if (several) spec.bands.push({ x, low: calm(low), high: calm(high), look });
    if (alone && several) {
      const of = group.of > group.seeds.length ? `${group.seeds.length} of ${group.of} seeds` : "each seed";
      entries.push(["thin blue", of]);
    }
    const words = several ? `mean of ${group.of} seeds, ± standard error` : "its one seed";
    entries.push([look, group.label ? `${group.label} (${words})` : several ? words : "the seed"]);
  });
  addGreedy(spec, entries, data);
  key($("returns-key"), entries);
  charts.draw($("returns"), spec);
}

function showThroughput({ seconds, rows }, speed) {
  const entries = [["", "of all seeds"]];
  if (speed.average !== null) entries.push(["", `mean ${charts.number(speed.average)}`]);
  const lines = [{ x: seconds, y: rows, look: "blue", name: "" }];
  const speeds = rows.filter((value) => value > 0);
  const log = Math.max(...speeds) > 30 * Math.min(...speeds); // random play is far faster than learning
  if (log) entries.push(["", "log scale"]);
  key($("throughput-key"), entries);
  charts.draw($("throughput"), {
    lines, gaps: true, log, fromZero: !log, xTitle: "time of training", xText: charts.duration, xSteps: CLOCK, label: "rows per second", empty: "not known yet",
  });
}

function showPicture(picture) {
  const card = $("picture-card");
  card.hidden = picture === null;
  document.querySelector(".top").classList.toggle("flat", card.hidden || card.classList.contains("broad"));
  if (picture === null) return;
  const when = picture.drawn_at && new Date(picture.drawn_at * 1000).toLocaleTimeString();
  const of = picture.step === null ? "at the end of the run" : `at step ${charts.number(picture.step)}`;
  const words = picture.tag ? `${of}, drawn ${when}${tall() ? "; a click shows all" : ""}` : picture.drawing ? "being drawn …" : "drawn when there is a checkpoint";
  $("picture-key").textContent = picture.error ? `${words}; the last attempt failed: ${picture.error}` : words;
  $("picture-link").hidden = !picture.tag;
  if (picture.tag && $("picture").dataset.tag !== picture.tag) {
    $("picture").dataset.tag = picture.tag;
    $("picture").src = $("picture-link").href = `open_loop.png?${picture.tag}`;
  }
}

const tall = () => $("picture").offsetHeight > $("picture-link").offsetHeight + 1;

$("picture").addEventListener("load", () => {
  const { naturalWidth, naturalHeight } = $("picture");
  $("picture-card").classList.toggle("broad", naturalWidth > 1.25 * naturalHeight);
  showPicture(shown.data.picture);
  drawCharts();
});

// ----------------------------------------------------------------------------- the small multiples

const LAST = ["episode", "count", "agent"]; // groups that are looked at least
const split = (name) => (name.includes("/") ? [name.split("/")[0], name.slice(name.indexOf("/") + 1)] : ["other", name]);

function sorted(groups) {
  const place = (group) => LAST.indexOf(group);
  return [...new Set(groups)].sort((a, b) => place(a) - place(b) || (a < b ? 1 : -1));
}

function showTools(metrics) {
  const groups = sorted(metrics.map(({ name }) => split(name)[0]));
  if ($("groups").dataset.names === groups.join("\n")) return;
  $("groups").dataset.names = groups.join("\n");
  $("groups").replaceChildren(...groups.map((group) => {
    const label = element("label"), box = element("input");
    box.type = "checkbox";
    box.checked = !shown.hidden.has(group);
    box.addEventListener("change", () => {
      shown.hidden[box.checked ? "delete" : "add"](group);
      drawCharts();
    });
    label.append(box, ` ${group}`);
    return label;
  }));
}

const cards = new Map(); // name of a metric -> its card

function card(name) {
  if (!cards.has(name)) {
    const made = element("div", "card metric"), head = element("div", "head");
    made.tabIndex = 0;
    made.setAttribute("role", "button");
    const title = element("b");
    title.append(element("i", "", `${split(name)[0]} `), split(name)[1]);
    head.append(title, element("span"));
    made.append(head, element("div", "chart"));
    const toggle = () => {
      shown.large[shown.large.has(name) ? "delete" : "add"](name);
      drawCharts();
    };
    made.addEventListener("click", toggle);
    made.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      toggle();
    });
    cards.set(name, made);
  }
  return cards.get(name);
}

function showMetrics(metrics, x) {
  $("metrics-section").hidden = !metrics.length;
  showTools(metrics);
  const wanted = $("filter").value.trim().toLowerCase();
  const groups = sorted(metrics.map(({ name }) => split(name)[0])).filter((group) => !shown.hidden.has(group));
  const found = groups.flatMap((group) => metrics.filter(({ name }) => split(name)[0] === group))
    .filter(({ name }) => name.toLowerCase().includes(wanted));
  $("metrics").replaceChildren(...found.map(({ name }) => card(name)));
  for (const metric of found) drawMetric(metric, x);
}

function drawMetric({ name, mean, low, high }, x) {
  const made = card(name), large = shown.large.has(name);
  const calm = (values) => charts.smooth(values, weight());
  made.classList.toggle("large", large);
  made.setAttribute("aria-expanded", large);
  const newest = mean.filter((value) => value !== null).pop();
  made.querySelector("span").textContent = newest === undefined ? "" : charts.number(newest);
  charts.draw(made.querySelector(".chart"), {
    lines: [{ x, y: calm(mean), look: "blue", name: "" }],
    bands: [{ x, low: calm(low), high: calm(high), look: "blue" }],
    log: $("log").checked, xUnit: " steps", label: name,
    empty: newest === undefined ? "no value yet" : "nothing above 0",
  });
}

function drawCharts() {
  const { data } = shown;
  if (!data) return;
  showReturns(data);
  showThroughput(data.throughput, data.speed);
  showMetrics(data.metrics, data.env_steps_of_metrics);
}

// ----------------------------------------------------------------------------- the configuration

const settings = { tag: null, rows: [] };

async function askSettings() {
  if (!$("settings-section").open) return;
  const answer = await fetch("settings.json", { cache: "no-cache", signal: AbortSignal.timeout(PATIENCE) });
  if (!answer.ok || answer.headers.get("ETag") === settings.tag) return;
  settings.rows = (await answer.json()).settings;
  settings.tag = answer.headers.get("ETag");
  showSettings();
}

function showSettings() {
  const wanted = $("settings-filter").value.trim().toLowerCase();
  const found = settings.rows.filter((row) => row.join(" ").toLowerCase().includes(wanted));
  $("settings").tBodies[0].replaceChildren(...found.map(([path, value]) => {
    const row = element("tr");
    row.append(element("th", "", path), element("td", "", value));
    return row;
  }));
  const none = settings.tag === null ? "" : "there is no configuration that can be read yet";
  $("settings-note").textContent = settings.rows.length ? `${found.length} of ${settings.rows.length} settings` : none;
}

// ------------------------------------------------------------------------------------ the asking

async function ask() {
  const answer = await fetch("data.json", { cache: "no-cache", signal: AbortSignal.timeout(PATIENCE) });
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  shown.now = Date.parse(answer.headers.get("Date")) / 1000 || Date.now() / 1000;
  const tag = answer.headers.get("ETag");
  const isNew = tag !== shown.tag;
  if (isNew) {
    shown.data = await answer.json();
    shown.tag = tag;
  }
  return isNew;
}

async function turn() {
  let wait = 3000;
  try {
    const isNew = await ask();
    shown.goneSince = null;
    wait = EVERY[shown.data.state] || wait;
    showHeader();
    if (isNew) {
      showPicture(shown.data.picture);
      drawCharts();
    }
    await askSettings();
  } catch (error) {
    shown.goneSince = shown.goneSince || new Date();
    if (shown.data) showHeader();
    else $("state").textContent = "the server does not answer";
  }
  setTimeout(turn, wait);
}

let resizing = 0;
new ResizeObserver(() => {
  clearTimeout(resizing);
  resizing = setTimeout(drawCharts, 100);
}).observe(document.querySelector("main"));
$("log").addEventListener("change", drawCharts);
$("smoothing").addEventListener("input", () => {
  $("smoothing-shown").textContent = $("smoothing").value;
  drawCharts();
});
$("settings-section").addEventListener("toggle", () => askSettings().catch(() => {})); // asked again in a turn
$("settings-filter").addEventListener("input", showSettings);
$("back").hidden = !location.pathname.startsWith("/run/");
$("filter").addEventListener("input", drawCharts);
turn();

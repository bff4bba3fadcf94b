"use strict";
// A table of runs and their mean returns, asked for every few seconds. Text of others is only ever textContent.

const EVERY = { reading: 300, training: 3000, still: 6000 };
const PATIENCE = 30000; // milliseconds that an answer may take
const GOING = ["starting", "training", "evaluating"];
const STATES = { waiting: "not begun" }; // that are called otherwise
const $ = (id) => document.getElementById(id);
const page = { data: null, tag: null, goneSince: null, sort: null, descending: false, lit: null };

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

const numeric = (value) => (value === null ? "–" : charts.number(value));
const stateOf = (run) => STATES[run.state] || run.state;
const COLUMNS = [ // title, what is sorted by, what is shown
  ["run", (run) => run.name, (run) => run.name],
  ["experiment", (run) => run.experiment, (run) => run.experiment || "–"],
  ["environment", (run) => run.environment, (run) => run.environment || "–"],
  ["state", stateOf, stateOf],
  ["seeds", (run) => run.num_seeds, (run) => charts.number(run.num_seeds)],
  ["step", (run) => run.step, (run) => (run.steps ? `${charts.number(run.step)} of ${charts.number(run.steps)}` : charts.number(run.step))],
  ["newest return", (run) => run.newest_return, (run) => numeric(run.newest_return)],
  ["rows/s", (run) => run.speed, (run) => numeric(run.speed)],
  ["time left", (run) => run.left, (run) => (run.left === null ? "–" : charts.duration(run.left))],
];

// ------------------------------------------------------------------------------------- the table

const lines = new Map(); // number of a run -> its line of the table
const look = (run) => `tone-${run.id % 6} dash-${Math.floor(run.id / 6) % 3}`;

function line(run) {
  if (!lines.has(run.id)) {
    const made = element("tr"), link = element("a", "", run.name);
    link.href = `run/${run.id}/`;
    for (const [title] of COLUMNS) made.insertCell().dataset.label = title;
    made.cells[0].append(element("i", look(run)), link);
    made.cells[3].append(element("span", "state"));
    made.addEventListener("pointerenter", () => light(run.id));
    made.addEventListener("pointerleave", () => light(null));
    lines.set(run.id, made);
  }
  return lines.get(run.id);
}

function fill(run) {
  const made = line(run);
  COLUMNS.forEach(([title, , text], i) => { if (i !== 0 && i !== 3) made.cells[i].textContent = text(run); });
  made.cells[0].firstChild.className = run.curve ? look(run) : "";
  made.cells[3].firstChild.className = `state ${run.state}`;
  made.cells[3].firstChild.textContent = stateOf(run);
  return made;
}

function light(number) {
  page.lit = number;
  drawReturns();
}

function compare(a, b) {
  const by = COLUMNS[page.sort][1], [x, y] = [by(a), by(b)];
  if (x === null || y === null) return (x === null) - (y === null); // what is not known comes last
  const order = typeof x === "string" ? x.localeCompare(y) : x - y;
  return page.descending ? -order : order;
}

// In the order of the server unless a column was chosen.
function chosen() {
  const wanted = $("filter").value.trim().toLowerCase();
  const says = (run) => [run.name, run.experiment, run.environment, stateOf(run)].join(" ").toLowerCase();
  const found = page.data.runs.filter((run) => says(run).includes(wanted));
  return page.sort === null ? found : found.sort(compare);
}

function showRuns() {
  const found = chosen();
  const made = found.map(fill), body = $("runs").tBodies[0];
  // Left alone where nothing moves: the focus stays on its link.
  if (made.length !== body.rows.length || made.some((row, i) => row !== body.rows[i])) body.replaceChildren(...made);
  const some = found.length < page.data.runs.length ? `${found.length} of ${page.data.runs.length} runs` : "";
  $("runs-key").textContent = page.data.runs.length ? some : "There is no run in this folder yet; the page looks again by itself.";
}

function showTitles() {
  $("runs").tHead.rows[0].replaceChildren(...COLUMNS.map(([title], i) => {
    const cell = element("th"), button = element("button", "", title);
    button.addEventListener("click", () => {
      page.descending = page.sort === i ? !page.descending : i > 3; // of numbers the largest first
      page.sort = i;
      [...$("runs").tHead.rows[0].cells].forEach((other, at) => {
        if (at === i) other.setAttribute("aria-sort", page.descending ? "descending" : "ascending");
        else other.removeAttribute("aria-sort");
      });
      if (page.data) showRuns();
    });
    cell.append(button);
    return cell;
  }));
}

// ------------------------------------------------------------------------------------- the chart

function drawReturns() {
  if (!page.data) return;
  const weight = Number($("smoothing").value);
  const drawn = chosen().filter((run) => run.curve).map((run) => ({
    x: run.curve.x, y: charts.smooth(run.curve.y, weight), name: run.name,
    look: `${look(run)}${run.id === page.lit ? " lit" : ""}`,
  }));
  charts.draw($("returns"), {
    lines: drawn, xTitle: "environment steps of a seed", xUnit: " steps", label: "mean episode return of each run",
    empty: "no episode has ended yet",
  });
}

// ------------------------------------------------------------------------------------ the header

function showHeader() {
  const { data } = page, gone = page.goneSince !== null;
  const going = data.runs.filter((run) => GOING.includes(run.state)).length;
  const word = gone ? "no connection" : data.reading ? "reading" : going ? `${going} in training` : "nothing trains now";
  $("name").textContent = data.name;
  document.title = `${word}: ${data.name}`;
  $("state").className = `state ${gone ? "gone" : going ? "training" : ""}`;
  $("state").textContent = word;
  const count = new Map();
  for (const run of data.runs) count.set(stateOf(run), (count.get(stateOf(run)) || 0) + 1);
  const counted = [...count].map(([state, number]) => `${number} ${state}`).join(", ");
  $("place").textContent = [data.is_sweep ? "sweep" : "", data.folder, counted].filter(Boolean).join("  ·  ");
  const notes = [];
  if (gone) notes.push(["bad", `The server has not answered since ${page.goneSince.toLocaleTimeString()}. This is what it said last; the page goes on by itself when it is back.`]);
  if (data.reading) notes.push(["", `Rows are being read, of ${data.reading} runs still.`]);
  if (data.left_out) notes.push(["", "The folder holds more runs, or more folders, than are looked at: name one below it."]);
  $("notes").replaceChildren(...notes.map(([kind, text]) => element("p", `note ${kind}`, text)));
}

// ------------------------------------------------------------------------------------ the asking

async function ask() {
  const answer = await fetch("runs.json", { cache: "no-cache", signal: AbortSignal.timeout(PATIENCE) });
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  const tag = answer.headers.get("ETag"), isNew = tag !== page.tag;
  if (isNew) page.data = await answer.json();
  page.tag = tag;
  return isNew;
}

async function turn() {
  let wait = EVERY.training;
  try {
    const isNew = await ask();
    page.goneSince = null;
    if (page.data.reading) wait = EVERY.reading;
    else if (!page.data.runs.some((run) => GOING.includes(run.state))) wait = EVERY.still;
    if (isNew) { showRuns(); drawReturns(); }
    showHeader();
  } catch (error) {
    page.goneSince = page.goneSince || new Date();
    if (page.data) showHeader();
    else $("state").textContent = "the server does not answer";
  }
  setTimeout(turn, wait);
}

let resizing = 0;
new ResizeObserver(() => {
  clearTimeout(resizing);
  resizing = setTimeout(drawReturns, 100);
}).observe(document.querySelector("main"));
$("smoothing").addEventListener("input", () => {
  $("smoothing-shown").textContent = $("smoothing").value;
  drawReturns();
});
$("filter").addEventListener("input", () => { if (page.data) { showRuns(); drawReturns(); } });
showTitles();
turn();

"use strict";
// Lines and bands as SVG, for charts that are drawn anew when their numbers change.
// Everything that was written by others enters as text nodes and numbers, never as markup.

const charts = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const drawn = new WeakMap(); // host -> what was drawn there
  const pointers = new WeakMap(); // host -> where the pointer is over it

  function make(name, attributes, text) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function number(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size >= 1e7 || size < 1e-3)) return value.toExponential(2);
    if (Number.isInteger(value) || size >= 1000) return Math.round(value).toLocaleString("en");
    return String(parseFloat(value.toPrecision(4)));
  }

  function axisNumber(value) {
    const size = Math.abs(value);
    if (size >= 1e6) return parseFloat((value / 1e6).toPrecision(4)) + "M";
    if (size >= 1e4) return parseFloat((value / 1e3).toPrecision(4)) + "k";
    if (size !== 0 && size < 1e-3) return value.toExponential(0);
    return String(parseFloat(value.toPrecision(6)));
  }

  function duration(seconds) {
    if (seconds < 90) return `${Math.round(seconds)} s`;
    const minutes = Math.round(seconds / 60);
    if (minutes < 60) return `${minutes} min`;
    const hours = Math.floor(minutes / 60);
    if (hours < 48) return `${hours} h ${String(minutes % 60).padStart(2, "0")} min`;
    return `${Math.floor(hours / 24)} d ${hours % 24} h`;
  }

  // Round numbers from low to high, at most `count` and one; of times, multiples that clocks have.
  function ticks(low, high, count, bases) {
    const rough = (high - low) / count;
    let step = bases && bases.find((base) => base >= rough);
    if (!step) {
      const power = Math.pow(10, Math.floor(Math.log10(rough)));
      step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
    }
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i <= high / step + 1e-9; i++) found.push(i * step);
    return found;
  }

  function logTicks(low, high, count) {
    const every = Math.max(1, Math.ceil((Math.log10(high) - Math.log10(low)) / count));
    const found = [];
    for (let i = Math.ceil(Math.log10(low)); i <= Math.log10(high); i += every) found.push(10 ** i);
    return found.length > 1 ? found : ticks(low, high, count).filter((value) => value > 0);
  }

  function extent(spec) {
    const box = { left: Infinity, right: -Infinity, low: Infinity, high: -Infinity };
    const see = (x, y) => {
      if (x === null || y === null || (spec.log && y <= 0)) return;
      box.left = Math.min(box.left, x); box.right = Math.max(box.right, x);
      box.low = Math.min(box.low, y); box.high = Math.max(box.high, y);
    };
    for (const line of spec.lines) line.y.forEach((y, i) => see(line.x[i], y));
    for (const band of spec.bands || []) {
      band.low.forEach((y, i) => see(band.x[i], y));
      band.high.forEach((y, i) => see(band.x[i], y));
    }
    if (box.left > box.right) return null;
    if (spec.fromZero) box.low = Math.min(0, box.low);
    if (box.left === box.right) { box.left -= 0.5; box.right += 0.5; }
    if (box.low === box.high) {
      const room = Math.abs(box.low) * 0.1;
      box.low -= spec.log ? 0 : room; box.high += room || 1;
    } else if (!spec.log) {
      const room = (box.high - box.low) * 0.05;
      box.high += room; box.low -= spec.fromZero && box.low === 0 ? 0 : room;
    }
    return box;
  }

  // "M…L…" of the points that there are; a line with `gaps` is broken where one is missing.
  function path(x, y, place, gaps) {
    let text = "", open = false;
    y.forEach((value, i) => {
      const point = value === null || x[i] === null ? null : place(x[i], value);
      if (!point) { open = open && !gaps; return; }
      text += `${open ? "L" : "M"}${point[0].toFixed(1)} ${point[1].toFixed(1)}${open ? "" : "h0"}`;
      open = true;
    });
    return text;
  }

  function area(band, place) {
    const above = [], below = [];
    band.x.forEach((x, i) => {
      const high = band.high[i] === null ? null : place(x, band.high[i]);
      const low = band.low[i] === null ? null : place(x, band.low[i], true);
      if (high && low) { above.push(high); below.unshift(low); }
    });
    const write = ([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`;
    return above.length > 1 ? `M${[...above, ...below].map(write).join("L")}Z` : "";
  }

  function layout(host, spec, box) {
    const width = host.clientWidth, height = host.clientHeight;
    const yTicks = spec.log ? logTicks(box.low, box.high, height < 120 ? 3 : 5)
      : ticks(box.low, box.high, height < 120 ? 3 : 5);
    const widest = Math.max(...yTicks.map((value) => axisNumber(value).length), 1);
    const frame = { left: 8 + 6.4 * widest, right: width - 10, top: 8, bottom: height - (spec.xTitle ? 36 : 20) };
    const scale = spec.log ? (y) => Math.log(y) : (y) => y;
    const [low, high] = [scale(box.low), scale(box.high)];
    const across = (x) => frame.left + ((x - box.left) / (box.right - box.left)) * (frame.right - frame.left);
    const up = (y) => frame.bottom - ((scale(y) - low) / (high - low || 1)) * (frame.bottom - frame.top);
    const place = (x, y, clip) => {
      if (spec.log && y <= 0) return clip ? [across(x), frame.bottom] : null;
      return [across(x), up(y)];
    };
    return { width, height, frame, yTicks, across, up, place };
  }

  function axes(svg, spec, box, { width, frame, yTicks, across, up, height }) {
    for (const value of yTicks) {
      const y = up(value).toFixed(1);
      svg.append(make("line", { class: "grid", x1: frame.left, x2: frame.right, y1: y, y2: y }));
      svg.append(make("text", { x: frame.left - 5, y, dy: "0.35em", "text-anchor": "end" }, axisNumber(value)));
    }
    const write = spec.xText || axisNumber;
    for (const value of ticks(box.left, box.right, Math.max(2, Math.floor(width / 85)), spec.xSteps)) {
      const x = across(value).toFixed(1), end = frame.right - across(value) < 14;
      svg.append(make("text", { x, y: frame.bottom + 15, "text-anchor": end ? "end" : "middle" }, write(value)));
    }
    svg.append(make("line", { class: "axis", x1: frame.left, x2: frame.right, y1: frame.bottom, y2: frame.bottom }));
    if (spec.xTitle) {
      const middle = (frame.left + frame.right) / 2;
      svg.append(make("text", { x: middle, y: height - 3, "text-anchor": "middle" }, spec.xTitle));
    }
  }

  /** Draw `spec` into `host`: {lines: [{x, y, look, name?}], bands?: [{x, low, high, look}], log?,
   *  fromZero?, gaps?, xTitle?, xText?, xSteps?, empty?}. Lines with a name are read out. */
  function draw(host, spec) {
    if (!drawn.has(host)) listen(host);
    const box = extent(spec);
    const state = { spec, box };
    drawn.set(host, state);
    if (!box || !host.clientWidth) {
      const note = document.createElement("div");
      note.className = "empty";
      note.textContent = spec.empty || "no value yet";
      host.replaceChildren(note);
      return;
    }
    Object.assign(state, layout(host, spec, box));
    const svg = make("svg", { role: "img", "aria-label": spec.label || "chart" });
    axes(svg, spec, box, state);
    for (const band of spec.bands || []) {
      svg.append(make("path", { class: `band ${band.look}`, d: area(band, state.place) }));
    }
    for (const line of spec.lines) {
      const alone = line.y.filter((value) => value !== null).length === 1 ? " alone" : "";
      svg.append(make("path", { class: line.look + alone, d: path(line.x, line.y, state.place, spec.gaps) }));
    }
    host.replaceChildren(svg);
    if (pointers.has(host)) point(host, pointers.get(host));
  }

  function nearest(line, x) {
    let best = -1;
    line.x.forEach((value, i) => {
      if (value === null || line.y[i] === null) return;
      if (best < 0 || Math.abs(value - x) < Math.abs(line.x[best] - x)) best = i;
    });
    return best;
  }

  // Exponential means, without the pull of a beginning at zero; missing values stay missing.
  function smooth(values, weight) {
    let mean = 0, total = 0;
    return weight <= 0 ? values : values.map((value) => {
      if (value === null) return null;
      mean = weight * mean + (1 - weight) * value;
      total = weight * total + (1 - weight);
      return mean / total;
    });
  }

  const LISTED = 8; // lines that are read out, the nearest ones

  // Say what the named lines are where the pointer is.
  function point(host, [pixel, height]) {
    const { spec, box, frame, across, up } = drawn.get(host);
    clear(host);
    if (!box || !frame || pixel < frame.left - 8 || pixel > frame.right + 8) return;
    const x = box.left + ((pixel - frame.left) / (frame.right - frame.left)) * (box.right - box.left);
    const named = spec.lines.filter((line) => line.name !== undefined).map((line) => [line, nearest(line, x)]);
    const found = named.filter(([, i]) => i >= 0);
    if (!found.length) return;
    const [first, at] = found[0];
    const place = across(first.x[at]);
    const cursor = make("line", { class: "cursor", x1: place, x2: place, y1: frame.top, y2: frame.bottom });
    host.querySelector("svg").append(cursor);
    const tip = document.createElement("div");
    tip.className = "tip";
    const far = ([line, i]) => Math.abs(up(line.y[i]) - height);
    const listed = found.length > LISTED ? [...found].sort((a, b) => far(a) - far(b)).slice(0, LISTED) : found;
    const rows = listed.map(([line, i]) => `${line.name ? line.name + "  " : ""}${number(line.y[i])}`);
    tip.textContent = [`${(spec.xText || number)(first.x[at])}${spec.xUnit || ""}`, ...rows].join("\n");
    host.append(tip);
    const room = host.clientWidth - tip.offsetWidth;
    tip.style.left = `${Math.max(0, Math.min(room, place > host.clientWidth / 2 ? place - tip.offsetWidth - 10 : place + 10))}px`;
  }

  function clear(host) {
    for (const old of host.querySelectorAll(".tip, .cursor")) old.remove();
  }

  function listen(host) {
    host.addEventListener("pointermove", (event) => {
      const { left, top } = host.getBoundingClientRect();
      pointers.set(host, [event.clientX - left, event.clientY - top]);
      point(host, pointers.get(host));
    });
    host.addEventListener("pointerleave", () => {
      pointers.delete(host);
      clear(host);
    });
  }

  return { draw, number, duration, smooth };
})();

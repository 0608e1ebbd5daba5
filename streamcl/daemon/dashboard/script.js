"use strict";
// Reads /status every second, /overview and /history every few, and draws them. Names come from clients: text only, never markup.

const STATUS_MS = 1000, OVERVIEW_MS = 2000, HISTORY_MS = 5000, STALE_SECONDS = 60;
const RANGES = [["15 min", 900], ["1 h", 3600], ["12 h", 43200], ["5 days", 432000], ["all", 0]];
const COLOURS = 8, MOST_LINES = COLOURS, DENSE = 16;
const SVG = "http://www.w3.org/2000/svg";
const MARKED = new Set(["boundary", "revisit", "drift", "score", "failed", "crashed"]);

const $ = (id) => document.getElementById(id);
let range = 3600, history = null, overview = null, lastEvent = null, heard = Date.now();

// -- words --------------------------------------------------------------------------------------------------------------

const dash = "\u2013";
const number = (v, digits = 4) => v === null || v === undefined ? dash : Number.isInteger(v) ? v.toLocaleString("en")
  : Math.abs(v) >= 1e5 || (v !== 0 && Math.abs(v) < 1e-4) ? v.toExponential(2) : String(Number(v.toPrecision(digits)));
const percent = (v) => v === null || v === undefined ? dash : (100 * v).toFixed(1) + " %";
const compact = (v) => new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(v);
function bytes(v) {
  const unit = Math.min(4, Math.max(0, Math.floor(Math.log2(Math.max(v, 1)) / 10)));
  return Number((v / 1024 ** unit).toPrecision(3)) + " " + ["B", "KiB", "MiB", "GiB", "TiB"][unit];
}
function duration(s) {
  if (s === null || s === undefined) return dash;
  if (s < 60) return (s < 10 ? s.toFixed(1) : Math.round(s)) + " s";
  if (s < 3600) return Math.floor(s / 60) + " min " + Math.round(s % 60) + " s";
  if (s < 86400) return Math.floor(s / 3600) + " h " + Math.floor(s % 3600 / 60) + " min";
  return Math.floor(s / 86400) + " d " + Math.floor(s % 86400 / 3600) + " h";
}
function moment(t, span) {
  const at = new Date(1000 * t), hours = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
  if (span < 7200) return at.toLocaleTimeString([], { ...hours, second: "2-digit" });
  if (span < 172800) return at.toLocaleTimeString([], hours);
  return at.toLocaleDateString([], { month: "short", day: "numeric" }) + (span < 604800 ? " " + at.toLocaleTimeString([], hours) : "");
}

// -- elements -----------------------------------------------------------------------------------------------------------

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
function shape(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
function say(element, text) {  // a screen reader hears what changed, and only that
  if (element.textContent !== text) element.textContent = text;
}
function show(element, text) {
  element.hidden = !text;
  say(element, text || "");
}
function table(element, columns, rows, empty) {
  const head = make("thead", {}, make("tr", {}, ...columns.map(([name]) => make("th", { scope: "col" }, name))));
  const body = make("tbody", {}, ...rows.map((row) => {
    const cells = columns.map(([, cell], n) => {
      const content = cell(row);
      return n ? make("td", {}, content) : make("th", { scope: "row", title: content }, content);
    });
    return make("tr", { className: row.stale ? "stale" : "" }, ...cells);
  }));
  element.replaceChildren(...(rows.length ? [head, body] : [make("caption", { className: "none" }, empty)]));
}

// -- now ----------------------------------------------------------------------------------------------------------------

function showStatus(s) {
  say($("state"), s.state + (s.task ? ": " + s.task : ""));
  $("state").dataset.state = s.state;
  document.title = s.state + (s.task ? " " + s.task : "") + " \u00b7 streamcl";
  say($("facts"), `${s.mode} \u00b7 ${s.device} \u00b7 ${compact(s.parameters)} parameters \u00b7 up ${duration(s.uptime_seconds)} \u00b7 ${s.version}`);
  show($("problem"), s.problem);
  show($("warning"), s.warning);
  showConsolidation(s.consolidation);
  showTiles(s);
}

function showConsolidation(c) {
  $("consolidation").hidden = !c;
  if (!c) return;
  $("done").value = c.fraction;
  const phase = { epochs: `epoch ${Math.min(c.epoch + 1, c.epochs)} of ${c.epochs}`, fisher: "Fisher information", saving: "saving" }[c.phase];
  const left = c.seconds_left === null ? "" : `, ${duration(c.seconds_left)} left`;
  say($("left"), `${c.task}: ${phase}, ${Math.round(100 * c.fraction)} %${left}`);
}

function showTiles(s) {
  const overall = s.prequential.overall, task = s.prequential.task;
  const [name, value, other] = "accuracy" in overall || !("rmse" in overall)
    ? ["Prequential accuracy", percent(task.accuracy ?? overall.accuracy), `${percent(overall.accuracy)} over all`]
    : ["Prequential RMSE", number(task.rmse ?? overall.rmse), `${number(overall.rmse)} over all`];
  const { used, budget } = s.task_bytes;
  const meter = make("meter", { min: 0, max: 1, low: .7, high: .9, optimum: 0, value: used / budget, ariaLabel: "Spool against its budget" });
  const tiles = [
    ["Samples learned", compact(s.samples_seen), `${compact(s.steps)} steps`],
    ["Tasks", number(s.tasks), s.quarantined ? `${s.quarantined} records set aside` : togetherRisen(s.past)],
    ["Loss", number(s.train_loss), "nats a sample"],
    [name, value, other],
    ["Ingest", `${compact(s.ingest_rate.rows ?? 0)} rows/s`, `${number(s.ingest_rate.batches ?? 0, 3)} batches/s, ${bytes(s.ingest_rate.bytes ?? 0)}/s`],
    ["Lag", `${number(s.lag_batches)} batches`, "durable, not in a checkpoint"],
    ["Spool of the open task", bytes(used), `of ${bytes(budget)}`, meter],
    ["Credit", number(s.credit.messages), s.credit.messages ? "messages a producer" : "none: producers wait"],
  ];
  const element = $("tiles");
  if (element.children.length !== tiles.length) {
    element.replaceChildren(...tiles.map(() => make("div", {}, make("dt"), make("dd", { className: "value" }), make("dd"))));
  }
  tiles.forEach(([title, text, note, more], n) => {
    const [dt, dd, small] = element.children[n].children;
    say(dt, title);
    say(dd, text);
    small.replaceChildren(make("small", {}, note), ...(more ? [more] : []));
  });
}

// -- charts -------------------------------------------------------------------------------------------------------------

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough * .999);
  const found = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) found.push(Number(v.toPrecision(12)));
  return found;
}

// model: x {low, high, text}, lines [{name, points [[x, y]], gap, dots}], format, y {low?, high?}, marks [{x, kind, text}], summary
function chart(figure, model) {
  let svg = figure.querySelector("svg"), readout = figure.querySelector(".readout");
  if (!svg) {
    svg = shape("svg", { role: "img", tabindex: 0 });
    readout = make("p", { className: "readout" });
    readout.setAttribute("aria-live", "polite");
    figure.append(svg, readout);
    svg.addEventListener("pointermove", (event) => point(figure, event.clientX - svg.getBoundingClientRect().left));
    svg.addEventListener("pointerleave", () => point(figure, null));
    svg.addEventListener("blur", () => point(figure, null));
    svg.addEventListener("keydown", (event) => step(figure, event));
  }
  const width = svg.clientWidth || 400, height = svg.clientHeight || 176, left = 46, right = 8, top = 8, bottom = 20;
  const values = model.lines.flatMap((line) => line.points.map((p) => p[1])).filter((v) => v !== null);
  svg.setAttribute("aria-label", model.summary);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  figure.model = model;
  if (!values.length) {
    svg.replaceChildren(shape("text", { x: width / 2, y: height / 2, "text-anchor": "middle", class: "tick" }, "nothing yet"));
    model.stops = [];
    return;
  }
  let low = model.y?.low ?? Math.min(...values), high = model.y?.high ?? Math.max(...values);
  if (high - low < 1e-9) high = low + (Math.abs(low) || 1);
  const x = (v) => left + (v - model.x.low) / (model.x.high - model.x.low || 1) * (width - left - right);
  const y = (v) => height - bottom - (v - low) / (high - low) * (height - top - bottom);
  const parts = [];
  for (const v of ticks(low, high, 4)) {
    parts.push(shape("line", { x1: left, x2: width - right, y1: y(v), y2: y(v), class: "grid" }),
      shape("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end", class: "tick" }, model.format(v)));
  }
  model.x.ticks(width).forEach((v) => parts.push(
    shape("text", { x: Math.max(left + 12, Math.min(x(v), width - 28)), y: height - 4, "text-anchor": "middle", class: "tick" }, model.x.text(v))));
  for (const mark of model.marks ?? []) {
    if (mark.x < model.x.low) continue;
    parts.push(shape("line", { x1: x(mark.x), x2: x(mark.x), y1: top, y2: height - bottom, class: `event ${mark.kind}` }, shape("title", {}, mark.text)));
  }
  for (const line of model.lines) parts.push(...draw(line, x, y, `var(--c${(line.colour ?? 0) % COLOURS})`));
  parts.push(shape("line", { y1: top, y2: height - bottom, class: "cursor", visibility: "hidden" }));
  svg.replaceChildren(...parts);
  model.at = x;
  model.stops = [...new Set(model.lines.flatMap((line) => line.points.filter((p) => p[1] !== null).map((p) => p[0])))].sort((a, b) => a - b);
  if (figure.stop !== undefined && figure.stop !== null) choose(figure, figure.stop);
}

function draw(line, x, y, colour) {
  let path = "", before = null;
  for (const [at, value] of line.points) {
    if (value === null) { before = null; continue; }
    path += (before === null || at - before > line.gap ? "M" : "L") + x(at).toFixed(1) + " " + y(value).toFixed(1);
    before = at;
  }
  const parts = [shape("path", { d: path, class: "line", stroke: colour })];
  if (line.points.filter((p) => p[1] !== null).length === 1) {
    const [at, value] = line.points.find((p) => p[1] !== null);
    parts.push(shape("circle", { cx: x(at), cy: y(value), r: 2.5, fill: colour }));
  }
  for (const [at, value] of line.dots ?? []) {
    parts.push(shape("circle", { cx: x(at), cy: y(value), r: 4.5, fill: "var(--card)", stroke: colour, "stroke-width": 2.5, class: "again" },
      shape("title", {}, `${line.name} revisited`)));
  }
  return parts;
}

function point(figure, pixel) {
  const { model } = figure;
  if (pixel === null || !model?.stops.length) return choose(figure, null);
  choose(figure, model.stops.reduce((a, b) => Math.abs(model.at(b) - pixel) < Math.abs(model.at(a) - pixel) ? b : a));
}

function step(figure, event) {
  const stops = figure.model?.stops ?? [], move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20, Home: -1e9, End: 1e9 }[event.key];
  if (event.key === "Escape") choose(figure, null);
  if (move === undefined || !stops.length) return;
  event.preventDefault();
  const now = figure.stop === null || figure.stop === undefined ? stops.length - (move < 0 ? 0 : 1) : stops.findIndex((s) => s >= figure.stop);
  choose(figure, stops[Math.max(0, Math.min(stops.length - 1, now + move))]);
}

function choose(figure, stop) {
  figure.stop = stop;
  const cursor = figure.querySelector(".cursor"), readout = figure.querySelector(".readout"), { model } = figure;
  if (!cursor || stop === null) {
    cursor?.setAttribute("visibility", "hidden");
    return say(readout, model.hint ?? "");
  }
  cursor.setAttribute("x1", model.at(stop));
  cursor.setAttribute("x2", model.at(stop));
  cursor.setAttribute("visibility", "visible");
  const there = model.lines.flatMap((line) => line.points.filter((p) => p[0] === stop && p[1] !== null).map((p) => `${line.name} ${model.format(p[1])}`));
  say(readout, `${model.x.full(stop)}: ${there.slice(0, MOST_LINES).join(", ")}`);
}

function overTime(id, name, value, format, limits = {}) {
  const { samples: s, now } = history, marked = history.events.filter((e) => MARKED.has(e.kind));
  const first = Math.min(s.time[0] ?? now, ...marked.map((e) => e.time)), since = Math.max(history.since, first), span = now - since;
  const points = s.time.map((t, n) => [t, value(s, n)]), known = points.map((p) => p[1]).filter((v) => v !== null);
  const seconds = s.time.length > 1 ? Math.min(...s.time.slice(1).map((t, n) => t - s.time[n])) : 2;
  const last = known.length ? format(known[known.length - 1]) : "nothing yet";
  chart($(id), {
    lines: [{ name, points, gap: 6 * seconds }], format, y: limits,
    x: { low: since, high: now, text: (v) => moment(v, span), full: (v) => new Date(1000 * v).toLocaleString(),
      ticks: (width) => [0, 1, 2, 3, 4].filter((n) => width > 500 || n % 2 === 0).map((n) => since + n / 4 * span) },
    marks: marked.map((e) => ({ x: e.time, kind: e.kind, text: `${e.kind} ${e.task ?? ""}: ${e.text}` })),
    summary: `${name} over ${duration(span)}: now ${last}` + (known.length ? `, lowest ${format(Math.min(...known))}, highest ${format(Math.max(...known))}` : ""),
  });
}

function showHistory() {
  overTime("loss", "loss", (s, n) => s.loss[n], (v) => number(v, 3));
  overTime("accuracy", "accuracy", (s, n) => s.accuracy[n], percent, { low: 0, high: 1 });
  overTime("rate", "rows a second", (s, n) => s.rows[n] === null ? null : s.rows[n] / s.seconds[n], compact, { low: 0 });
  overTime("lag", "batches behind", (s, n) => s.lag[n], compact, { low: 0 });
  showMatrix();
  showRises();
  showEvents();
}

// -- tasks --------------------------------------------------------------------------------------------------------------

const change = (lsn) => history.changes.find((c) => c.lsn === lsn);
const named = (lsn) => { const c = change(lsn); return c ? (c.kind === "revisit" ? "\u21bb " : "") + c.task : `record ${lsn}`; };

function showMatrix() {
  const rows = history.accuracies, marks = [...new Set(rows.map((r) => r.lsn))], tasks = [...new Set(rows.map((r) => r.task))];
  $("matrix").hidden = !rows.length;
  if (!rows.length) return;
  const order = new Map((overview?.tasks ?? []).map((t, n) => [t.task, n]));
  tasks.sort((a, b) => (order.get(a) ?? 1e9) - (order.get(b) ?? 1e9));
  const at = new Map(rows.map((r) => [r.lsn + " " + r.task, r.accuracy]));
  const head = make("tr", {}, make("th", { scope: "col" }, "task"), ...marks.map((m) => make("th", { scope: "col", title: "after " + named(m) }, named(m))));
  const body = tasks.map((task) => make("tr", {}, make("th", { scope: "row", title: task }, task), ...marks.map((mark) => {
    const value = at.get(mark + " " + task), c = change(mark);
    if (value === undefined) return make("td", { className: "blank" });
    const again = c?.kind === "revisit" && c.task === task;
    const cell = make("td", { className: (value > .55 ? "deep" : "") + (again ? " again" : ""), title: `${task} after ${named(mark)}: ${percent(value)}` }, value.toFixed(2));
    cell.style.setProperty("--share", value);
    return cell;
  })));
  $("cells").className = marks.length > DENSE ? "dense" : "";
  const box = $("cells").parentElement, begun = $("cells").childElementCount > 0;
  $("cells").replaceChildren(make("thead", {}, head), make("tbody", {}, ...body));
  if (!begun) box.scrollLeft = box.scrollWidth;  // the newest; then it stays where it was put
  showFigures();
}

const FIGURES = {
  average_accuracy: ["Average accuracy", "now, mean over the tasks"],
  anytime_accuracy: ["Anytime accuracy", "mean over all boundaries of the mean over the tasks so far"],
  forgetting: ["Forgetting", "from each earlier task's best to now"],
  backward_transfer: ["Backward transfer", "from when each earlier task was learned to now"],
  forward_transfer: ["Forward transfer", "on a task just before it was learned, beside nothing learned"],
  calibration_error: ["Calibration error", "between how sure and how right answers are now"],
};

function showFigures() {
  const known = Object.entries(history.figures ?? {}).filter(([name, value]) => value !== null && FIGURES[name]);
  $("figures").replaceChildren(...known.map(([name, value]) => make("div", { title: FIGURES[name][1] },
    make("dt", {}, FIGURES[name][0]), make("dd", {}, value.toFixed(3)))));
}

const given = new Map();  // a task keeps its colour for as long as it is drawn
function coloured(tasks) {
  for (const task of given.keys()) if (!tasks.includes(task)) given.delete(task);
  for (const task of tasks) {
    if (!given.has(task)) given.set(task, [...Array(COLOURS).keys()].find((n) => ![...given.values()].includes(n)));
  }
  return given;
}

const risen = (value, bound, digits = 3) => bound === "chance" ? "> chance" : (bound === "lower" ? "\u2265 " : "") + number(value, digits);
const togetherRisen = (past) => past.rise === null || past.tasks < 2 ? "" : `rise ${risen(past.rise, past.rise_bound)} nats a sample`;

function showRises() {
  const each = history.penalties.filter((r) => r.rise !== null), all = (history.past ?? []).filter((r) => r.rise !== null);
  const rows = each.length ? each : all.length > 1 ? all.map((r) => ({ ...r, task: "all tasks" })) : [], marks = [...new Set(rows.map((r) => r.lsn))];
  $("rises").hidden = !rows.length;
  if (!rows.length) return;
  const last = new Map(rows.map((r) => [r.task, r.rise]));
  const tasks = [...last.keys()].sort((a, b) => last.get(b) - last.get(a)).slice(0, MOST_LINES), colour = coloured(tasks);
  const place = new Map(marks.map((m, n) => [m, n]));
  const lines = tasks.map((task) => {
    const own = rows.filter((r) => r.task === task), points = own.map((r) => [place.get(r.lsn), r.rise]);
    const dots = own.filter((r) => { const c = change(r.lsn); return c?.kind === "revisit" && c.task === task; }).map((r) => [place.get(r.lsn), r.rise]);
    return { name: task, points, gap: Infinity, dots, colour: colour.get(task) };
  });
  chart($("rise"), {
    lines, format: (v) => number(v, 2), hint: tasks.join(", "),
    x: { low: 0, high: Math.max(1, marks.length - 1), text: (v) => named(marks[v]).slice(0, 12), full: (v) => "after " + named(marks[v]),
      ticks: (width) => marks.map((m, n) => n).filter((n) => n % Math.ceil(marks.length / (width / 90)) === 0) },
    summary: "Estimated rise by task: " + tasks.map((t) => `${t} ${number(last.get(t), 2)}`).join(", "),
  });
  if ($("rise").stop === null || $("rise").stop === undefined) {
    $("rise").querySelector(".readout").replaceChildren(...tasks.map((task) => {
      const mark = make("span", { className: "mark" });
      mark.style.color = `var(--c${colour.get(task) % COLOURS})`;
      return make("span", {}, mark, `${task} ${number(last.get(task), 2)}`);
    }));
  }
}

function showOverview() {
  const now = Date.now() / 1000, tasks = [...overview.tasks].reverse(), most = Math.max(...tasks.map((t) => t.penalty_rise ?? 0), 1e-9);
  const rise = (t) => {
    if (t.penalty_rise === null) return dash;
    const bar = make("span");
    bar.style.width = 100 * Math.max(0, t.penalty_rise) / most + "%";
    return make("span", { title: t.revisit_reason ?? "" }, risen(t.penalty_rise, t.rise_bound), make("span", { className: "bar" }, bar));
  };
  const columns = [["task", (t) => t.task], ["samples", (t) => number(t.samples)], ["loss", (t) => number(t.loss, 3)], ["revisits", (t) => number(t.revisits)]];
  if (tasks.some((t) => "accuracy" in t)) columns.push(["accuracy", (t) => percent(t.accuracy)]);
  if (tasks.some((t) => t.penalty_rise !== null)) columns.push(["estimated rise", rise], ["revisit", (t) => t.revisit_rank ? `${t.revisit_rank}.` : dash]);
  if (tasks.some((t) => t.at_chance)) columns.push(["", (t) => t.at_chance ? "at chance" : ""]);
  columns.push(["closed", (t) => duration(now - t.closed_at) + " ago"]);
  table($("tasks"), columns, tasks, "No task has been consolidated yet.");
  say($("tasks-count"), tasks.length < overview.tasks_total ? `${tasks.length} of ${overview.tasks_total}` : `${tasks.length}`);
  const producers = overview.producers.map((p) => ({ ...p, stale: p.age_seconds === null || p.age_seconds > STALE_SECONDS }));
  table($("producers"), [
    ["producer", (p) => p.producer], ["durable", (p) => number(p.durable)], ["applied", (p) => number(p.applied)],
    ["last batch", (p) => p.age_seconds === null ? "before the start" : duration(p.age_seconds) + " ago"], ["batches/s", (p) => number(p.batches_per_second, 2)],
  ], producers, "No producer has said hello yet.");
  say($("producers-count"), producers.length < overview.producers_total ? `${producers.length} of ${overview.producers_total}` : `${producers.length}`);
}

function showEvents() {
  $("events").replaceChildren(...history.events.map((e) => make("li", {},
    make("time", { dateTime: new Date(1000 * e.time).toISOString() }, moment(e.time, Math.max(3600, history.now - e.time))),
    make("b", { className: e.kind }, e.kind.replace("_", " ") + (e.task ? " " + e.task : "")), e.text)));
  if (!history.events.length) $("events").replaceChildren(make("li", { className: "none" }, "Nothing has happened yet."));
}

// -- the loop -----------------------------------------------------------------------------------------------------------

async function read(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(10000) });
  if (!answer.ok) throw new Error(answer.status === 401 ? "the daemon asks for its token: load the page again" : `${path}: ${answer.status}`);
  return answer.json();
}

async function every(ms, act) {
  for (;;) {
    let failed = null;
    if (!document.hidden) await act().then(() => { heard = Date.now(); }, (error) => { failed = error; });
    if (failed) lost(failed);
    await new Promise((done) => setTimeout(done, failed ? Math.max(ms, 2000) : ms));
  }
}

function lost(error) {
  const seconds = (Date.now() - heard) / 1000;
  if (seconds < 3 && !String(error.message).includes("token")) return;
  $("state").dataset.state = "lost";
  say($("state"), "no answer");
  show($("problem"), error.message.includes("token") ? error.message : "The daemon does not answer; what is shown is old. Trying again.");
}

async function refreshHistory() {
  const asked = range, answer = await read(`/history?seconds=${asked}`);
  if (asked !== range) return;
  history = answer;
  showHistory();
}

for (const [text, seconds] of RANGES) {
  const button = make("button", { type: "button", ariaPressed: String(seconds === range) }, text);
  button.addEventListener("click", () => {
    range = seconds;
    for (const other of $("ranges").children) other.ariaPressed = String(other === button);
    refreshHistory().catch(lost);
  });
  $("ranges").append(button);
}
let width = 0;
new ResizeObserver(([entry]) => {
  if (history && entry.contentRect.width !== width) showHistory();
  width = entry.contentRect.width;
}).observe($("main"));
document.addEventListener("visibilitychange", () => document.hidden || refreshHistory().catch(lost));

every(STATUS_MS, async () => {
  const status = await read("/status");
  showStatus(status);
  const newest = status.events[0]?.id ?? null;
  if (lastEvent !== newest && lastEvent !== null) await refreshHistory();
  lastEvent = newest;
});
every(OVERVIEW_MS, async () => { overview = await read("/overview"); showOverview(); });
every(HISTORY_MS, refreshHistory);

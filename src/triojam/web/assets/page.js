"use strict";
(() => {
// In milliseconds. PATIENCE: without news for so long, nothing on the page counts any more. AFTER: a poll comes
// so long after the served second has changed. HIDDEN: between the polls of a tab that is not seen.
const PATIENCE = 3000, AFTER = 30, HIDDEN = 10000, SLOWEST = 5000, KEPT = 300;
const at = id => document.getElementById(id);
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

let news = null, process = null, rows = [], heard = null, lost = "", failures = 0, asking = false, timer = 0;

/* ---- Text changes only where it differs: a selection, and the place of a screen reader, stay. ---- */

function put(node, text) {
  if (node.firstChild === null) node.append(text);
  else if (node.firstChild.data !== text) node.firstChild.data = text;
}

function make(tag, className = "", ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

const children = new WeakMap();

/* Let `parent` have a child for each [key, value], in this order. create: makes the child of a key, and returns
   it with a function that shows a value. */
function list(parent, items, create) {
  if (!children.has(parent)) children.set(parent, new Map());
  const known = children.get(parent), keys = new Set(items.map(item => item[0]));
  for (const [key, { node }] of known) if (!keys.has(key)) { node.remove(); known.delete(key); }
  let next = parent.firstChild;
  for (const [key, value] of items) {
    if (!known.has(key)) known.set(key, create(key));
    const { node, fill } = known.get(key);
    if (node === next) next = node.nextSibling;
    else parent.insertBefore(node, next);
    fill(value);
  }
}

const digits = n => String(Math.floor(n)).padStart(2, "0");
const clock = s => `${digits(s / 3600 % 24)}:${digits(s / 60 % 60)}:${digits(s % 60)}`;
const rate = n => n === null ? "–" : (n < 10 ? tenths : whole).format(n);

function duration(s) {
  if (s === null) return "–";
  return s < 0.001 ? `${Math.round(s * 1e6)} µs` : s < 1 ? `${Number((s * 1e3).toPrecision(3))} ms` : `${Number(s.toPrecision(3))} s`;
}

function span(s) {
  const [days, hours, minutes] = [s / 86400, s / 3600 % 24, s / 60 % 60].map(Math.floor);
  return days ? `${days} d ${hours} h` : hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min ${Math.floor(s % 60)} s` : `${Math.floor(s)} s`;
}

/* Only what is perfect is 100 %. */
const percent = share => share === null ? "–" : `${Math.floor(share * 1e4) / 100} %`;

/* ---- What is shown once ---- */

function head() {
  const text = lost || news.headline.text, level = lost ? "wrong" : news.headline.level;
  const seen = document.hidden && !lost ? ` at ${news.time}` : "";
  const title = `${lost ? "○" : "●"} triojam ${news ? news.name : location.host} – ${text}${seen}`;
  if (document.title !== title) document.title = title;
  put(at("state"), text);
  at("state").className = level;
  document.body.classList.toggle("lost", lost !== "");
  const colour = lost ? "7a8691" : { good: "2e9e5b", warning: "d98e04", wrong: "d64045" }[level];
  const icon = `data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'><circle cx='4' cy='4' r='4' fill='%23${colour}'/></svg>`;
  if (at("icon").getAttribute("href") !== icon) at("icon").href = icon;
}

function parts() {
  const worst = new Map();
  for (const problem of [...news.problems].reverse()) worst.set(problem.part, problem);
  for (const node of document.querySelectorAll("[data-part]")) {
    const problem = worst.get(node.dataset.part);
    node.classList.toggle("warning", problem?.level === "warning");
    node.classList.toggle("wrong", problem?.level === "wrong");
    const label = node.querySelector("dt") ?? node;
    if (!problem) delete label.dataset.word;
    else if (label.dataset.word !== problem.name) label.dataset.word = problem.name;
  }
}

function figures() {
  const last = rows.length ? Object.fromEntries(news.history.columns.map((name, i) => [name, rows[rows.length - 1][i]])) : {};
  const window = news.window, texts = {
    name: news.name, about: `version ${news.version}, process ${news.pid}, up ${span(news.uptime)}`, time: news.time, zone: `${news.zone}, UTC${news.utc_offset}`,
    rate: rate(last.requests ?? null), rejected_rate: rate(last.rejected ?? null), refused_rate: rate(last.refused ?? null),
    success: percent(window.success), p50: duration(window.p50), p99: duration(window.p99),
  };
  for (const name of ["requests", "rejected", "refused", "connections", "connections_limit"]) texts[name] = whole.format(news[name]);
  for (const name of ["requests", "responses", "rejected", "send_errors", "in_flight"]) texts[`i_${name}`] = whole.format(news[name]);
  for (const id in texts) put(at(id), texts[id]);
  for (const node of document.querySelectorAll(".window")) put(node, `last ${Math.max(1, Math.round(window.seconds))} s`);
  at("used").value = news.connections / news.connections_limit;
}

function problems() {
  list(at("problems"), news.problems.map(each => [each.name, each]), name => {
    const text = make("span"), node = make("li", "", make("b", "", name), " ", text);
    return { node, fill: each => { node.className = each.level; put(text, each.text); } };
  });
}

function facts() {
  const kernel = news.synchronized === null ? "unknown to the kernel" : news.synchronized ? "synchronized" : "not synchronized";
  const bound = news.synchronized && news.max_error !== null ? `, at most ${duration(news.max_error)} wrong` : "";
  const failed = news.reloads_by_result.failure;
  const rows = [
    ...Object.entries(news.listeners).map(([kind, where]) => [`listener: ${kind}`, where]),
    ["clock", kernel + bound, "clock"], ["clock set", `${whole.format(news.clock_steps)} times`],
    ...Object.entries(news.certificates).map(([name, each]) => [`certificate: ${name}`, `until ${each.ends}`, `certificate ${name}`]),
    ["event loop lag", `${duration(news.window.lag_p99)} (p99)`, "lag"],
    ["internal errors", whole.format(news.internal_errors), "internal errors"],
    ["reloads", `${whole.format(news.reloads_by_result.success)} done, ${whole.format(failed)} failed`, "reloads"],
    ["log lines dropped", whole.format(news.log_messages_dropped), "log"],
    ["sources forgotten", whole.format(news.sources_forgotten), "sources"],
  ];
  list(at("facts"), rows.map(([name, ...rest]) => [name, rest]), name => {
    const text = make("dd"), node = make("div", "", make("dt", "", name), text);
    return { node, fill: ([value, part]) => { put(text, value); if (part && !node.dataset.part) node.dataset.part = part; } };
  });
}

const REASONS = [
  ["rejected_by_reason", "Rejected requests"], ["refused_by_reason", "Refused connections"],
  ["send_errors_by_reason", "Send errors"], ["disconnects_by_reason", "Closed connections"],
  ["handovers_by_cause", "Hand-overs by the fast lane"], ["accept_errors_by_errno", "Failed accepts"],
  ["web_rejected_by_reason", "Turned away, metrics port"], ["auth_failures_by_reason", "Passwords, metrics port"],
];

function reasons() {
  const counted = REASONS.filter(([key]) => Object.values(news[key]).some(count => count));
  const rest = REASONS.filter(each => !counted.includes(each));
  at("nothing").hidden = !rest.length;
  put(at("none"), `nothing: ${rest.map(each => each[1].toLowerCase()).join("; ")}`);
  put(at("nothings"), rest.map(([key, words]) => `${words}: ${Object.keys(news[key]).join(", ")}`).join(". "));
  list(at("reasons"), counted, key => {
    const heading = make("h2", "", REASONS.find(each => each[0] === key)[1]), body = make("tbody");
    const label = make("summary"), names = make("p"), zeros = make("details", "", label, names);
    const node = make("section", "", heading, make("table", "", body), zeros);
    node.id = key;
    return { node, fill: () => {
      const counts = Object.entries(news[key]), none = counts.filter(each => !each[1]);
      list(body, counts.filter(each => each[1]).sort((a, b) => b[1] - a[1]), name => {
        const head = make("th", "", name), number = make("td");
        head.scope = "row";
        return { node: make("tr", "", head, number), fill: count => put(number, whole.format(count)) };
      });
      put(label, `${none.length} at zero`);
      put(names, none.map(each => each[0]).join(", "));
      zeros.hidden = !none.length;
    } };
  });
}

/* ---- The tree of tasks ---- */

function branch() {
  const label = make("span"), inner = make("ul"), node = make("li", "", label, inner);
  return { node, fill: task => {
    put(label, task.times > 1 ? `${task.name} × ${whole.format(task.times)}` : task.name);
    inner.hidden = !task.nurseries.length;
    list(inner, task.nurseries.map((each, i) => [i, each]), nursery);
  } };
}

function nursery() {
  const label = make("span", "nursery"), inner = make("ul"), node = make("li", "", label, inner);
  return { node, fill: each => {
    put(label, each.name ? `nursery: ${each.name}` : "nursery");
    inner.hidden = !each.tasks.length;
    const seen = new Map(); // several tasks of one name may have nurseries of their own
    list(inner, each.tasks.map(task => {
      seen.set(task.name, (seen.get(task.name) ?? 0) + 1);
      return [`${task.name} ${seen.get(task.name)}`, task];
    }), branch);
  } };
}

function tasks() {
  if (at("tree").open) list(at("tasks"), [["", news.tasks]], branch);
}

/* ---- Charts ---- */

const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/* Each: the id, how a value reads, and the lines: column, words, colour, whether dashed. */
const CHARTS = [
  ["answered", rate, [["responses", "answered", "good"]]],
  ["failed", rate, [["rejected", "rejected", "warning"], ["refused", "refused", "wrong"], ["send_errors", "send errors", "wrong", true]]],
  ["times", duration, [["p99", "p99", "blue"], ["p50", "p50", "blue", true], ["lag", "loop lag", "grey"]]],
  ["connections", n => n === null ? "–" : whole.format(n), [["connections", "open", "purple"], ["limit", "limit", "grey", true]]],
];

/* The second of the served day at a time of the rows. */
const served = x => {
  const [h, m, s] = news.time.split(":").map(Number);
  return (h * 3600 + m * 60 + s + news.fraction - (news.at - x) + 86400) % 86400;
};

const newest = () => rows.length ? rows[rows.length - 1][0] : 0;

function minutes() {
  const marks = [], end = newest();
  for (let x = end - served(end) % 60; x > end - KEPT; x -= 60) marks.unshift(x);
  return marks;
}

/* Far from the limit, the limit is above the chart: its own line would press the other one to the floor. */
function top(u) {
  const limit = news.connections_limit, most = Math.max(1, ...u.data[1]);
  return [0, most * 4 > limit ? Math.max(limit, most) * 1.05 : most * 1.25];
}

/* Lines need no points, but a value between two gaps has no line. */
const alone = (u, i) => u.data[i].map((value, n) => value !== null && u.data[i][n - 1] == null && u.data[i][n + 1] == null ? n : -1).filter(n => n >= 0);

const decades = marks => marks.map(each => each !== null && /^1e/.test(each.toExponential()) ? each : null);

function chart([id, read, lines]) {
  const box = at(`chart_${id}`), caption = box.previousElementSibling, values = new Map();
  for (const [column, words, colour, dashed] of lines) {
    values.set(column, make("b", "", "–"));
    caption.append(make("span", "key", make("i", dashed ? `${colour} dashed` : colour), `${words} `, values.get(column)));
  }
  const moment = make("span", "", "");
  caption.append(moment);
  const logarithmic = id === "times", soft = () => style("--soft"), line = () => style("--line");
  const plot = new uPlot({
    width: box.clientWidth, height: box.clientHeight, legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, sync: { key: "time" }, points: { size: 7 } },
    scales: {
      x: { time: false, range: () => [newest() - KEPT, newest()] },
      y: logarithmic
        ? { distr: 3, range: (u, low, high) => [10 ** Math.floor(Math.log10(low || 1e-4)), 10 ** Math.ceil(Math.log10((high || 1e-2) * 1.01))] }
        : { range: id === "connections" ? top : (u, low, high) => [0, Math.max(1, high ?? 0) * 1.1] },
    },
    axes: [
      { stroke: soft, grid: { stroke: line, width: 1 }, ticks: { show: false }, size: 26, splits: minutes, values: (u, marks) => marks.map(x => clock(Math.round(served(x))).slice(0, 5)) },
      { stroke: soft, grid: { stroke: line, width: 1, filter: (u, marks) => logarithmic ? decades(marks) : marks }, ticks: { show: false }, size: 58, space: 30,
        values: (u, marks) => (logarithmic ? decades(marks) : marks).map(each => each === null ? "" : logarithmic ? duration(each) : Number.isInteger(each) ? short.format(each) : "") },
    ],
    series: [{}, ...lines.map(([column, , colour, dashed]) => ({
      label: column, width: 2, dash: dashed ? [6, 4] : undefined, stroke: () => style(`--${colour}`),
      fill: column === "responses" || column === "connections" ? () => `${style(`--${colour}`)}33` : undefined,
      points: { show: true, size: 5, filter: alone },
    }))],
    hooks: { setCursor: [() => caption_(plot.cursor.idx)] },
  }, [[], ...lines.map(() => [])], box);

  function caption_(i) {
    const shown = i ?? plot.data[0].length - 1;
    lines.forEach(([column], n) => put(values.get(column), read(plot.data[n + 1][shown] ?? null)));
    put(moment, i === null || i === undefined ? "" : `at ${clock(served(plot.data[0][i]))}`);
  }

  new ResizeObserver(() => plot.setSize({ width: box.clientWidth, height: box.clientHeight })).observe(box);
  return { redraw: () => plot.redraw(), fill: () => {
    const place = name => news.history.columns.indexOf(name);
    plot.setData([rows.map(row => row[0]), ...lines.map(([column]) =>
      column === "limit" ? rows.map(() => news.connections_limit) : rows.map(row => row[place(column)]))]);
    caption_(plot.cursor.idx);
  } };
}

let charts = null;

/* ---- News, and no news ---- */

function show() {
  figures();
  problems();
  facts();
  reasons();
  tasks();
  parts();
  head();
  charts ??= CHARTS.map(chart);
  for (const each of charts) each.fill();
}

/* By two clocks: one stands while this machine sleeps, the other may be set. */
const age = () => heard === null ? Infinity : Math.max(performance.now() - heard[0], Date.now() - heard[1]);

/* Say so if there is no news. A hidden tab asks seldom, so there only a failure says it. */
function judge(why = "") {
  if (age() < PATIENCE || (document.hidden && !why) || (heard === null && !why)) return;
  lost = news ? `no news since ${news.time}` : "no answer";
  if (why) put(at("link"), `${why}; trying again`);
  head();
}

async function ask() {
  // The location has no password, even if the page was opened with one in its address: fetch takes none there.
  const url = new URL(rows.length ? `status?since=${newest()}` : "status", location.href);
  const answer = await fetch(url, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  if (!answer.ok) throw new Error(`the answer has status ${answer.status}`);
  const said = await answer.json();
  if (!said?.history?.rows) throw new SyntaxError();
  return said;
}

function take(said) {
  if (news !== null && said.version !== news.version) { location.reload(); return; }
  rows = rows.concat(said.history.rows.filter(row => row[0] > newest())).slice(-KEPT);
  process = said.process;
  [news, heard, lost] = [said, [performance.now(), Date.now()], ""];
  put(at("link"), "");
  show();
}

async function poll() {
  if (asking) return;
  clearTimeout(timer);
  asking = true;
  let said = null, why = "";
  try {
    said = await ask();
    if (process !== null && said.process !== process) { rows = []; said = await ask(); } // its past, too
  } catch (error) {
    why = error.name === "TimeoutError" ? "the server does not answer" : error instanceof TypeError ? "the server is not reachable"
      : error instanceof SyntaxError ? "another program answers" : error.message;
  }
  asking = false;
  failures = said === null ? failures + 1 : 0;
  const pause = said === null ? Math.min(failures * 1000, SLOWEST) : document.hidden ? HIDDEN : (1 - said.fraction) * 1000 + AFTER;
  timer = setTimeout(poll, pause);
  if (said === null) judge(why);
  else take(said);
}

document.addEventListener("visibilitychange", () => {
  if (news !== null) head();
  if (!document.hidden) { judge(); poll(); }
});
at("tree").addEventListener("toggle", () => { if (news !== null) tasks(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { for (const each of charts ?? []) each.redraw(); });
setInterval(judge, 250);
poll();
})();
